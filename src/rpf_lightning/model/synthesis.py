"""Synthesis module (paper III-B-2, Fig. 5): blends the aligned reference into the face."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.layers import LRFeatures, centred, init_convolutions
from rpf_lightning.model.resize import Resize, at_least_fp32


class ResidualBlock(nn.Module):
    """conv - ReLU - conv, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        return x + self.conv2(F.relu(self.conv1(x)))


class SynthesisModule(nn.Module):
    """Reconstructs the face from x^(n) and the aligned reference.

    Args:
        side: S, side of the output in pixels.
        in_side: Side of x^(n); S/2 in progressive reconstruction.
        channels: C, number of features.
        fuse: A convolution brings the concatenated features from 2C to C before the residual blocks.
            False runs them at 2C channels, the other reading of Fig. 5, at three times the cost.
        residual: Adds the bicubically enlarged x^(n), so that the module learns the difference. Not in
            the paper: the masked loss leaves everything outside the face free.
        init: See `WarpingModule`.
    """

    def __init__(
        self,
        side: int,
        in_side: int,
        channels: int = 64,
        fuse: bool = True,
        residual: bool = False,
        init: Literal["kaiming", "torch"] = "kaiming",
    ) -> None:
        super().__init__()
        width = channels if fuse else 2 * channels
        self.offset = -0.5 if init == "kaiming" else 0.0
        self.lr_features = LRFeatures(in_side, side, channels)
        self.reference_features = nn.Conv2d(3, channels, 3, padding=1)
        self.fuse = nn.Conv2d(2 * channels, channels, 3, padding=1) if fuse else None
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(4)))
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
        self.enlarge = Resize(in_side, side) if residual else None
        if init == "kaiming":
            init_convolutions(self)
        if residual:
            with torch.no_grad():
                self.to_rgb.weight.mul_(0.02)  # starts near the bicubic image

    def forward(self, x: Tensor, aligned: Tensor) -> Tensor:
        """Blend.

        Args:
            x: x^(n), (B, 3, in_side, in_side) in [0, 1].
            aligned: The aligned reference, (B, 3, S, S) in [0, 1].

        Returns:
            The synthesized image (B, 3, S, S), fp32, not clamped.
        """
        features = torch.cat(
            (
                self.lr_features(centred(x, self.offset)),
                F.relu(self.reference_features(centred(aligned, self.offset))),
            ),
            dim=1,
        )
        if self.fuse is not None:
            features = F.relu(self.fuse(features))
        image = self.to_rgb(self.blocks(features))
        image = at_least_fp32(image)
        return image - self.offset if self.enlarge is None else image + self.enlarge(x)
