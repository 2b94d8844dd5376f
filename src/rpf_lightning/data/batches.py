"""The typed records that travel between data, stages and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Photo:
    """One photo with its annotations, at one size.

    Attributes:
        id: Name of the photo, unique in its data set.
        identity: Name of the person; empty if unknown.
        image: (H, H, 3) uint8, RGB.
        landmarks: (68, 2) float64, x and y in pixels of this image; continuous coordinates, so that the
            image spans 0..H and pixel ``i`` has its centre at ``i + 0.5``. None if none were found.
        mask: (H, H) uint8, 1 inside the facial classes of docs/method.md section 1 and 0 elsewhere.
    """

    id: str
    identity: str
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float64] | None
    mask: NDArray[np.uint8]


class FaceBatch(NamedTuple):
    """A GT and its LR input at the level (side S) of one reconstruction block, for stage 1.

    A dataset yields it without the leading batch dimension, a loader with it. Images are RGB float32 in
    [0, 1].

    Attributes:
        lr: (B, 3, L, L) the LR, rounded to 8 bit.
        gt: (B, 3, S, S) y^(n): one antialiased bicubic from the photo.
        gt_mask: (B, 1, S, S) facial mask of the GT, 0 or 1.
        id: Name of the GT photo.
        place: Place in the dataset; from its length on the mirror images. -1: of no dataset.
    """

    lr: Tensor
    gt: Tensor
    gt_mask: Tensor
    id: str | list[str]
    place: int | list[int] = -1


class ReferenceBatch(NamedTuple):
    """A GT, its LR input and its references, at the level (side S) of one reconstruction block.

    A dataset yields it without the leading batch dimension, a loader with it. Images are RGB float32 in
    [0, 1], not rounded except the LR (it would be a file). Read from a `LevelCache`, all are rounded to 8 bit.
    With several references per sample the fields marked (K) have an axis K behind B; absent ones are all zero.

    Attributes:
        lr: (B, 3, L, L) antialiased bicubic of the GT at full size, rounded to 8 bit; or what another
            degradation makes of the GT.
        gt: (B, 3, S, S) y^(n): one antialiased bicubic from the photo.
        reference: (B, 3, S, S) masked reference r_hat^(n) (eq. 1), halved repeatedly from full size (K).
        gt_mask: (B, 1, S, S) facial mask of the GT, 0 or 1.
        reference_mask: (B, 1, S, S) facial mask of the reference, 0 or 1 (K).
        reference_ok: (B, 1, S, S) 1 where no pixel of the full-size reference under this one is masked (K): the mask,
            minimum-pooled by 2 down to S.
        warped_reference: (B, 3, S, S) r_warp^(n) (eq. 3): masked reference, thin-plate warped to the GT at
            full size, then reduced; None where the stage does not need it.
        flow: (B, 2, S, S) the flow's target in pixels of S: ``out(p) = r(p + flow(p))`` (K).
        flow_known: (B,) 1 where there is such a target, 0 for another person's and for absent references (K).
        gt_landmarks: (B, 68, 2) x and y as fractions of the side.
        reference_landmarks: (B, 68, 2) the same of the reference (K).
        id: Name of the GT photo.
        reference_id: Name of the reference photo; with K a tuple of names, empty where absent.
        place: Place in the dataset; from its length on the mirror images. -1: of no dataset.
    """

    lr: Tensor
    gt: Tensor
    reference: Tensor
    gt_mask: Tensor
    reference_mask: Tensor
    reference_ok: Tensor
    warped_reference: Tensor | None
    flow: Tensor
    flow_known: Tensor
    gt_landmarks: Tensor
    reference_landmarks: Tensor
    id: str | list[str]
    reference_id: str | tuple[str, ...] | list[str] | list[tuple[str, ...]]
    place: int | list[int] = -1
