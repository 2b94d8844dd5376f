"""Synthesis module (paper III-B-2, Fig. 5): blends the aligned reference into the face."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rpf_lightning.model.config import RPFConfig
from rpf_lightning.model.layers import (
    PairModule,
    init_convolutions,
    is_watched,
    overwritable,
    relu_of,
)
from rpf_lightning.model.reference_slots import Slots, distance
from rpf_lightning.model.resize import Resize, at_least_fp32
from rpf_lightning.model.strips import WHOLE, Maps, Rows


class ResidualBlock(nn.Module):
    """conv - ReLU - conv, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        difference = self.conv2(relu_of(self.conv1, x))
        return torch.add(x, difference, out=difference if overwritable(difference, self.conv2) else None)


class ResidualBlocks(nn.Sequential):
    """Residual blocks one after the other."""

    def forward(self, x: Tensor, rows: Rows = WHOLE) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S); in strips x is overwritten, for fresh memory takes longer."""
        spare, watched = None, any(map(is_watched, self.modules()))
        for block in self:
            made = rows(block, x, halo=2, channels=x.shape[1], into=spare)
            spare, x = None if watched else x, made
        return x


class SynthesisModule(PairModule):
    """Reconstructs the face from x^(n) and the aligned reference.

    Args:
        config: The network's structure.
        block: n, counted from 1.
    """

    def __init__(self, config: RPFConfig, block: int) -> None:
        super().__init__(config, block)
        channels, fuse = self.channels, config.synthesis_fuse
        width = channels if fuse else 2 * channels
        self.fuse = nn.Conv2d(2 * channels, channels, 3, padding=1) if fuse else None
        self.blocks = ResidualBlocks(*(ResidualBlock(width) for _ in range(4)))
        self.to_rgb = nn.Conv2d(width, 3, 3, padding=1)
        self.enlarge = Resize(self.in_side, self.side) if config.synthesis_residual else None
        if config.init == "kaiming":
            init_convolutions(self)
        if config.synthesis_residual:
            with torch.no_grad():
                self.to_rgb.weight.mul_(0.02)  # starts near the bicubic image

    def forward(self, x: Tensor, aligned: Tensor, rows: Rows = WHOLE) -> Tensor:
        """Blend.

        Args:
            x: x^(n), (B, 3, in_side, in_side) in [0, 1].
            aligned: The aligned reference, (B, 3, S, S) in [0, 1].
            rows: On whole maps or in strips.

        Returns:
            The synthesized image (B, 3, S, S), fp32, not clamped.
        """
        image = at_least_fp32(self._in_windows(self._image, x, aligned, rows))
        return image - self.offset if self.enlarge is None else image + self.enlarge(x)

    def _image(self, x: Tensor, aligned: Tensor, rows: Rows) -> Tensor:
        features = self.trunk(x, aligned, rows)
        return rows(self.to_rgb, features, halo=1, channels=features.shape[1])

    def trunk(self, x: Tensor, aligned: Tensor, rows: Rows = WHOLE) -> Tensor:
        """The features that `to_rgb` sees, (B, C, S, S), or 2C without `fuse`; arguments as in `forward`."""
        features = rows(
            self._features,
            x,
            aligned,
            halo=self.lr_features.halo + 2,
            channels=2 * self.channels,
        )
        return self.blocks(features, rows=rows)

    def _features(self, x: Tensor, aligned: Tensor) -> Tensor:
        features = self.pair_features(x, aligned)
        return features if self.fuse is None else relu_of(self.fuse, features)

    def _in_windows(self, step: Callable[..., Maps], x: Tensor, aligned: Tensor, rows: Rows) -> Maps:
        """Run what has steps of its own, so that none of the maps between them is whole."""
        return rows(
            partial(step, rows=rows),
            x,
            aligned,
            halo=self.lr_features.halo + 2 + 2 * len(self.blocks) + 1,
            channels=self.to_rgb.in_channels,
            strips=rows.window,
        )


class Synthesized(NamedTuple):
    """What a block's synthesis makes.

    Attributes:
        image: (B, 3, S, S) synthesized image, fp32, not clamped.
        gate: g, (B, 1, S, S) in [0, 1]: how much of the reference's detail is copied; None without a copy path.
        weights: w_k, (B, 1, S, S), or (B, K, 1, S, S): the references' shares in it; None without a copy path.
    """

    image: Tensor
    gate: Tensor | None = None
    weights: Tensor | None = None


class CopySynthesisModule(SynthesisModule):
    """Synthesis with a copy path and several references. Not in the paper.

    ``S = up(x) + to_rgb(F) + g * sum_k w_k ok_k H(a'_k)``, with ``F = sum_k w_k f_k`` of the features f_k that the
    trunk makes of x and of each aligned reference a_k, and the gate ``g = sigmoid(sum_k w_k l_k)`` of a head's logits.
    ``H(a') = a' - up(down(a'))`` is about the octave that x^(n) cannot hold: the blocks' copies form a Laplacian
    pyramid of the reference. ``a' = ok a + (1 - ok) up(x)``, so that the mask's edge is no detail.

    ``w_k ~ ok_k exp(l_k / T - beta d_k)``, d_k the distance between the reduced a_k and x: references are chosen, since
    averages of several high bands lose identity. Where none shows the place ok_k is left out. A sample without
    references has a = up(x) and g = 0.
    """

    def __init__(self, config: RPFConfig, block: int) -> None:
        super().__init__(config, block)
        self.temperature = config.reference_temperature
        self.reduce = Resize(self.side, self.in_side)
        self.gate = nn.Conv2d(self.to_rgb.in_channels, 1, 3, padding=1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, GATE_BIAS)  # type: ignore[arg-type]
        self.log_beta = nn.Parameter(torch.zeros(()))  # beta = 400 exp(log_beta): Adam moves it by shares

    def forward(  # type: ignore[override]
        self, x: Tensor, aligned: Tensor, slots: Slots, rows: Rows = WHOLE
    ) -> Synthesized:
        """Blend.

        Args:
            x: x^(n), (B, 3, s, s) in [0, 1].
            aligned: (R, 4, S, S) the aligned references with ok, one per row of `slots`.
            slots: Which reference of which sample each row is.
            rows: On whole maps or in strips.
        """
        assert self.enlarge is not None
        own = slots.of_samples(x)
        read = self._features_and_logits if slots.several else self._difference_and_logits
        seen, logits = self._in_windows(read, own, aligned[:, :3], rows)
        logits = at_least_fp32(logits)
        enlarged = self.enlarge(x)
        ok = aligned[:, 3:]
        filled = torch.lerp(slots.of_samples(enlarged), aligned[:, :3], ok)  # a'
        low = self.reduce(filled).clamp(0, 1)
        if slots.several:
            beta = BETA * at_least_fp32(self.log_beta).exp()
            weights = slots.softmax(logits / self.temperature - beta * distance(low, own, ok), ok)
        else:
            weights = torch.ones_like(ok)
        gate = slots.add_up(weights * logits).sigmoid() * slots.found[:, None, None, None]
        band = slots.add_up(weights * ok * (filled - self.enlarge(low)))
        if slots.several:  # the features become one before the image is made of them
            mixed = lambda weights, features: self.to_rgb(slots.add_up(weights.to(features.dtype) * features))  # noqa: E731
            seen = rows(mixed, weights, seen, halo=1, channels=seen.shape[1])
        return Synthesized(enlarged + at_least_fp32(seen) + gate * band, gate, slots.spread(weights))

    def _difference_and_logits(self, x: Tensor, aligned: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        features, logits = self._features_and_logits(x, aligned, rows)
        return rows(self.to_rgb, features, halo=1, channels=features.shape[1]), logits

    def _features_and_logits(self, x: Tensor, aligned: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        features = self.trunk(x, aligned, rows)
        return features, rows(self.gate, features, halo=1, channels=features.shape[1])


GATE_BIAS = -0.85  # g = .3 at the start
BETA = 400.0
