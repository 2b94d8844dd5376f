"""Comparing people only where it was measured that they can be told apart."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rpf_lightning.enhancing.aligned_faces import AlignedFace
from rpf_lightning.enhancing.identity_check import (
    LIMITS,
    Comparison,
    Limits,
    comparable,
    compare,
    limits_of,
    not_measured,
)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_verdicts(limits: Limits) -> None:
    assert -1 < limits.other < limits.same < 1
    assert Comparison(limits.same, limits).matches
    assert not Comparison(limits.same - 0.01, limits).matches
    assert Comparison(limits.other - 0.01, limits).differs
    assert not Comparison(limits.other, limits).differs


def test_both_faces_must_be_large_enough(drawn: Callable[..., NDArray[np.uint8]], networks: Any) -> None:
    large = AlignedFace.whole(drawn(100, 100, (0, 0, 100, 0)), "")
    small = AlignedFace.whole(drawn(50, 50, (0, 0, 50, 255)), "")
    tiny = AlignedFace.whole(drawn(30, 30, (0, 0, 30, 255)), "")
    for pair in ((large, small), (small, large)):
        found = compare(*pair, networks)
        assert found is not None
        assert found.cosine == pytest.approx(0, abs=0.05)
    assert [comparable(face, networks) for face in (large, small, tiny)] == [True, True, False]
    assert tiny.side < limits_of(networks).smallest_side <= small.side
    assert compare(large, tiny, networks) is None
    assert compare(tiny, large, networks) is None


def test_the_limits_belong_to_one_file(networks: Any) -> None:
    assert not_measured(networks) == ""
    networks.models.recogniser = SimpleNamespace(file="w600k_r50.onnx")
    assert not_measured(networks).startswith(
        "the limits were not measured for w600k_r50.onnx, only for rec_mbf"
    )
