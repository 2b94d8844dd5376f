"""Image metrics per image (P IV-C, docs/method.md section 10).

Images are RGB in [0, 1]; every prediction is clamped to that range first, nothing is rounded. Every function
returns one value per image, because the convention is the mean of the images' values: images of 20 dB and
40 dB average to 30 dB, while pooling their squared errors would give 23 dB.

PSNR of identical images is infinite, which no mean survives: squared errors have a floor of 1e-10, so 100 dB
is the highest PSNR. A metric inside the face is NaN for an empty mask; means leave such images out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from rpf_lightning.model.resize import at_least_fp32, resize

ERROR_FLOOR = 1e-10


def psnr(output: Tensor, gt: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all pixels and channels.

    Args:
        output: (B, 3, S, S), clamped to [0, 1].
        gt: (B, 3, S, S) in [0, 1].

    Returns:
        (B,) in dB, at most 100.

    Raises:
        ValueError: If the shapes differ or are not those of RGB images.
    """
    return _decibel((_clamped(output, gt) - gt).square().mean(dim=(1, 2, 3)))


def psnr_face(output: Tensor, gt: Tensor, mask: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over the pixels of the face only.

    Args:
        output: (B, 3, S, S), clamped to [0, 1].
        gt: (B, 3, S, S) in [0, 1].
        mask: (B, 1, S, S), 1 on the face and 0 elsewhere.

    Returns:
        (B,) in dB, at most 100; NaN where the mask is empty.

    Raises:
        ValueError: If the shapes do not fit.
    """
    return _decibel(_face_mean((_clamped(output, gt) - gt).square(), mask))


def ssim(output: Tensor, gt: Tensor) -> Tensor:
    """Structural similarity: Gaussian window 11, sigma 1.5, data range 1, mean over pixels and RGB channels.

    Borders are reflected, so the whole image counts.

    Args:
        output: (B, 3, S, S), clamped to [0, 1]; S of at least 6.
        gt: (B, 3, S, S) in [0, 1].

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: If the shapes differ or are not those of RGB images.
    """
    output = _clamped(output, gt)
    # GPUs may convolve floats with 10 bits of mantissa, too few for differences of squares. CPUs do not, and
    # would need 20 seconds and gigabytes for an image of 1024 pixels in double.
    precision = torch.float64 if output.is_cuda else output.dtype
    given: dict[str, Any] = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0, "reduction": "none"}
    values = [
        structural_similarity_index_measure(p[None].to(precision), g[None].to(precision), **given)
        for p, g in zip(output, gt, strict=True)  # one at a time: ten maps per image would add up
    ]
    return torch.stack([torch.as_tensor(value).reshape(()) for value in values]).to(output.dtype)


def detail_error(output: Tensor, gt: Tensor, mask: Tensor, lr_size: int) -> Tensor:
    """Mean absolute error of the details inside the face: of the part of the picture that the LR cannot hold.

    The details of an image y are ``y - up(down(y))``, bicubic reduction to `lr_size` and enlargement back.
    What the LR shows (colour, light, coarse shape) cancels; lines, marks and texture stay, which only a
    reference or a guess can supply. An output without any details scores the mean strength of the GT's own.

    Args:
        output: (B, 3, S, S), clamped to [0, 1].
        gt: (B, 3, S, S) in [0, 1].
        mask: (B, 1, S, S), 1 on the face and 0 elsewhere.
        lr_size: Side L of the LR image.

    Returns:
        (B,), 0 is best; NaN where the mask is empty.

    Raises:
        ValueError: If the shapes do not fit.
    """
    output = _clamped(output, gt)
    return _face_mean((_details(output, lr_size) - _details(gt, lr_size)).abs(), mask)


def lr_consistency(output: Tensor, lr: Tensor) -> Tensor:
    """PSNR of the prediction reduced to the LR's side against the LR: does the output still show its input?

    The LR is rounded to 8 bit and the prediction is not, so the GT itself reaches about 59 dB.

    Args:
        output: (B, 3, S, S), clamped to [0, 1] before and after the reduction.
        lr: (B, 3, L, L) in [0, 1].

    Returns:
        (B,) in dB, at most 100.

    Raises:
        ValueError: If the shapes do not fit.
    """
    return psnr(resize(output.clamp(0, 1), lr.shape[-1]), lr)


def check_pair(images: Tensor, others: Tensor) -> None:
    """Check shapes, since tensors broadcast silently."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape != others.shape:
        got = f"{tuple(images.shape)} and {tuple(others.shape)}"
        raise ValueError(f"expected two batches of one shape (B, 3, S, S), got {got}")


def _clamped(output: Tensor, gt: Tensor) -> Tensor:
    check_pair(output, gt)
    return at_least_fp32(output).clamp(0, 1)


def _face_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Average (B, 3, S, S) over the mask's pixels and the channels to (B,); 0 / 0 = NaN for an empty mask."""
    expected = (error.shape[0], 1, *error.shape[2:])
    if mask.shape != expected:
        raise ValueError(f"mask: expected the shape {expected}, got {tuple(mask.shape)}")
    mask = mask.to(error.dtype)
    return (error * mask).sum(dim=(1, 2, 3)) / (error.shape[1] * mask.sum(dim=(1, 2, 3)))


def _details(image: Tensor, lr_size: int) -> Tensor:
    return image - resize(resize(image, lr_size), image.shape[-1])


def _decibel(squared_error: Tensor) -> Tensor:
    return -10 * squared_error.clamp(min=ERROR_FLOOR).log10()
