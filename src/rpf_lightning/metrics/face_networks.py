"""Metrics of faces per image that ask another network: identity (P IV-C) and landmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.metrics.image import check_pair
from rpf_lightning.pictures import to_uint8

if TYPE_CHECKING:
    from rpf_lightning.faces.landmarks import LandmarkModel

Identity = Callable[[Tensor], Tensor]
"""Features of identity: (B, 3, S, S) in [0, 1] to (B, D); a row of NaN says that no face was found."""


Seen = dict[tuple[int, int], tuple[Tensor, Any]]
"""What networks said of images. Calls that get the same dictionary ask about each image tensor once; it holds the
tensors, so that no other takes one's place."""


def isc(pred: Tensor, other: Tensor, identity: Identity, seen: Seen | None = None) -> Tensor:
    """Identity similarity, ``cos(identity(pred), identity(other))``: the paper's ISC where `other` is the GT.

    Args:
        pred: (B, 3, S, S), clamped to [0, 1].
        other: (B, 3, S, S) in [0, 1], the GT or the reference.
        identity: Such as `ArcFace`, whose raw features the paper compares.
        seen: What is known already, see `Seen`.

    Returns:
        (B,) in [-1, 1]; NaN where no face was found.

    Raises:
        ValueError: If the shapes differ or are not those of RGB images.
    """
    check_pair(pred, other)
    return similarity(*(_once(identity, identity, images, seen) for images in (pred, other)))


def similarity(features: Tensor, others: Tensor) -> Tensor:
    """Cosine of features (B, D) each: (B,), NaN where one is NaN."""
    return F.cosine_similarity(features, others, dim=1)


def landmark_distance(pred: Tensor, gt: Tensor, model: LandmarkModel, seen: Seen | None = None) -> Tensor:
    """Mean distance between the 68 landmarks found in prediction and GT, in percent of the image's side.

    The same network looks at both, so that what it gets wrong in the same way cancels. Both are rounded to
    8 bit for it.

    Args:
        pred: (B, 3, S, S), clamped to [0, 1].
        gt: (B, 3, S, S) in [0, 1].
        model: See `rpf_lightning.faces.landmarks`.
        seen: What is known already, see `Seen`.

    Returns:
        (B,), 0 is best; NaN where no face was found in either: a network that destroys faces is told from one
        that moves them by how many those are.

    Raises:
        ValueError: If the shapes differ or are not those of RGB images.
    """
    check_pair(pred, gt)
    ask = partial(find_landmarks, model=model)
    found, expected = (_once(model, ask, images, seen) for images in (pred, gt))
    return distance_between(found, expected, pred.shape[-1]).to(pred.device)


def _once(network: object, ask: Callable[[Tensor], Any], images: Tensor, seen: Seen | None) -> Any:
    """What a network says of images, clamped to [0, 1]."""
    if seen is None:
        return ask(images.clamp(0, 1))
    key = id(network), id(images)
    if key not in seen:
        seen[key] = images, ask(images.clamp(0, 1))
    return seen[key][1]


def find_landmarks(images: Tensor, model: LandmarkModel) -> list[NDArray[np.float64] | None]:
    """Find landmarks, in pixels, in images (B, 3, S, S) rounded to 8 bit; None where no face was found."""
    return [face.landmarks for face in model(list(to_uint8(images)))]


def distance_between(
    landmarks: Sequence[NDArray[np.float64] | None], others: Sequence[NDArray[np.float64] | None], side: int
) -> Tensor:
    """Mean distance between landmarks, in percent of the side: (B,), NaN where one is missing."""
    values = [
        math.nan if a is None or b is None else 100 * np.linalg.norm(a - b, axis=1).mean() / side
        for a, b in zip(landmarks, others, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32)
