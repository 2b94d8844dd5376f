"""The validation pairs of `gate.py`, and everything that models are given for them and compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rpf_lightning import ReferencePairsDataModule
from rpf_lightning.data.pairing import Pair, nearest_references
from rpf_lightning.data.pairs_datamodule import evenly
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import gt_at, image_tensor, landmark_fractions, lr_of, mask_at
from rpf_lightning.data.thin_plate import tps_flow


def default_pairs(data: ReferencePairsDataModule) -> tuple[list[list[Pair]], dict[str, list[int]]]:
    """The references of each GT, and their places: its nearest own one, another person's nearest, a random one's."""
    found = data.split_pairs()
    names, landmarks = found.photos.identities, found.photos.landmarks
    usable = [place for place in found.others if landmarks[place] is not None]
    pairs = []
    for own, wrong in zip(found.val, data.val_dataset(other_person=True).pairs, strict=True):
        others = [place for place in usable if names[place] != names[own.gt]]
        drawn = others[np.random.default_rng([0, own.gt]).integers(len(others))]
        pairs.append([own, wrong, Pair(own.gt, drawn, math.nan)])
    return pairs, {"own": [0], "wrong": [1], "random": [2]}


def several_pairs(
    data: ReferencePairsDataModule, several: int, count: int
) -> tuple[list[list[Pair]], dict[str, list[int]]]:
    """The same for the K nearest references, and behind them a random one.

    Raises:
        ValueError: If nobody has so many photos.
    """
    found = data.split_pairs()
    photos, places = found.photos, found.others
    ordered = nearest_references(
        [photos.identities[i] for i in places], [photos.landmarks[i] for i in places],
        [(places.index(a), places.index(b)) for a, b in found.duplicates if {a, b} <= set(places)], len(places),
    )  # fmt: skip
    of_gt: dict[int, list[Pair]] = {}
    for gt, reference, distance in ordered:
        of_gt.setdefault(places[gt], []).append(Pair(places[gt], places[reference], distance))
    enough = evenly([pairs for pairs in of_gt.values() if len(pairs) >= several], count)
    if not enough:
        raise ValueError(f"--references {several}: nobody in the validation part has {several + 1} photos")
    drawn = [pairs[np.random.default_rng([0, pairs[0].gt]).integers(len(pairs))] for pairs in enough]
    chosen = [[*pairs[:several], one] for pairs, one in zip(enough, drawn, strict=True)]
    return chosen, {"nearest": [0], "random": [several], f"{several} at once": list(range(several))}


def samples(
    photos: PreparedPhotos, pairs: list[list[Pair]], lr_size: int, size: int, side: int
) -> dict[str, Any]:
    """Everything that models are given and compared with; an axis for the references behind that of the GTs."""
    found: dict[str, list[Any]] = {}
    for of in pairs:
        gt, given = photos.photo(of[0].gt), [photos.photo(pair.reference) for pair in of]
        image = image_tensor(gt)
        references = [(gt_at(image_tensor(photo), size) * 255).round().byte() for photo in given]
        sample = {
            "ids": gt.id,
            "people": gt.identity,
            "lr": lr_of(image, size, lr_size),
            "gt": gt_at(image, side),
            "gt_mask": mask_at(gt, size, side).float(),
            "flow": tps_flow(landmark_fractions(gt), landmark_fractions(given[0]), side),
            "references": torch.stack(references),
            "masks": torch.stack([mask_at(photo, size, size).bool() for photo in given]),
        }
        for name, value in sample.items():
            found.setdefault(name, []).append(value)
    return {
        name: torch.stack(values) if isinstance(values[0], Tensor) else values
        for name, values in found.items()
    }
