"""Random changes of a reference in training: its colour, and where its pixels are.

A warped reference is sampled at twice the level's side and then halved, as the pyramid is, so that it is as sharp as
one that was not warped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.data.sample import ReferenceLevel, bicubic
from rpf_lightning.model.resize import minimum_pool, resize_mask

OWN_SIMILARITY = 0.05  # strength of the GT's own warp, see `Warp.similarity`
WAVES, AMPLITUDE, FREQUENCY = 3, 0.01, 1.5  # of its displacement: fractions of the side, periods per side
ROUNDS = 10  # of the inversion, each at least three times as exact


class Warp(NamedTuple):
    """An invertible map of the plane: where each point of a warped reference is taken from.

    q -> centre + matrix (q - centre) + shift + sum_i amplitude_i sin(2 pi frequency_i q + phase_i), in fractions of
    the side.
    """

    centre: Tensor
    matrix: Tensor
    shift: Tensor
    amplitude: Tensor
    frequency: Tensor
    phase: Tensor

    @classmethod
    def similarity(
        cls, rng: np.random.Generator, strength: float, centre: NDArray[np.float64], waves: int = 0
    ) -> Warp:
        """Draw a similarity about a face's centre.

        Args:
            rng: Draws.
            strength: s: rotation within +-s radians, scale within e^-s .. e^s, shift within +-s/2 of the side.
            centre: (2,) x and y.
            waves: Number of waves on top.
        """
        angle, scale = rng.uniform(-strength, strength, 2)
        a, b = math.exp(scale) * math.cos(angle), math.exp(scale) * math.sin(angle)
        return cls(
            torch.from_numpy(centre),
            torch.tensor([[a, -b], [b, a]], dtype=torch.float64),
            torch.from_numpy(rng.uniform(-strength / 2, strength / 2, 2)),
            torch.from_numpy(rng.uniform(-AMPLITUDE, AMPLITUDE, (waves, 2))),
            torch.from_numpy(rng.uniform(-FREQUENCY, FREQUENCY, (waves, 2))),
            torch.from_numpy(rng.uniform(0, 2 * math.pi, waves)),
        )

    @classmethod
    def smooth(cls, rng: np.random.Generator, centre: NDArray[np.float64]) -> Warp:
        """Draw the warp of a GT that is its own reference: a similarity and a displacement of a few waves."""
        return cls.similarity(rng, OWN_SIMILARITY, centre, WAVES)

    def __call__(self, points: Tensor) -> Tensor:
        """Map (..., 2) points."""
        warp = self._to(points.dtype)
        return warp.centre + (points - warp.centre) @ warp.matrix.T + warp.shift + warp._waves(points)

    def inverse(self, points: Tensor) -> Tensor:
        """Map (..., 2) points back, to 1e-6."""
        warp = self._to(points.dtype)
        back = torch.linalg.inv(warp.matrix).T
        start = points - warp.centre - warp.shift
        found = warp.centre + start @ back
        for _ in range(ROUNDS if len(warp.phase) else 0):
            found = warp.centre + (start - warp._waves(found)) @ back
        return found

    def _to(self, dtype: torch.dtype) -> Warp:
        return Warp(*(value.to(dtype) for value in self))

    def _waves(self, points: Tensor) -> Tensor:
        return torch.sin(points @ (2 * math.pi * self.frequency).T + self.phase) @ self.amplitude


def inverse_flow(warp: Warp, side: int) -> Tensor:
    """Return the flow (2, S, S), in pixels of S, with which the warped image is sampled to get the original back."""
    grid = _centres(side)
    return ((warp.inverse(grid) - grid) * side).permute(2, 0, 1).float().contiguous()


def resample(level: ReferenceLevel, side: int, warp: Warp) -> ReferenceLevel:
    """Warp a reference and reduce it to (..., S, S).

    Args:
        level: At side 2S, or at S where there is none.
        side: S.
        warp: Where the pixels are taken from; outside the image they are masked.

    Returns:
        The warped reference; `ok` is 1 only where all the pixels that were averaged were ok.
    """
    grid = (2 * warp(_centres(level.image.shape[-1])) - 1)[None]
    image = F.grid_sample(level.image[None], grid, "bicubic", "zeros", align_corners=False).clamp(0, 1)
    masks = F.grid_sample(
        torch.stack([level.mask[0], level.ok[0]])[None], grid, "bilinear", "zeros", align_corners=False
    )
    mask, ok = masks[:, :1] >= 0.5, masks[:, 1:] > 0.999
    return ReferenceLevel(
        bicubic(image, side)[0], resize_mask(mask.float(), side)[0], minimum_pool(ok.float(), side)[0]
    )


class Colour(NamedTuple):
    """x -> gain x^gamma + bias, per channel; (3, 1, 1) each."""

    gain: Tensor
    bias: Tensor
    gamma: Tensor

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: float) -> Colour:
        """Draw a change of colour.

        Args:
            rng: Draws.
            strength: s: gain and gamma within e^-s .. e^s, bias within +-s/4, each channel for itself.
        """
        gain, bias, gamma = torch.from_numpy(rng.uniform(-strength, strength, (3, 3, 1, 1))).float()
        return cls(gain.exp(), bias / 4, gamma.exp())

    def __call__(self, image: Tensor, mask: Tensor) -> Tensor:
        """Change (3, S, S) in [0, 1] and clamp it to that; what is 0 outside the (1, S, S) mask stays 0."""
        return (self.gain * image**self.gamma + self.bias * mask).clamp(0, 1)


def _centres(side: int) -> Tensor:
    """Return the pixels' centres as (S, S, 2) fractions of the side."""
    centre = (torch.arange(side) + 0.5) / side
    return torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1)
