"""Refinement module (paper III-B-3, Fig. 6), after GCFSR: completes the synthesized image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from rpf_lightning.model.config import Activation, RPFConfig
from rpf_lightning.model.layers import (
    Activate,
    EqualizedConv2d,
    EqualizedLinear,
    ModulatedConv2d,
    act_of,
    overwritable,
)
from rpf_lightning.model.resize import at_least_fp32
from rpf_lightning.model.strips import WHOLE, Rows

Step = Callable[[Tensor], tuple[Tensor, Tensor]]
COARSEST_SIDE = 4  # "e_1 has the spatial resolution of 4x4"
LATENT = 512
CHANNELS = {128: 256, 256: 128, 512: 64, 1024: 32}  # sides up to 64 have 512


def channels_at(side: int, width: float) -> int:
    """Channels of the refinement at a side, as in GCFSR, times the width multiplier."""
    return max(1, round(CHANNELS.get(side, 512) * width))


class Downscale(nn.Module):
    """Ordinary convolution, whose output is the feature map e of its side, then a FIR stride convolution."""

    def __init__(self, in_channels: int, out_channels: int, act: Activation) -> None:
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels)
        self.stride = EqualizedConv2d(in_channels, out_channels, downsample=True)
        self.act = Activate(act)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C[s], s, s) -> e (B, C[s], s, s) and the block's output (B, C[s/2], s/2, s/2)."""
        feature = act_of(self.act, self.conv, x)
        return feature, act_of(self.act, self.stride, feature)


class FeatureModulation(nn.Module):
    """d = act(a s + b conv3x3(e)), with (a, b) = (alpha, beta) / sqrt(alpha^2 + beta^2 + 1e-8) per channel."""

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.conv = EqualizedConv2d(channels, channels)
        self.alpha = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.ones(channels))
        self.act = Activate(act)
        self.folded = False  # True: the layers before already carry a and b

    def forward(self, styled: Tensor, feature: Tensor) -> Tensor:
        """Blend s and e, both (B, C, H, H), to d (B, C, H, H)."""
        feature = self.conv(feature)
        own = feature if overwritable(feature, self.conv) else None
        if not self.folded:
            a, b = (weight[:, None, None].to(styled.dtype) for weight in self.weights())
            styled, feature = a * styled, torch.mul(b, feature, out=own)
        return self.act(torch.add(styled, feature, out=own), own is not None)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The factors a and b, (C,) each."""
        alpha, beta = at_least_fp32(self.alpha), at_least_fp32(self.beta)  # fp16 has no 1e-8
        norm = torch.rsqrt(alpha.square() + beta.square() + 1e-8)
        return alpha * norm, beta * norm


class Upscale(nn.Module):
    """Style modulation twice (one of them doubles the side) and feature modulation (Fig. 6 b, c).

    Args:
        in_channels: Channels of d_(k-1).
        out_channels: Channels of d_k, at twice the side.
        latent: Length of v_k.
        config: `skip` and `act`.
    """

    def __init__(self, in_channels: int, out_channels: int, latent: int, config: RPFConfig) -> None:
        super().__init__()
        self.literal = config.skip == "literal"
        blended = in_channels if self.literal else out_channels
        # for `Rows`: rows of the feature's side that one row depends on, and the most channels at that side
        self.halo, self.widest = (
            (2, max(in_channels, 4 * out_channels)) if self.literal else (4, out_channels)
        )
        self.up = ModulatedConv2d(in_channels, out_channels, latent, upsample=True)
        self.conv = ModulatedConv2d(blended, blended, latent)
        self.blend = FeatureModulation(blended, config.act)
        self.act = Activate(config.act)

    def forward(self, x: Tensor, feature: Tensor, latent: Tensor) -> Tensor:
        """d_(k-1) (B, in, H, H), the encoder's feature and v_k -> d_k (B, out, 2H, 2H)."""
        if self.literal:
            return act_of(self.act, self.up, self.blend(self.conv(x, latent), feature), latent)
        return self.blend(self.conv(act_of(self.act, self.up, x, latent), latent), feature)

    def fold(self, gain: float) -> None:
        """For inference: put the constants, with the activation's `gain`, into the weights."""
        a, b = self.blend.weights()
        self.up.fold(gain)
        self.conv.fold(a * gain)
        self.blend.conv.fold(b * gain)
        self.blend.folded = True


