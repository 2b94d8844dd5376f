"""How strongly each loss term pulls at the output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def gradient_norms(terms: Mapping[str, Tensor], at: Tensor) -> dict[str, Tensor]:
    """Norm of the first term's gradient at an image, and those of the other terms relative to it.

    Args:
        terms: Weighted scalars; their graph is kept.
        at: What they were computed from; the first one must depend on it.

    Returns:
        ``{first: norm, "<other>_relative": ratio, ...}``; all finite, also where the first norm is zero.
    """
    norms: dict[str, Tensor] = {}
    limits = torch.finfo(torch.float32)
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, at, retain_graph=True, allow_unused=len(norms) > 0)
        norms[name] = at.new_zeros(()) if gradient is None else gradient.float().norm()
    first, *others = norms
    unit = norms[first].clamp_min(limits.tiny)
    relative = {f"{name}_relative": (norms[name] / unit).clamp_max(limits.max) for name in others}
    return {first: norms[first], **relative}
