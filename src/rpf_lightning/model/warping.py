"""Warping module (paper III-B-1, Fig. 4, eq. 2): finds where each pixel lies in the reference."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.layers import LRFeatures, centred, init_convolutions
from rpf_lightning.model.resize import at_least_fp32, full_precision

FlowUnit = Literal["relative", "pixels"]
COARSEST_SIDE = 8  # "the encoder output has the spatial resolution of 8x8"


def backward_warp(image: Tensor, flow: Tensor) -> Tensor:
    """Warp backwards, eq. 2: ``out(p) = image(p + flow(p))``, bilinear, zero outside the image.

    Coordinates are computed in fp32 (or fp64 for fp64 input) outside autocast: in bf16 they would be 4
    pixels apart at side 1024.

    Args:
        image: (B, C, S, S).
        flow: (B, 2, S, S), x and y displacement in pixels.

    Returns:
        (B, C, S, S) in at least fp32.
    """
    with full_precision(image.device):
        dtype = torch.promote_types(torch.promote_types(image.dtype, flow.dtype), torch.float32)
        height, width = image.shape[-2:]
        centre_x = torch.arange(width, device=image.device, dtype=dtype) + 0.5
        centre_y = torch.arange(height, device=image.device, dtype=dtype) + 0.5
        x = (flow[:, 0].to(dtype) + centre_x) * (2 / width) - 1
        y = (flow[:, 1].to(dtype) + centre_y[:, None]) * (2 / height) - 1
        grid = torch.stack((x, y), dim=-1)
        return F.grid_sample(image.to(dtype), grid, "bilinear", "zeros", align_corners=False)


class Downscale(nn.Module):
    """Ordinary 3x3 convolution, kept for the skip connection, then a stride-2 convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.stride = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, H) -> the features at side H and at side H/2."""
        skip = F.relu(self.conv(x))
        return skip, F.relu(self.stride(skip))


class Upscale(nn.Module):
    """One convolution and two deconvolutions; the skip joins before the second one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.merge = nn.ConvTranspose2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features at side H/2 and the skip at side H -> features at side H."""
        x = F.relu(self.up(F.relu(self.conv(x))))
        return F.relu(self.merge(torch.cat((x, skip), dim=1)))


class WarpingModule(nn.Module):
    """Estimates the flow from x^(n) to the masked reference and warps the reference by it.

    The flow head starts at zero, so an untrained module is the identity warp.

    Args:
        side: S, side of the reference and of the flow in pixels.
        in_side: Side of x^(n); S/2 in progressive reconstruction.
        channels: C, number of features.
        flow_unit: ``"relative"``: the head's output counts in S/64 pixels, so it means the same at every
            level; ``"pixels"``: in pixels.
        init: ``"kaiming"``: Kaiming for ReLU and images centred by -0.5; ``"torch"``: torch's default
            initialisation and images as they are. The paper names none.
    """

    def __init__(
        self,
        side: int,
        in_side: int,
        channels: int = 64,
        flow_unit: FlowUnit = "relative",
        init: Literal["kaiming", "torch"] = "kaiming",
    ) -> None:
        super().__init__()
        levels = int(math.log2(side // COARSEST_SIDE))
        self.flow_scale = side / 64 if flow_unit == "relative" else 1.0
        self.offset = -0.5 if init == "kaiming" else 0.0
        self.lr_features = LRFeatures(in_side, side, channels)
        self.reference_features = nn.Conv2d(3, channels, 3, padding=1)
        self.encoder = nn.ModuleList(
            Downscale(2 * channels if level == 0 else channels, channels) for level in range(levels)
        )
        self.decoder = nn.ModuleList(Upscale(channels) for _ in range(levels))
        self.flow_head = nn.Conv2d(channels if levels else 2 * channels, 2, 3, padding=1)
        if init == "kaiming":
            init_convolutions(self)
        nn.init.zeros_(self.flow_head.weight)
        nn.init.zeros_(self.flow_head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Align the reference to the input.

        Args:
            x: x^(n), (B, 3, in_side, in_side) in [0, 1].
            reference: r_hat^(n), (B, 3, S, S) in [0, 1], masked.

        Returns:
            The flow (B, 2, S, S) in pixels and the aligned reference (B, 3, S, S) in [0, 1].
        """
        features = torch.cat(
            (
                self.lr_features(centred(x, self.offset)),
                F.relu(self.reference_features(centred(reference, self.offset))),
            ),
            dim=1,
        )
        skips = []
        for block in self.encoder:
            skip, features = block(features)
            skips.append(skip)
        for block in self.decoder:
            features = block(features, skips.pop())
        with full_precision(
            features.device
        ):  # in bf16 a flow of 8 units has steps of 1/16: a pixel at side 1024
            flow = self.flow_head(features.to(self.flow_head.weight.dtype))
        flow = at_least_fp32(flow) * self.flow_scale
        return flow, backward_warp(reference, flow)
