"""Pairing, the near-duplicate rule, the other-person control and the split."""

import numpy as np
import pytest

from rpf_lightning.data.pairing import (
    Pair,
    grey_thumbnail,
    near_duplicates,
    nearest_references,
    other_person_references,
    split_by_identity,
)

BASE = np.random.default_rng(0).uniform(0.3, 0.7, (68, 2))


def shifted(*amounts: float) -> list[np.ndarray]:
    """Landmarks shifted along x: their mean L1 distance is the difference of the amounts."""
    return [BASE + np.array([amount, 0.0]) for amount in amounts]


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (32, 32), np.uint8)


def test_nearest_of_the_same_person() -> None:
    landmarks = shifted(0.0, 0.05, 0.02, 0.001, 0.2)
    pairs = nearest_references(["a", "a", "a", "b", "b"], landmarks)
    assert [(pair.gt, pair.reference) for pair in pairs] == [(0, 2), (1, 2), (2, 0), (3, 4), (4, 3)]
    assert pairs[0].distance == pytest.approx(0.02)


def test_l1_distance_and_not_l2() -> None:
    landmarks = [BASE, BASE + 0.03, *shifted(0.05)]  # L1 .06 and .05, L2 .042 and .05
    pairs = nearest_references(["a"] * 3, landmarks)
    assert pairs[0].reference == 2
    assert pairs[0].distance == pytest.approx(0.05)


def test_k_references_and_ties() -> None:
    landmarks = shifted(0.0, 0.1, 0.1, 0.05)
    landmarks[2] = landmarks[1].copy()
    pairs = nearest_references(["a"] * 4, landmarks, k=2)
    assert [pair.reference for pair in pairs if pair.gt == 0] == [3, 1]  # 1 and 2 are equally far
    assert [pair.reference for pair in nearest_references(["a"] * 2, landmarks[:2], k=5)] == [1, 0]
    with pytest.raises(ValueError, match="k must"):
        nearest_references(["a"] * 4, landmarks, k=0)


def test_no_pair_without_identity_landmarks_or_partner() -> None:
    landmarks: list[np.ndarray | None] = [*shifted(0, 0.1, 0.2, 0.3), None, BASE]
    pairs = nearest_references(["", "", "a", "a", "a", "b"], landmarks)
    assert {(pair.gt, pair.reference) for pair in pairs} == {(2, 3), (3, 2)}
    with pytest.raises(ValueError, match="landmarks"):
        nearest_references(["a"], landmarks)


def test_near_duplicates_are_no_references() -> None:
    landmarks = shifted(0.0, 0.005, 0.03)
    pictures = [noise(0), (noise(0) * 0.9 + 3).astype(np.uint8), noise(1)]
    twins = near_duplicates(landmarks, pictures)
    assert twins == [(0, 1)]
    pairs = nearest_references(["a"] * 3, landmarks, twins)
    assert [(pair.gt, pair.reference) for pair in pairs] == [(0, 2), (1, 2), (2, 1)]
    without = nearest_references(["a"] * 3, landmarks)  # the rule switched off
    assert [(pair.gt, pair.reference) for pair in without] == [(0, 1), (1, 0), (2, 1)]


def test_duplicates_need_both_conditions() -> None:
    alike = [noise(0), noise(0)]
    assert near_duplicates(shifted(0, 0.02), alike) == []  # the pose differs
    assert near_duplicates(shifted(0, 0.001), [noise(0), noise(1)]) == []
    assert near_duplicates(shifted(0, 0.001), alike) == [(0, 1)]
    assert near_duplicates(shifted(0, 0.0099), alike) == [(0, 1)]
    assert near_duplicates(shifted(0, 0.0101), alike) == []
    assert near_duplicates([BASE, None], alike) == []
    assert near_duplicates([], []) == []
    with pytest.raises(ValueError, match="thumbnails"):
        near_duplicates([BASE], alike)


def test_the_correlation_is_of_grey_values_around_their_mean() -> None:
    x, y = (noise(seed).astype(float) - 127 for seed in (0, 1))
    y -= (x * y).sum() / (x * x).sum() * x  # nothing in common
    y *= np.linalg.norm(x) / np.linalg.norm(y)
    for correlation, expected in ((0.975, [(0, 1)]), (0.965, [])):
        mixed = correlation * x + np.sqrt(1 - correlation**2) * y
        pictures = [np.rint(127 + 0.4 * x).astype(np.uint8), np.rint(90 + 0.3 * mixed).astype(np.uint8)]
        assert near_duplicates(shifted(0, 0.001), pictures) == expected
    flat = [np.full((32, 32), value, np.uint8) for value in (0, 0)]
    assert near_duplicates(shifted(0, 0.001), flat) == []  # two black pictures are no evidence


def test_duplicates_are_found_across_blocks_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpf_lightning.data.pairing.BLOCK", 3)
    landmarks = shifted(*np.linspace(0, 0.004, 10))
    pictures = [noise(i) for i in range(10)]
    pictures[7], pictures[9] = pictures[1], pictures[8]
    assert near_duplicates(landmarks, pictures) == [(1, 7), (8, 9)]


def test_other_person_is_near_and_never_the_same() -> None:
    identities = ["a", "a", "b", "c", ""]
    landmarks = shifted(0.0, 0.01, 0.05, 0.03, 0.001)
    pairs = other_person_references([0, 1, 2], range(5), identities, landmarks)
    assert [(pair.gt, pair.reference) for pair in pairs] == [(0, 3), (1, 3), (2, 3)]
    assert other_person_references([0], [1, 2], identities, landmarks) == [Pair(0, 2, pytest.approx(0.05))]
    with pytest.raises(ValueError, match="other than 'a'"):
        other_person_references([0], [0, 1], identities, landmarks)


def test_the_same_photo_under_two_names_is_no_other_person() -> None:
    pictures = [noise(0), noise(0), noise(1)]
    landmarks = shifted(0.0, 0.001, 0.1)
    twins = near_duplicates(landmarks, pictures)
    pairs = other_person_references([0], [0, 1, 2], ["a", "b", "c"], landmarks, twins)
    assert pairs[0].reference == 2
    assert other_person_references([0], [0, 1, 2], ["a", "b", "c"], landmarks)[0].reference == 1


def test_split_is_disjoint_and_ignores_the_order() -> None:
    identities = [f"p{i % 20}" for i in range(100)] + [""] * 5
    train, val = split_by_identity(identities, 0.2, seed=3)
    assert len(val) == 20
    assert not {identities[i] for i in train} & {identities[i] for i in val}
    assert sorted(train + val) == list(range(100))  # photos of nobody in particular are in neither
    order = np.random.default_rng(0).permutation(105)
    shuffled = [identities[i] for i in order]
    people = {shuffled[i] for i in split_by_identity(shuffled, 0.2, seed=3)[1]}
    assert people == {identities[i] for i in val}
    drawn = np.random.default_rng(3).permutation(20)[:4]  # from sorted names: a set's order is not repeatable
    assert people == {sorted({*identities} - {""})[i] for i in drawn}
    assert people != {identities[i] for i in split_by_identity(identities, 0.2, seed=4)[1]}


def test_split_bounds() -> None:
    assert split_by_identity(["a", "b"], 0, seed=0) == ([0, 1], [])
    assert len(split_by_identity(["a", "b"], 0.01, seed=0)[1]) == 1
    with pytest.raises(ValueError, match="val_fraction"):
        split_by_identity(["a"], 1.0, seed=0)


def test_grey_thumbnail() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 200
    small = grey_thumbnail(image)
    assert small.shape == (32, 32)
    assert small[0, 0] == 0
    assert small[0, 31] == 200
