"""Identity loss on ArcFace's features (eq. 9)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.losses.optional import optional_term

IdentityNorm = Literal["l1", "cosine"]


class IdentityLoss(nn.Module):
    """Distance of ArcFace features.

    Args:
        pack: See `ArcFace`.
        norm: ``"l1"``: mean L1 of the raw features; with features of unit length a weight of 1 would be inert.
            ``"cosine"``, not in the paper: 1 - cos, what ISC measures, blind to the features' length.

    Raises:
        FileNotFoundError: If the pack is missing or incomplete: says how to get one and how to switch the term
            off.
        ValueError: If `norm` is another.
    """

    def __init__(self, pack: str | None = None, norm: IdentityNorm = "l1") -> None:
        super().__init__()
        if norm not in ("l1", "cosine"):
            raise ValueError(f"identity_norm: expected l1 or cosine, got {norm!r}")
        self.norm = norm
        with optional_term("identity_weight"):
            self.arcface = ArcFace(pack)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two batches (B, 3, S, S) of aligned faces, RGB nominally in [0, 1] -> a scalar."""
        with torch.no_grad():
            goal = self.arcface(target)
        features = self.arcface(prediction)
        if self.norm == "cosine":
            return (1 - F.cosine_similarity(features, goal)).mean()
        return (features - goal).abs().mean()
