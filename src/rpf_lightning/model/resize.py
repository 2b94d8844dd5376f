"""Resizing (docs/method.md section 2): bicubic (a = -0.5), antialiased in both directions, in fp32.

`resize` serves data, losses and metrics; `Resize` serves the network: the same numbers as two products
with constant matrices, which export to ONNX and run on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off for what needs fp32: coordinates, resizing, demodulation, penalties."""
    if device.type == "meta":  # has no autocast; used to count parameters and operations
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision of any shape -> fp32; fp32 and fp64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resize(image: Tensor, side: int | Sequence[int]) -> Tensor:
    """Resize images with antialiased bicubic interpolation, in fp32 whatever autocast says.

    Args:
        image: (B, C, H, W), floating point.
        side: Side of the result in pixels, or its height and width.

    Returns:
        (B, C, height, width) in at least fp32; not clamped, bicubic overshoots.
    """
    size = (side, side) if isinstance(side, int) else tuple(side)
    image = at_least_fp32(image)
    if image.shape[-2:] == size:
        return image
    with full_precision(image.device):
        if image.is_cuda:  # CUDA's kernel has no room for the 257 taps of a reduction by 64
            rows, columns = (
                resample_matrix(*lengths).to(image) for lengths in zip(image.shape[-2:], size, strict=True)
            )
            return rows @ image @ columns.T
        return F.interpolate(image, size=size, mode="bicubic", antialias=True)


def resize_mask(mask: Tensor, side: int) -> Tensor:
    """Reduce a binary mask by area average and threshold 0.5 (docs/method.md section 1).

    Args:
        mask: (B, 1, H, H) of 0 and 1; H is a multiple of `side`, or at most `side`.
        side: Side of the result in pixels.

    Returns:
        (B, 1, side, side) of 0 and 1 in the mask's dtype.
    """
    if mask.shape[-1] == side:
        return mask
    return (F.interpolate(mask.float(), size=(side, side), mode="area") >= 0.5).to(mask.dtype)


def minimum_pool(mask: Tensor, side: int) -> Tensor:
    """Reduce a mask so that 1 means that every pixel underneath is 1: the minimum of 2x2 windows, repeatedly.

    Args:
        mask: (B, 1, H, H); H is `side` times a power of two, or at most `side` (then enlarged with nearest).
        side: Side of the result in pixels.

    Returns:
        (B, 1, side, side) in the mask's dtype.

    Raises:
        ValueError: If H is above `side` and not that times a power of two.
    """
    height = mask.shape[-1]
    if height < side:
        return F.interpolate(mask, size=(side, side), mode="nearest")
    factor = height // side
    if height % side or factor & (factor - 1):
        raise ValueError(f"mask: expected a side of {side} times a power of two, got {height}")
    while mask.shape[-1] > side:
        mask = torch.minimum(mask[..., ::2, :], mask[..., 1::2, :])
        mask = torch.minimum(mask[..., ::2], mask[..., 1::2])
    return mask


@lru_cache(maxsize=128)
def resample_matrix(source: int, target: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """Build the (target, source) float64 matrix of 1-D antialiased bicubic resampling.

    With the whole interval it equals torch's `interpolate(mode="bicubic", antialias=True)`; with a part of
    it (fractions of the side) it crops and resizes in one step, at sub-pixel positions.

    Args:
        source: Number of source pixels.
        target: Number of target pixels.
        start: Where the first target pixel begins, as a fraction of the source.
        stop: Where the last target pixel ends, as a fraction of the source.
    """
    with torch.inference_mode(False):  # a cached inference tensor could never be trained through
        scale = (stop - start) * source / target
        stretch = max(scale, 1.0)  # the filter widens when it reduces
        centre = start * source + (torch.arange(target, dtype=torch.float64, device="cpu") + 0.5) * scale
        pixel = torch.arange(source, dtype=torch.float64, device="cpu") + 0.5
        t = ((pixel[None] - centre[:, None]) / stretch).abs()
        a = -0.5
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = a * (((t - 5) * t + 8) * t - 4)
        weight = torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
        return weight / weight.sum(1, keepdim=True)


class Resize(nn.Module):
    """`resize` between two fixed sides as two matrix products (docs/method.md section 2).

    Args:
        source: Side of the input in pixels.
        target: Side of the output in pixels.
    """

    matrix: Tensor

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        described = (
            torch.get_default_device().type == "meta"
        )  # then a large one takes neither time nor memory
        matrix = torch.empty(target, source) if described else resample_matrix(source, target).float()
        self.register_buffer("matrix", matrix, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Resize:
        """What `half`, `to` and others do; the matrix stays in at least fp32."""
        exact = self.matrix
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.matrix.dtype in HALF:
            self.matrix = exact.to(self.matrix.device, torch.float32)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Resize (B, C, source, source) to (B, C, target, target), in fp32; not clamped."""
        with full_precision(image.device):
            return self.matrix @ image.to(self.matrix.dtype) @ self.matrix.T
