"""Critic of the Wasserstein losses, after SRNTT and TTSR, continued down to 4x4."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

COARSEST_SIDE = 4


class Critic(nn.Module):
    """Pairs of 3x3 convolutions (stride 1, stride 2) down to 4x4, then two fully connected layers.

    The i-th pair has min(32 * 2^i, 512) channels; leaky ReLU 0.2; no batch norm, which would couple the
    samples that the gradient penalty treats one by one. Stopping at S/32 as TTSR does would need a fully
    connected layer of 542 M parameters at side 1024.

    Args:
        side: S of the images, a power of two of at least 8.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        channels = 3
        for i in range(int(math.log2(side // COARSEST_SIDE))):
            width = min(32 * 2**i, 512)
            convolutions += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
            ]
            channels = width
        self.convolutions = nn.ModuleList(convolutions)
        self.hidden = nn.Linear(channels * COARSEST_SIDE**2, 1024)
        self.score = nn.Linear(1024, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1), larger for images that look real; not bounded."""
        x = image
        for conv in self.convolutions:
            x = F.leaky_relu(conv(x), 0.2)
        return self.score(F.leaky_relu(self.hidden(x.flatten(1)), 0.2))
