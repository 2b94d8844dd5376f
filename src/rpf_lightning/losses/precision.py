"""Precision of the losses: scores and images may be bf16, means over thousands of elements must not be."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision of any shape -> fp32; fp32 and fp64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
