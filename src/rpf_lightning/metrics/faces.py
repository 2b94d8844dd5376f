"""Metrics of faces per image that ask another network: identity (P IV-C) and landmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from rpf_lightning.faces.landmarks import LandmarkModel

Identity = Callable[[Tensor], Tensor]
"""Features of identity: (B, 3, S, S) in [0, 1] to (B, D); a row of NaN says that no face was found."""


def isc(pred: Tensor, other: Tensor, identity: Identity) -> Tensor:
    """Identity similarity, ``cos(identity(pred), identity(other))``: the paper's ISC where `other` is the GT.

    Args:
        pred: (B, 3, S, S), clamped to [0, 1].
        other: (B, 3, S, S) in [0, 1], the GT or the reference.
        identity: Such as `ArcFace`, whose raw features the paper compares.

    Returns:
        (B,) in [-1, 1]; NaN where no face was found.

    Raises:
        ValueError: If the shapes differ or are not those of RGB images.
    """
    _check(pred, other)
    return F.cosine_similarity(identity(pred.clamp(0, 1)), identity(other), dim=1)


def landmark_distance(pred: Tensor, gt: Tensor, model: LandmarkModel) -> Tensor:
    """Mean distance between the 68 landmarks found in prediction and GT, in percent of the image's side.

    The same network looks at both, so that what it gets wrong in the same way cancels. Both are rounded to
    8 bit for it.

    Args:
        pred: (B, 3, S, S), clamped to [0, 1].
        gt: (B, 3, S, S) in [0, 1].
        model: See `rpf_lightning.faces.landmarks`.

    Returns:
        (B,), 0 is best; NaN where no face was found in either: a network that destroys faces is told from one
        that moves them by how many those are.

    Raises:
        ValueError: If the shapes differ or are not those of RGB images.
    """
    _check(pred, gt)
    found = [face.landmarks for face in model([*_photos(pred), *_photos(gt)])]
    values = [
        math.nan if a is None or b is None else 100 * np.linalg.norm(a - b, axis=1).mean() / pred.shape[-1]
        for a, b in zip(found[: len(pred)], found[len(pred) :], strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32, device=pred.device)


def _photos(images: Tensor) -> list[NDArray[np.uint8]]:
    # a prediction may hold NaN, which has no integer
    pixels = (images.detach().float().nan_to_num().clamp(0, 1) * 255).round().byte()
    return list(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy()))


def _check(pred: Tensor, other: Tensor) -> None:
    if pred.ndim != 4 or pred.shape[1] != 3 or pred.shape != other.shape:
        got = f"{tuple(pred.shape)} and {tuple(other.shape)}"
        raise ValueError(f"expected two batches of one shape (B, 3, S, S), got {got}")