class RefinementModule(nn.Module):
    """Encoder, embedding and modulated decoder: image in, image out at the same side.

    Fed with the bicubically enlarged LR alone, at the last level, it is the GCFSR-type baseline without a
    reference. There is no noise injection, so it is deterministic.

    Args:
        config: The network's structure.
        block: n, counted from 1.
    """

    def __init__(self, config: RPFConfig, block: int) -> None:
        super().__init__()
        side, width = config.sides[block - 1], config.block_widths[block - 1]
        self.literal = config.skip == "literal"
        self.residual = config.residual
        self.fused = False
        levels = int(math.log2(side // COARSEST_SIDE))  # K
        latent = max(1, round(LATENT * width))
        sides = [side // 2**i for i in range(levels)]  # S, S/2, ..., 8
        self.first = EqualizedConv2d(3, channels_at(side, width))
        self.encoder = nn.ModuleList(
            Downscale(channels_at(s, width), channels_at(s // 2, width), config.act) for s in sides
        )
        coarse = channels_at(COARSEST_SIDE, width)
        self.embedding = nn.ModuleList(
            (
                EqualizedConv2d(coarse, coarse, downsample=True),
                EqualizedConv2d(coarse, latent, downsample=True),
            )
        )
        self.latents = nn.ModuleList(EqualizedLinear(latent, latent) for _ in range(levels))
        self.decoder = nn.ModuleList(
            Upscale(channels_at(s // 2, width), channels_at(s, width), latent, config)
            for s in reversed(sides)
        )
        self.to_rgb = EqualizedConv2d(channels_at(side, width), 3)
        self.act = Activate(config.act)
        if config.residual:
            with torch.no_grad():
                self.to_rgb.weight.mul_(0.02)  # starts close to the identity

    def forward(self, image: Tensor, rows: Rows = WHOLE) -> Tensor:
        """Refine.

        Args:
            image: (B, 3, S, S): the mean of the enlarged x^(n) and the synthesized image (paper III-B-3), or, which
                differs from the paper, the synthesized image alone (`refinement_mean` of `RPFModel`).
            rows: On whole maps or in strips.

        Returns:
            (B, 3, S, S) in at least fp32, not clamped.
        """
        x, features = image, []  # of side S, S/2, ..., 8; with the literal skip S/2, ..., 4
        again = rows.low and not self.literal  # the largest feature is computed where it is needed, twice
        for level, downscale in enumerate(cast("list[Downscale]", self.encoder)):
            step: Step = downscale if level else self._enter
            run = partial(rows, halo=4, channels=downscale.conv.weight.shape[0])
            if self.literal or (again and not level):
                feature, x = x, run(partial(_second, step), x)
            else:
                feature, x = run(step, x)
            features.append(x if self.literal else feature)
        decoder = cast("list[Upscale]", list(self.decoder))
        for upscale, latent in zip(decoder, self.latent_vectors(x), strict=True):
            last = upscale is decoder[-1]
            raised = partial(self._leave, again) if last else upscale
            run = partial(rows, halo=upscale.halo + last, channels=upscale.widest)
            x = run(partial(raised, latent=latent), x, features.pop())
        output = at_least_fp32(x)
        return output + image if self.residual else output

    def _enter(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The first feature and the encoder's features below it."""
        both: tuple[Tensor, Tensor] = self.encoder[0](act_of(self.act, self.first, image))
        return both

    def _leave(self, again: bool, x: Tensor, feature: Tensor, latent: Tensor) -> Tensor:
        """The last block and the image; `again`: `feature` is the image that the first feature is made of."""
        rgb: Tensor = self.to_rgb(self.decoder[-1](x, self._enter(feature)[0] if again else feature, latent))
        return rgb

    def latent_vectors(self, coarse: Tensor) -> list[Tensor]:
        """Embed the encoder's output (B, C[4], 4, 4): v_1, ..., v_K, each (B, latent)."""
        for conv in self.embedding:
            coarse = self.act(conv(coarse))
        embedded = coarse.flatten(1)
        return [self.act(fully_connected(embedded)) for fully_connected in self.latents]

    @torch.no_grad()
    def fuse(self) -> None:
        """For inference: fold every constant into the weights, in place; a second call changes nothing.

        The weights then fit no checkpoint: `state_dict` and `load_state_dict` raise a RuntimeError.
        """
        if self.fused:
            return
        self.fused = True
        refuse_checkpoints(self)
        gain = self.act.gain
        for module in self.modules():
            if isinstance(module, Activate):
                module.gain = 1.0
        self.first.fold(gain)
        for downscale in cast("list[Downscale]", self.encoder):
            downscale.conv.fold(gain)
            downscale.stride.fold(gain)
        for layer in cast("list[EqualizedConv2d | EqualizedLinear]", [*self.embedding, *self.latents]):
            layer.fold(gain)
        for upscale in cast("list[Upscale]", self.decoder):
            upscale.fold(gain)
        self.to_rgb.fold(1.0)


def _second(step: Step, x: Tensor) -> Tensor:
    return step(x)[1]


def refuse_checkpoints(module: nn.Module) -> None:
    """Make `state_dict` and `load_state_dict` of a fused module, or of one that holds it, raise a RuntimeError."""
    module.register_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]


def _refuse(*_: object) -> None:
    raise RuntimeError("this model is fused: its weights fit no checkpoint. Save or load before fuse()")
