"""Warping module (paper III-B-1, Fig. 4, eq. 2): finds where each pixel lies in the reference."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.config import RPFConfig
from rpf_lightning.model.layers import PairModule, init_convolutions, relu_beside, relu_of
from rpf_lightning.model.resize import HALF, Resize, at_least_fp32, full_precision
from rpf_lightning.model.strips import WHOLE, Rows

COARSEST_SIDE = 8  # "the encoder output has the spatial resolution of 8x8"


def backward_warp(image: Tensor, flow: Tensor, padding: Literal["zeros", "border"] = "zeros") -> Tensor:
    """Warp backwards, eq. 2: ``out(p) = image(p + flow(p))``, bilinear.

    Coordinates are computed in fp32 (or fp64 for fp64 input) outside autocast: in bf16 they would be 4
    pixels apart at side 1024.

    Args:
        image: (B, C, S, S).
        flow: (B, 2, S, S), x and y displacement in pixels.
        padding: What lies outside the image: ``"zeros"``, or its ``"border"`` repeated.

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
        return F.grid_sample(image.to(dtype), grid, "bilinear", padding, align_corners=False)


class Downscale(nn.Module):
    """Ordinary 3x3 convolution, kept for the skip connection, then a stride-2 convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.stride = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, H) -> the features at side H and at side H/2."""
        skip = relu_of(self.conv, x)
        return skip, relu_of(self.stride, skip)


class Upscale(nn.Module):
    """One convolution and two deconvolutions; the skip joins before the second one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.merge = nn.ConvTranspose2d(2 * channels, channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features at side H/2 and the skip at side H -> features at side H."""
        x = relu_beside(self.up(relu_of(self.conv, x)), skip)
        return relu_of(self.merge, x)


class WarpingModule(PairModule):
    """Estimates the flow from x^(n) to the masked reference and warps the reference by it.

    The flow head starts at zero, so an untrained module is the identity warp.

    Args:
        config: The network's structure.
        block: n, counted from 1.
    """

    def __init__(self, config: RPFConfig, block: int) -> None:
        super().__init__(config, block)
        channels = self.channels
        levels = int(math.log2(self.side // COARSEST_SIDE))
        self.flow_scale = self.side / 64 if config.flow_unit == "relative" else 1.0
        self.encoder = nn.ModuleList(
            Downscale(2 * channels if level == 0 else channels, channels) for level in range(levels)
        )
        self.decoder = nn.ModuleList(Upscale(channels) for _ in range(levels))
        self.flow_head = nn.Conv2d(channels if levels else 2 * channels, 2, 3, padding=1)
        if config.init == "kaiming":
            init_convolutions(self)
        self.enlarge = Resize(self.in_side, self.side) if config.chains_flow else None
        nn.init.zeros_(self.flow_head.weight)
        nn.init.zeros_(self.flow_head.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        reference: Tensor,
        previous: Tensor | None = None,
        rows: Rows = WHOLE,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Align the reference to the input.

        With ``flow_from="previous"`` the flow is ``u(p) = v(p) + u_up(p + v(p))``: u_up is the flow of the block
        before, brought to this side, and v what this module adds, seeing the reference aligned by u_up. The reference
        itself is sampled once, with u: sampled twice it would lose the octave that the copy path takes from it.

        Args:
            x: x^(n), (B, 3, in_side, in_side) in [0, 1].
            reference: r_hat^(n), (B, 3, S, S) in [0, 1], masked; further channels are warped along.
            previous: The flow of the block before, (B, 2, in_side, in_side) in its pixels. None: zero. Not read
                without `flow_from`.
            rows: On whole maps or in strips.
            present: (B,) of bool; the flow of a reference that is absent is zero. None: all are there.

        Returns:
            The flow (B, 2, S, S) in pixels and the aligned reference, as many channels as the reference has.
        """
        seen, coarse = reference[:, :3], None
        if self.enlarge is not None and previous is not None:
            with full_precision(previous.device):
                coarse = self.enlarge(previous) * (seen.shape[-1] / previous.shape[-1])
            seen = backward_warp(seen, coarse)
        flow = self._estimate(x, seen, rows)
        flow = at_least_fp32(flow) * self.flow_scale
        if coarse is not None:
            flow = flow + backward_warp(coarse, flow, "border")  # zeros would bend a constant flow at the rim
        if present is not None:
            flow = torch.where(present[:, None, None, None], flow, 0.0)
        return flow, backward_warp(reference, flow)

    def _estimate(self, x: Tensor, seen: Tensor, rows: Rows) -> Tensor:
        """The flow head's output."""
        halo, channels = self.lr_features.halo, self.channels
        if not self.encoder:
            return rows(
                lambda *images: self._head(self.pair_features(*images)),
                x,
                seen,
                halo=halo + 1,
                channels=2 * channels,
            )
        skips, features = list[tuple[Tensor, ...]](), x
        for level, block in enumerate(self.encoder):
            if level:
                skip, features = rows(block, features, halo=2, channels=channels)
                skips.append((skip,))
            elif rows.low:  # its skip is the largest map: computed again where it is needed
                features = rows(
                    lambda *images: self._enter(*images)[1], x, seen, halo=halo + 2, channels=2 * channels
                )
                skips.append((x, seen))
            else:
                skip, features = rows(self._enter, x, seen, halo=halo + 2, channels=2 * channels)
                skips.append((skip,))
        for level, block in enumerate(self.decoder, start=1):
            if level < len(self.decoder):
                features = rows(block, features, *skips.pop(), halo=4, channels=2 * channels)
        return rows(self._leave, features, *skips.pop(), halo=max(6, 3 + halo), channels=2 * channels)

    def _enter(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The first skip and the features below it."""
        both: tuple[Tensor, Tensor] = self.encoder[0](self.pair_features(x, seen))
        return both

    def _leave(self, features: Tensor, *skip: Tensor) -> Tensor:
        """The last block, from the first skip or what it is made of, and the flow head."""
        return self._head(self.decoder[-1](features, skip[0] if len(skip) == 1 else self._enter(*skip)[0]))

    def _head(self, features: Tensor) -> Tensor:
        # in bf16 a flow of 8 units has steps of 1/16: a pixel at side 1024
        with full_precision(features.device):
            if self.flow_head.weight.dtype not in HALF:
                flow: Tensor = self.flow_head(features.to(self.flow_head.weight.dtype))
                return flow
            weight, bias = self.flow_head.weight.float(), self.flow_head.bias.float()  # type: ignore[union-attr]
            return F.conv2d(features.float(), weight, bias, padding=1)
