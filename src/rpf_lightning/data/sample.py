"""One training sample from a GT and a reference photo (P III, Fig. 2)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.data.records import Photo, ReferenceBatch
from rpf_lightning.data.thin_plate import tps_flow
from rpf_lightning.model.resize import resize, resize_mask
from rpf_lightning.model.warping import backward_warp


def make_sample(gt: Photo, reference: Photo, *, lr_size: int, size: int, side: int) -> ReferenceBatch:
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

    Returns:
        The sample without batch dimension: images (3, S, S), masks (1, S, S), `lr` (3, L, L), `flow`
        (2, S, S), the two ids as strings.

    Raises:
        ValueError: if a size is not a power of two or not ``lr_size < side <= size``, or a photo has no
            landmarks or is not square.
    """
    check_sizes(lr_size, size, side)
    gt_landmarks, reference_landmarks = _landmarks(gt), _landmarks(reference)

    y = _image(gt)
    lr = (_bicubic(_bicubic(y, size), lr_size) * 255).round() / 255  # it would be an 8-bit file

    r = _bicubic(_image(reference), size)
    reference_mask = _full_mask(reference, size)
    masked = r * reference_mask

    warp_flow = tps_flow(gt_landmarks, reference_landmarks, size)[None]
    warped = backward_warp(masked, warp_flow)
    flow = warp_flow if side == size else tps_flow(gt_landmarks, reference_landmarks, side)[None]

    return ReferenceBatch(
        lr=lr[0],
        gt=_bicubic(y, side)[0],
        reference=_halve(masked, side)[0],
        unmasked_reference=_halve(r, side)[0],
        gt_mask=resize_mask(_full_mask(gt, size), side)[0],
        reference_mask=resize_mask(reference_mask, side)[0],
        warped_reference=_bicubic(warped, side)[0],
        flow=flow[0],
        id=gt.id,
        reference_id=reference.id,
    )


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


def _landmarks(photo: Photo) -> NDArray[np.float64]:
    """Return the landmarks as fractions of the side, after checking the photo."""
    height, width = photo.image.shape[:2]
    if height != width:
        raise ValueError(f"photo {photo.id!r} must be square, got {width} x {height}")
    if photo.landmarks is None:
        raise ValueError(f"photo {photo.id!r} has no landmarks; the thin-plate spline needs 68 points")
    return photo.landmarks / height


def _image(photo: Photo) -> Tensor:
    """Return the image as (1, 3, H, H) float32 in [0, 1]."""
    return torch.from_numpy(photo.image.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def _full_mask(photo: Photo, size: int) -> Tensor:
    """Return the mask at full size as (1, 1, size, size) of 0 and 1."""
    mask = torch.from_numpy(photo.mask.astype(np.float32))[None, None]
    if mask.shape[-1] < size:
        return F.interpolate(mask, size=(size, size), mode="nearest")
    return resize_mask(mask, size)


def _bicubic(image: Tensor, side: int) -> Tensor:
    """Resize and clamp to [0, 1]."""
    return resize(image, side).clamp(0, 1)


def _halve(image: Tensor, side: int) -> Tensor:
    """Halve repeatedly down to `side`, clamping at each step (the reference pyramid)."""
    while image.shape[-1] > side:
        image = _bicubic(image, image.shape[-1] // 2)
    return image
