import math
import tracemalloc

import numpy as np
import pytest

from rpf_lightning.evaluation.statistics import CHUNK, estimate, gap


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(20, 3, 400).tolist()
    found = estimate(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / math.sqrt(400)  # what theory says
    assert found["low"] == pytest.approx(np.mean(values) - half, abs=0.15 * half)
    assert found["high"] == pytest.approx(np.mean(values) + half, abs=0.15 * half)
    assert found == estimate(values)


def test_images_without_a_value_are_left_out():
    assert estimate([1.0, None, 3.0, math.nan]) == estimate([1.0, 3.0])
    assert estimate([None, None]) == {"mean": None, "low": None, "high": None, "count": 0}
    assert estimate([5.0]) == {"mean": 5.0, "low": 5.0, "high": 5.0, "count": 1}


def test_a_gap_is_measured_in_pairs():
    """Images differ far more than methods: unpaired draws would hide the gap."""
    base = np.random.default_rng(0).normal(20, 5, 50)
    better = base + 0.1 + np.random.default_rng(1).normal(0, 0.05, 50)
    found = gap(better.tolist(), base.tolist())
    assert found["mean"] == pytest.approx(0.1, abs=0.03)
    assert found["low"] > 0.05
    assert found["high"] < 0.15
    assert gap([1.0, None, 4.0], [0.0, 7.0, None]) == {"mean": 1.0, "low": 1.0, "high": 1.0, "count": 1}
    with pytest.raises(ValueError, match="same images, got 1 and 2"):
        gap([1.0], [1.0, 2.0])


def test_memory_is_bounded_for_many_images():
    values = np.arange(200_000, dtype=float).tolist()
    tracemalloc.start()
    try:
        found = estimate(values, resamples=50)  # 10 million draws, 80 MB of places and 80 MB of values
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 8 * CHUNK
    assert found["low"] < found["mean"] < found["high"]
