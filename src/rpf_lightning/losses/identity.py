"""Identity loss on ArcFace's features (eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rpf_lightning.faces.identity import ArcFace
from rpf_lightning.losses.optional import optional_term


class IdentityLoss(nn.Module):
    """Mean L1 of raw ArcFace features. With features of unit length a weight of 1 would be inert.

    Args:
        pack: See `ArcFace`.

    Raises:
        FileNotFoundError: If the pack is missing or incomplete: says how to get one and how to switch the term
            off.
    """

    def __init__(self, pack: str | None = None) -> None:
        super().__init__()
        with optional_term("identity_weight"):
            self.arcface = ArcFace(pack)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two batches (B, 3, S, S) of aligned faces, RGB nominally in [0, 1] -> a scalar."""
        with torch.no_grad():
            goal = self.arcface(target)
        return (self.arcface(prediction) - goal).abs().mean()
