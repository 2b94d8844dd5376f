"""Identity loss on ArcFace's features (eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rpf_lightning.faces.identity import ArcFace


class IdentityLoss(nn.Module):
    """Mean L1 of raw ArcFace features. With features of unit length a weight of 1 would be inert.

    Args:
        pack: See `ArcFace`.
    """

    def __init__(self, pack: str | None = None) -> None:
        super().__init__()
        self.arcface = ArcFace(pack)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two batches (B, 3, S, S) of aligned faces, RGB nominally in [0, 1] -> a scalar."""
        with torch.no_grad():
            goal = self.arcface(target)
        return (self.arcface(prediction) - goal).abs().mean()
