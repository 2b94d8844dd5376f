"""The critics: SRNTT's and TTSR's, continued down to 4x4, for the Wasserstein losses; StyleGAN2's, for R1."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.layers import FIR, Activate, Equalized, EqualizedConv2d, EqualizedLinear
from rpf_lightning.model.refinement import COARSEST_SIDE, channels_at
from rpf_lightning.model.resize import at_least_fp32, full_precision

STD_GROUP = 4  # most samples that share a minibatch standard deviation


class Critic(nn.Module):
    """Pairs of 3x3 convolutions (stride 1, stride 2) down to 4x4, then two fully connected layers.

    The i-th pair has min(32 * 2^i, 512) channels; leaky ReLU 0.2; no batch norm, which would couple the
    samples that the gradient penalty treats one by one. Stopping at S/32 as TTSR does would take
    542 M parameters at side 1024, 537 M of them in a fully connected layer.

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
            x = _leaky_relu(conv(x))
        return self.score(_leaky_relu(self.hidden(x.flatten(1))))


def _leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU 0.2 as a product with constant slopes.

    The penalty differentiates the critic's gradient once more. How that gradient depends on the slopes' places
    is zero everywhere, but autograd would carry the zeros through the whole critic: a third of the penalty's FLOP.
    """
    with torch.no_grad():
        slopes = torch.where(x > 0, x.new_ones(()), x.new_full((), 0.2))
    return x * slopes


class Pointwise(Equalized):
    """1x1 convolution with equalized learning rate; `downsample` filters with the FIR and keeps every second pixel."""

    def __init__(
        self, in_channels: int, out_channels: int, bias: bool = True, downsample: bool = False
    ) -> None:
        super().__init__(out_channels, in_channels, 1, 1)
        if not bias:
            self.register_parameter("bias", None)
        self.fir = FIR(gain=1.0, pad=1) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, H) -> (B, out, H, H), or (B, out, H/2, H/2) with `downsample`."""
        if self.fir is not None:
            x = self.fir(x)[..., ::2, ::2]
        return F.conv2d(x, self.kernel(), self.bias)


class ResidualDown(nn.Module):
    """StyleGAN2's residual block: convolution and stride convolution beside a linear way, (x + y) / sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels)
        self.stride = EqualizedConv2d(in_channels, out_channels, downsample=True)
        self.skip = Pointwise(in_channels, out_channels, bias=False, downsample=True)
        self.act = Activate("leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, H) -> (B, out, H/2, H/2)."""
        y = self.act(self.stride(self.act(self.conv(x))))
        return (y + self.skip(x)) / math.sqrt(2)


def minibatch_std(x: Tensor) -> Tensor:
    """Append how much the samples of a group differ, as a constant channel: collapsed generators show there.

    The batch is cut into groups of nearly equal size, at most 4; only a batch of 1 has a group of 1, whose
    feature is that of equal images, 1e-4. Batches of a multiple of 4 have StyleGAN2's groups of 4.

    Args:
        x: (B, C, H, H).

    Returns:
        (B, C + 1, H, H); the last channel is the mean over C, H, H of the group's standard deviation, taken in
        at least fp32.
    """
    features = []
    with full_precision(x.device):
        for group in x.tensor_split(math.ceil(len(x) / STD_GROUP)):
            group = at_least_fp32(group)
            # the root alone has no derivative where all samples are equal
            std = (group.var(0, correction=0) + 1e-8).sqrt().mean()
            features.append(std.to(x.dtype).expand(len(group), 1, *x.shape[2:]))
    return torch.cat([x, torch.cat(features)], 1)


class StyleGAN2Critic(nn.Module):
    """StyleGAN2's discriminator as GCFSR uses it, for the logistic losses with the R1 penalty.

    From RGB to C[S] channels by a 1x1 convolution, residual blocks down to 4x4, minibatch standard deviation,
    3x3 convolution, two fully connected layers; equalized learning rate, leaky ReLU 0.2 times sqrt(2), no
    activation on the ways around the blocks. The channels are `RefinementModule`'s. Differs from the paper,
    whose critic is `Critic`.

    Args:
        side: S of the images, a power of two of at least 8.
        width: Multiplier of all channels.
    """

    def __init__(self, side: int, width: float = 1.0) -> None:
        super().__init__()
        sides = [side // 2**i for i in range(int(math.log2(side // COARSEST_SIDE)) + 1)]
        channels = [channels_at(s, width) for s in sides]
        last = channels[-1]
        self.from_rgb = Pointwise(3, channels[0])
        self.blocks = nn.ModuleList(ResidualDown(before, after) for before, after in pairwise(channels))
        self.conv = EqualizedConv2d(last + 1, last)
        self.hidden = EqualizedLinear(last * COARSEST_SIDE**2, last)
        self.score = EqualizedLinear(last, 1)
        self.act = Activate("leaky_relu")

    def forward(self, image: Tensor) -> Tensor:
        """Score images; the score depends on the others of the batch through the minibatch std.

        Args:
            image: (B, 3, S, S), RGB nominally in [0, 1]. Equalized layers want a mean near 0, so it is brought
                to [-1, 1] here. R1 is taken for [0, 1], where gradients are twice as large: gamma is a quarter
                of the one for images in [-1, 1].

        Returns:
            (B, 1), larger for images that look real; not bounded.
        """
        x = self.act(self.from_rgb(2 * image - 1))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.conv(minibatch_std(x)))
        return self.score(self.act(self.hidden(x.flatten(1))))
