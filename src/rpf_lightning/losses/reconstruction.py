"""L1 terms (eq. 3, 5, 7). All norms are means over elements, so weights do not depend on the level."""

from __future__ import annotations

from torch import Tensor

from rpf_lightning.model.resize import at_least_fp32


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over all elements of ``|mask * prediction - mask * target|``.

    Args:
        prediction: (B, C, S, S), not clamped.
        target: (B, C, S, S).
        mask: (B, 1, S, S) of 0 and 1; None counts every pixel.

    Returns:
        A scalar, in at least fp32.
    """
    difference = (at_least_fp32(prediction) - at_least_fp32(target)).abs()
    return difference.mean() if mask is None else (difference * mask).mean()
