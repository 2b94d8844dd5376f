"""The parts of a training sample, made from a GT and reference photos (P III, Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.data.batches import FaceBatch, Photo, ReferenceBatch
from rpf_lightning.faces.landmarks import MIRRORED
from rpf_lightning.model.resize import minimum_pool, resize, resize_mask

Record = TypeVar("Record", FaceBatch, ReferenceBatch)


class ReferenceLevel(NamedTuple):
    """What a photo is as a reference, at one side S.

    Attributes:
        image: (3, S, S) masked (eq. 1), in [0, 1].
        mask: (1, S, S) facial mask, 0 or 1.
        ok: (1, S, S) 1 where no pixel at full size under this one is masked.
    """

    image: Tensor
    mask: Tensor
    ok: Tensor


class ReferencePart(NamedTuple):
    """What one reference gives to a sample; the fields are those of `ReferenceBatch`.

    Attributes:
        level: Image and masks.
        warped: (3, S, S) r_warp, or None.
        flow: (2, S, S).
        known: Whether the flow is a target.
        landmarks: (68, 2).
        id: Name of the photo.
    """

    level: ReferenceLevel
    warped: Tensor | None
    flow: Tensor
    known: bool
    landmarks: NDArray[np.float64]
    id: str


def join(
    face: FaceBatch,
    points: NDArray[np.float64],
    parts: Sequence[ReferencePart],
    slots: int = 1,
    warped: bool = False,
) -> ReferenceBatch:
    """Put a sample together.

    Args:
        face: The GT's part.
        points: (68, 2) landmarks of the GT.
        parts: At most `slots` references; what is missing becomes zeros.
        slots: Axis K in front of the references' fields; with 1 there is none.
        warped: Whether the parts have r_warp.
    """
    side, empty = face.gt.shape[-1], slots - len(parts)

    def stacked(values: Sequence[Tensor], *shape: int) -> Tensor:
        found = [*values, *[torch.zeros(shape)] * empty]
        return found[0] if slots == 1 else torch.stack(found)

    levels = [part.level for part in parts]
    r_warp = [part.warped for part in parts if part.warped is not None]
    names = (*(part.id for part in parts), *[""] * empty)
    return ReferenceBatch(
        lr=face.lr,
        gt=face.gt,
        reference=stacked([level.image for level in levels], 3, side, side),
        gt_mask=face.gt_mask,
        reference_mask=stacked([level.mask for level in levels], 1, side, side),
        reference_ok=stacked([level.ok for level in levels], 1, side, side),
        warped_reference=stacked(r_warp, 3, side, side) if warped else None,
        flow=stacked([part.flow for part in parts], 2, side, side),
        flow_known=stacked([torch.tensor(float(part.known)) for part in parts]),
        gt_landmarks=torch.from_numpy(points).float(),
        reference_landmarks=stacked(
            [torch.from_numpy(part.landmarks).float() for part in parts], *points.shape
        ),
        id=face.id,
        reference_id=names[0] if slots == 1 else names,
    )


def make_face(gt: Photo, *, lr_size: int, size: int, side: int, source_side: int | None = None) -> FaceBatch:
    """Build the part of a sample that needs no reference; see `PairsDataset`."""
    y = image_tensor(gt)
    return FaceBatch(
        lr=lr_of(y, size, lr_size) if source_side is None else gt_at(y, source_side),
        gt=gt_at(y, side),
        gt_mask=mask_at(gt, size, side),
        id=gt.id,
    )


def gt_at(y: Tensor, side: int) -> Tensor:
    """Reduce a (1, 3, H, H) photo to y^(n), (3, side, side), in one bicubic step."""
    return bicubic(y, side)[0]


def lr_of(y: Tensor, size: int, lr_size: int) -> Tensor:
    """Reduce a (1, 3, H, H) photo to the LR (3, L, L) by way of the full size; it would be an 8-bit file."""
    return (bicubic(bicubic(y, size), lr_size) * 255).round()[0] / 255


def full_reference(reference: Photo, size: int, mask_reference: bool) -> tuple[Tensor, Tensor]:
    """Bring a reference to full size and mask it (eq. 1).

    Returns:
        The masked reference (1, 3, size, size) and its mask (1, 1, size, size).
    """
    mask = _full_mask(reference, size)
    if not mask_reference:
        mask = torch.ones_like(mask)
    return bicubic(image_tensor(reference), size) * mask, mask


def reference_levels(
    reference: Photo, size: int, sides: Iterable[int], mask_reference: bool = True
) -> dict[int, ReferenceLevel]:
    """Bring a photo to full size, mask it (eq. 1) and halve it repeatedly.

    Args:
        reference: The photo.
        size: Full output side.
        sides: Sides S asked for.
        mask_reference: See `PairsDataset`.
    """
    image, mask = full_reference(reference, size, mask_reference)
    levels, wanted = {}, set(sides)
    while True:
        side = image.shape[-1]
        if side in wanted:
            levels[side] = ReferenceLevel(image[0], resize_mask(mask, side)[0], minimum_pool(mask, side)[0])
        if side <= min(wanted):
            return levels
        image = bicubic(image, side // 2)


def lr_as_reference(batch: ReferenceBatch, size: int) -> ReferenceBatch:
    """Put the enlarged LR in place of the reference, as `RPFModel` does without one (P Table 2).

    It is aligned already: the flow is zero, the warped reference, where there is one, the reference itself.

    Args:
        batch: A batch of a level.
        size: Full output side; the LR is enlarged to it and halved down to the level's side.
    """
    side = batch.gt.shape[-1]
    reference = bicubic(batch.lr, size)
    while reference.shape[-1] > side:
        reference = bicubic(reference, reference.shape[-1] // 2)
    everywhere = torch.ones_like(batch.reference_mask)
    return batch._replace(
        reference=reference, reference_mask=everywhere, reference_ok=everywhere,
        warped_reference=None if batch.warped_reference is None else reference,
        flow=torch.zeros_like(batch.flow), flow_known=torch.ones_like(batch.flow_known),
        reference_landmarks=batch.gt_landmarks,
    )  # fmt: skip


def mirror(sample: Record) -> Record:
    """Flip a sample or a batch horizontally, the GT and the references alike.

    A thin-plate spline through mirrored points is the mirrored spline, so nothing has to be computed anew.
    """
    values = sample._asdict()
    for name, value in values.items():
        if "landmarks" in name:
            present = value.any(-1, keepdim=True).any(-2, keepdim=True)
            values[name] = mirror_landmarks(value) * present  # absent references stay zeros
        elif isinstance(value, Tensor) and name != "flow_known":
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
    return mask_to(torch.from_numpy(photo.mask.astype(np.float32))[None, None], size)


def mask_to(mask: Tensor, size: int) -> Tensor:
    """Bring a mask (B, 1, H, H) of 0 and 1 to (B, 1, size, size) of them: enlarged as it is, or as `resize_mask`."""
    if mask.shape[-1] < size:
        return F.interpolate(mask, size=(size, size), mode="nearest")
    return resize_mask(mask, size)


def bicubic(image: Tensor, side: int) -> Tensor:
    """Resize (B, C, H, H) to (B, C, side, side) and clamp to [0, 1]."""
    return resize(image, side).clamp(0, 1)
