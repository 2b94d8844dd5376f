"""One training sample from a GT and a reference photo (P III, Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.data.records import FaceBatch, Photo, ReferenceBatch
from rpf_lightning.data.thin_plate import tps_flow, warp
from rpf_lightning.faces.landmarks import MIRRORED
from rpf_lightning.model.resize import resize, resize_mask

Record = TypeVar("Record", FaceBatch, ReferenceBatch)


def make_sample(
    gt: Photo,
    reference: Photo,
    *,
    lr_size: int,
    size: int,
    side: int,
    mask_reference: bool = True,
    source_side: int | None = None,
) -> ReferenceBatch:
    """Build the sample of the reconstruction block that works at `side`.

    Both photos are brought to the full size first. The GT of the level is one bicubic step from the photo
    itself; the reference is masked at full size (eq. 1) and then halved repeatedly; r_warp (eq. 3) is masked
    and thin-plate warped at full size, then reduced in one step. After every step images are clamped to
    [0, 1], where bicubic overshoots.

    Args:
        gt: Photo to be reconstructed.
        reference: Photo that helps.
        lr_size: Side L of the LR input in pixels.
        size: Full output side, kappa * L.
        side: Side S of the level.
        mask_reference: Remove the non-facial region of the reference; without it (an ablation, P Table 2) its
            mask is 1 everywhere.
        source_side: Give in place of the LR the GT of this side, for a degradation to make the LR from.

    Returns:
        The sample without batch dimension: images (3, S, S), masks (1, S, S), `lr` (3, L, L), `flow`
        (2, S, S), landmarks (68, 2), the two ids as strings.

    Raises:
        ValueError: if a size is not a power of two or not ``lr_size < side <= size``, or a photo has no
            landmarks or is not square.
    """
    check_sizes(lr_size, size, side)
    gt_landmarks, reference_landmarks = landmark_fractions(gt), landmark_fractions(reference)
    face = make_face(gt, lr_size=lr_size, size=size, side=side, source_side=source_side)
    masked, mask = full_reference(reference, size, mask_reference)
    warped, flow = warp_to(masked, gt_landmarks, reference_landmarks, [side])[side]
    return ReferenceBatch(
        lr=face.lr,
        gt=face.gt,
        reference=pyramid(masked, [side])[side],
        gt_mask=face.gt_mask,
        reference_mask=resize_mask(mask, side)[0],
        warped_reference=warped,
        flow=flow,
        gt_landmarks=torch.from_numpy(gt_landmarks).float(),
        reference_landmarks=torch.from_numpy(reference_landmarks).float(),
        id=gt.id,
        reference_id=reference.id,
    )


def make_face(gt: Photo, *, lr_size: int, size: int, side: int, source_side: int | None = None) -> FaceBatch:
    """Build the part of a sample that needs no reference; see `make_sample`."""
    check_sizes(lr_size, size, side)
    y = image_tensor(gt)
    return FaceBatch(
        lr=lr_of(y, size, lr_size) if source_side is None else gt_at(y, source_side),
        gt=gt_at(y, side),
        gt_mask=mask_at(gt, size, side),
        id=gt.id,
    )


def gt_at(y: Tensor, side: int) -> Tensor:
    """Reduce a (1, 3, H, H) photo to y^(n), (3, side, side), in one bicubic step."""
    return _bicubic(y, side)[0]


def lr_of(y: Tensor, size: int, lr_size: int) -> Tensor:
    """Reduce a (1, 3, H, H) photo to the LR (3, L, L) by way of the full size; it would be an 8-bit file."""
    return (_bicubic(_bicubic(y, size), lr_size) * 255).round()[0] / 255


def full_reference(reference: Photo, size: int, mask_reference: bool) -> tuple[Tensor, Tensor]:
    """Bring a reference to full size and mask it (eq. 1).

    Returns:
        The masked reference (1, 3, size, size) and its mask (1, 1, size, size).
    """
    mask = _full_mask(reference, size)
    if not mask_reference:
        mask = torch.ones_like(mask)
    return _bicubic(image_tensor(reference), size) * mask, mask


def pyramid(masked: Tensor, sides: Sequence[int]) -> dict[int, Tensor]:
    """Halve a masked reference (1, 3, size, size) repeatedly; return (3, S, S) for the sides S asked for."""
    levels = {}
    while True:
        side = masked.shape[-1]
        if side in sides:
            levels[side] = masked[0]
        if side <= min(sides):
            return levels
        masked = _bicubic(masked, side // 2)


def warp_to(
    masked: Tensor,
    gt_landmarks: NDArray[np.float64],
    reference_landmarks: NDArray[np.float64],
    sides: Sequence[int],
) -> dict[int, tuple[Tensor, Tensor]]:
    """Warp a masked reference (1, 3, size, size) to the GT at full size (eq. 3).

    Returns:
        Side S -> r_warp (3, S, S) and the flow (2, S, S) in pixels of S.
    """
    size = masked.shape[-1]
    full_flow = tps_flow(gt_landmarks, reference_landmarks, size)
    warped = warp(masked, full_flow)
    return {
        side: (
            _bicubic(warped, side)[0],
            full_flow if side == size else tps_flow(gt_landmarks, reference_landmarks, side),
        )
        for side in sides
    }


def lr_as_reference(batch: ReferenceBatch, size: int) -> ReferenceBatch:
    """Put the enlarged LR in place of the reference, as `RPFModel` does without one (P Table 2).

    It is aligned already: the thin-plate flow is zero, the warped reference the reference itself.

    Args:
        batch: A batch of a level.
        size: Full output side; the LR is enlarged to it and halved down to the level's side.
    """
    side = batch.gt.shape[-1]
    reference = _bicubic(batch.lr, size)
    while reference.shape[-1] > side:
        reference = _bicubic(reference, reference.shape[-1] // 2)
    return batch._replace(
        reference=reference, warped_reference=reference, reference_mask=torch.ones_like(batch.reference_mask),
        flow=torch.zeros_like(batch.flow), reference_landmarks=batch.gt_landmarks,
    )  # fmt: skip


def mirror(sample: Record) -> Record:
    """Flip a sample or a batch horizontally, the GT and the reference alike.

    A thin-plate spline through mirrored points is the mirrored spline, so nothing has to be computed anew.
    """
    values = sample._asdict()
    for name, value in values.items():
        if "landmarks" in name:
            values[name] = mirror_landmarks(value)
        elif isinstance(value, Tensor):
            values[name] = value.flip(-1)
    if "flow" in values:
        values["flow"][..., 0, :, :] *= -1  # x
    return sample._replace(**values)


def mirror_landmarks(landmarks: Tensor) -> Tensor:
    """Flip (..., 68, 2) landmarks in fractions of the side: left and right points change places."""
    return landmarks[..., list(MIRRORED), :] * landmarks.new_tensor([-1, 1]) + landmarks.new_tensor([1, 0])


def check_sizes(lr_size: int, size: int, side: int) -> None:
    """Check the three sides of a level.

    Raises:
        ValueError: if one is not a power of two, or not ``lr_size < side <= size``.
    """
    for name, value in (("lr_size", lr_size), ("size", size), ("side", side)):
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name} must be a power of two, got {value}")
    if not lr_size < side <= size:
        raise ValueError(f"expected lr_size < side <= size, got lr_size={lr_size}, side={side}, size={size}")


def landmark_fractions(photo: Photo) -> NDArray[np.float64]:
    """Return the landmarks (68, 2) as fractions of the side.

    Raises:
        ValueError: if the photo has none or is not square.
    """
    height, width = photo.image.shape[:2]
    if height != width:
        raise ValueError(f"photo {photo.id!r} must be square, got {width} x {height}")
    if photo.landmarks is None:
        raise ValueError(f"photo {photo.id!r} has no landmarks; the thin-plate spline needs 68 points")
    return photo.landmarks / height


def image_tensor(photo: Photo) -> Tensor:
    """Return the image as (1, 3, H, H) float32 in [0, 1]."""
    return torch.from_numpy(photo.image.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def mask_at(photo: Photo, size: int, side: int) -> Tensor:
    """Return the facial mask as (1, side, side) of 0 and 1, by way of the full size."""
    return resize_mask(_full_mask(photo, size), side)[0]


def _full_mask(photo: Photo, size: int) -> Tensor:
    """Return the mask at full size as (1, 1, size, size) of 0 and 1."""
    mask = torch.from_numpy(photo.mask.astype(np.float32))[None, None]
    if mask.shape[-1] < size:
        return F.interpolate(mask, size=(size, size), mode="nearest")
    return resize_mask(mask, size)


def _bicubic(image: Tensor, side: int) -> Tensor:
    """Resize and clamp to [0, 1]."""
    return resize(image, side).clamp(0, 1)
