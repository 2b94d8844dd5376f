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
        mask: (H, H) uint8, 1 inside the facial classes of METHOD section 1 and 0 elsewhere.
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
    """A GT, its LR input and a reference, at the level (side S) of one reconstruction block.

    A dataset yields it without the leading batch dimension, a loader with it. Images are RGB float32 in
    [0, 1], not rounded except the LR (it would be a file). Read from a `LevelCache`, all are rounded to 8 bit.

    Attributes:
        lr: (B, 3, L, L) antialiased bicubic of the GT at full size, rounded to 8 bit; or what another
            degradation makes of the GT.
        gt: (B, 3, S, S) y^(n): one antialiased bicubic from the photo.
        reference: (B, 3, S, S) masked reference r_hat^(n) (eq. 1), halved repeatedly from full size.
        gt_mask: (B, 1, S, S) facial mask of the GT, 0 or 1.
        reference_mask: (B, 1, S, S) facial mask of the reference, 0 or 1.
        warped_reference: (B, 3, S, S) r_warp^(n) (eq. 3): masked reference, thin-plate warped to the GT at
            full size, then reduced.
        flow: (B, 2, S, S) the thin-plate flow in pixels of S: ``out(p) = r(p + flow(p))``.
        gt_landmarks: (B, 68, 2) x and y as fractions of the side.
        reference_landmarks: (B, 68, 2) the same of the reference.
        id: Name of the GT photo.
        reference_id: Name of the reference photo.
        place: Place in the dataset; from its length on the mirror images. -1: of no dataset.
    """

    lr: Tensor
    gt: Tensor
    reference: Tensor
    gt_mask: Tensor
    reference_mask: Tensor
    warped_reference: Tensor
    flow: Tensor
    gt_landmarks: Tensor
    reference_landmarks: Tensor
    id: str | list[str]
    reference_id: str | list[str]
    place: int | list[int] = -1
