"""The two label orders and the facial classes (P III-A)."""

import numpy as np
import pytest

from rpf_lightning.faces.labels import facial_mask, label_names

# Written out by number, so that a change of the name lists cannot change the expectation with them.
FACIAL = {"bisenet": set(range(1, 14)), "celebamask-hq": {*range(1, 13), 15}}


@pytest.mark.parametrize("scheme", ["bisenet", "celebamask-hq"])
def test_facial_classes_by_number(scheme: str) -> None:
    mask = facial_mask(np.arange(19, dtype=np.uint8)[None], scheme)
    assert mask.dtype == np.uint8
    assert set(np.flatnonzero(mask[0])) == FACIAL[scheme]
    assert len(FACIAL[scheme]) == 13


def test_orders() -> None:
    assert sorted(label_names("bisenet")) == sorted(label_names("celebamask-hq"))
    bisenet = {"nose": 10, "u_lip": 12, "neck": 14, "hair": 17, "hat": 18, "ear_r": 9, "eye_g": 6}
    celeba = {"nose": 2, "u_lip": 11, "neck": 17, "hair": 13, "hat": 14, "ear_r": 15, "eye_g": 3, "cloth": 18}
    assert {name: label_names("bisenet").index(name) for name in bisenet} == bisenet
    assert {name: label_names("celebamask-hq").index(name) for name in celeba} == celeba


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="bisenet, celebamask-hq"):
        facial_mask(np.zeros((2, 2), np.uint8), "lfw")
    with pytest.raises(ValueError, match=r"0\.\.18"):
        facial_mask(np.array([[0, 19]], np.uint8), "bisenet")
    with pytest.raises(ValueError, match=r"0\.\.18"):
        facial_mask(np.array([[-1, 3]]), "bisenet")
