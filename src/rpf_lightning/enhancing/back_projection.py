"""Puts back what the photo says about a face and the model was not given or has changed."""

from __future__ import annotations

from torch import Tensor

from rpf_lightning.model.resize import resize

TIMES = 3  # each brings the result nearer to the photo


def back_project(image: Tensor, photo: Tensor, weights: float | Tensor = 1.0) -> Tensor:
    """Correct a super-resolved image by iterative back-projection (Irani and Peleg, 1991); not in the paper.

    A face of 60 pixels enters a model at 32, so the output knows only what 32 pixels hold. Reduced to the photo's
    size it differs from the photo, and the enlarged difference is added. Details finer than the photo's pixels stay.

    Args:
        image: (B, 3, H, W) in [0, 1].
        photo: (B, 3, h, w) in [0, 1], h <= H and w <= W: the same in the pixels that the photo has.
        weights: Of the correction, in [0, 1], such as (B, 1, H, W).

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    small, large = photo.shape[-2:], image.shape[-2:]
    for _ in range(TIMES):
        difference = photo - resize(image, small)
        image = (image + weights * resize(difference, large)).clamp(0, 1)
    return image
