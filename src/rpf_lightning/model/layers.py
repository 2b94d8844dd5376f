"""Layers that the modules share: LR features, equalized and modulated convolutions, FIR resampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.config import Activation, RPFConfig
from rpf_lightning.model.resize import full_precision


def is_traced() -> bool:
    """Whether a graph is being made of the computation, which must not depend on values."""
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def only_infers(*inputs: Tensor) -> bool:
    """Whether what is computed of these will need no gradient, and is no part of a graph that is being made."""
    return not is_traced() and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def overwritable(x: Tensor, layer: nn.Module) -> bool:
    """Whether what a layer made may be overwritten: no gradient, graph or hook of the layer needs it."""
    return not is_watched(layer) and only_infers(x)


def is_watched(layer: nn.Module) -> bool:
    """Whether a hook sees what goes into a layer or comes out, and may keep it."""
    every = nn.modules.module
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        every._global_forward_hooks,
        every._global_forward_pre_hooks,
    )
    return any(hooks)


def relu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """ReLU of what a layer makes of x; in its place where it may be overwritten, which saves time and memory."""
    x = layer(x)
    return F.relu(x, inplace=overwritable(x, layer))


def relu_beside(a: Tensor, b: Tensor) -> Tensor:
    """ReLU of both maps' channels beside each other: without gradients one pass over the memory."""
    if not only_infers(a, b):
        return F.relu(torch.cat((a, b), dim=1))
    both = a.new_empty((len(a), *a.shape[2:], a.shape[1] + b.shape[1])).permute(0, 3, 1, 2)
    for x, part in ((a, both[:, : a.shape[1]]), (b, both[:, a.shape[1] :])):
        torch.clamp_min(x, 0, out=part)
    return both


def init_convolutions(module: nn.Module) -> None:
    """Give every convolution in `module` Kaiming weights for ReLU and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = float(layer.in_channels * layer.weight[0, 0].numel())
            if isinstance(
                layer, nn.ConvTranspose2d
            ):  # with stride 2 only every second weight meets an output pixel
                fan_in /= math.prod(layer.stride)
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def lay_out(weight: nn.Parameter, order: tuple[int, ...] = (0, 2, 3, 1)) -> None:
    """Reorder a weight's values inside its own memory, so that no second model's worth of memory is ever held.

    Args:
        weight: Dense, in any layout; its shape and values stay the same.
        order: Its dimensions from the slowest to the fastest in memory; the default is channels_last.
    """
    ordered = weight.permute(order).contiguous()
    memory = weight.as_strided((weight.numel(),), (1,))
    memory.copy_(ordered.flatten())
    back = [order.index(dimension) for dimension in range(len(order))]
    weight.data = memory.view(ordered.shape).permute(back)


class LRFeatures(nn.Module):
    """Brings x^(n) to side S: convolution to 4C channels and pixel shuffle by 2, ReLU.

    When S is more than twice the input's side (no progressive reconstruction, Table 2), a 3x3 convolution to
    C channels comes first and the step is repeated until S is reached.

    Args:
        in_side: Side of the input.
        side: S.
        channels: C.
    """

    def __init__(self, in_side: int, side: int, channels: int) -> None:
        super().__init__()
        steps = int(math.log2(side // in_side))
        self.first = nn.Conv2d(3, channels, 3, padding=1) if steps > 1 else None
        self.steps = nn.ModuleList(
            nn.Conv2d(channels if steps > 1 else 3, 4 * channels, 3, padding=1) for _ in range(steps)
        )
        # rows of side S on which one depends, above and below: one of the side that a convolution sees
        self.halo = sum(2**step for step in range(1, steps + 1)) + (2**steps if steps > 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, in_side, in_side) -> (B, C, S, S)."""
        if self.first is not None:
            x = relu_of(self.first, x)
        for conv in self.steps:
            x = F.pixel_shuffle(conv(x), 2)
            x = F.relu(x, inplace=only_infers(x))
        return x


class PairModule(nn.Module):
    """What the warping and synthesis modules share: the features of x^(n) and of a reference beside each other.

    Args:
        config: The network's structure.
        block: n, counted from 1.
    """

    def __init__(self, config: RPFConfig, block: int) -> None:
        super().__init__()
        self.side, self.in_side = config.sides[block - 1], config.entry_sides[block - 1]
        self.channels = config.block_channels[block - 1]
        # zero padding means grey where images are centred
        self.offset = -0.5 if config.init == "kaiming" else 0.0
        self.lr_features = LRFeatures(self.in_side, self.side, self.channels)
        self.reference_features = nn.Conv2d(3, self.channels, 3, padding=1)

    def pair_features(self, x: Tensor, reference: Tensor) -> Tensor:
        """(B, 3, in_side, in_side) and (B, 3, S, S), both in [0, 1] -> (B, 2C, S, S)."""
        x, reference = (image + self.offset if self.offset else image for image in (x, reference))
        return relu_beside(self.lr_features(x), self.reference_features(reference))


class Activate(nn.Module):
    """Leaky ReLU 0.2 or ReLU, times sqrt(2) so that the variance of equalized layers stays 1.

    Both are positively homogeneous, so `RefinementModule.fuse` moves the factor into the layer before: it sets
    `gain` to 1.
    """

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.slope = 0.2 if act == "leaky_relu" else 0.0
        self.gain = math.sqrt(2.0)

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Any shape -> the same shape; `inplace` overwrites x, see `overwritable`."""
        inplace = inplace and not is_watched(self)
        x = F.leaky_relu(x, self.slope, inplace)
        if self.gain == 1:
            return x
        return x.mul_(self.gain) if inplace or only_infers(x) else x * self.gain


def act_of(act: Activate, layer: nn.Module, *inputs: Tensor) -> Tensor:
    """Activation of what a layer makes, like `relu_of`."""
    x = layer(*inputs)
    activated: Tensor = act(x, overwritable(x, layer))
    return activated


class FIR(nn.Module):
    """Low-pass filter (1, 3, 3, 1) x (1, 3, 3, 1) of StyleGAN2, applied to each channel.

    Args:
        gain: Factor on the result; 4 after upsampling by zero insertion.
        pad: Zeros on each side.
    """

    kernel: Tensor

    def __init__(self, gain: float, pad: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(taps, taps)
        self.register_buffer("kernel", kernel * (gain / kernel.sum()), persistent=False)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, C, H + 2 pad - 3, H + 2 pad - 3)."""
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, padding=self.pad, groups=channels)


class Equalized(nn.Module):
    """Weights with equalized learning rate: N(0, 1), scaled by 1/sqrt(fan_in) at run time.

    Args:
        shape: Of the weights, (out, in, ...).
        bias: Initial value of the bias.
    """

    def __init__(self, *shape: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.full(shape[:1], bias))
        self.scale = 1 / math.sqrt(math.prod(shape[1:]))

    def kernel(self) -> Tensor:
        """The weights at their run-time scale, (out, in, ...)."""
        return self.weight if self.scale == 1 else self.weight * self.scale


class EqualizedConv2d(Equalized):
    """3x3 convolution with equalized learning rate; `downsample` filters with the FIR and has stride 2."""

    def __init__(self, in_channels: int, out_channels: int, downsample: bool = False) -> None:
        super().__init__(out_channels, in_channels, 3, 3)
        self.fir = FIR(gain=1.0, pad=2) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, H) -> (B, out, H, H), or (B, out, H/2, H/2) with `downsample`."""
        if self.fir is not None:
            return F.conv2d(self.fir(x), self.kernel(), self.bias, stride=2)
        return F.conv2d(x, self.kernel(), self.bias, padding=1)

    @torch.no_grad()
    def fold(self, gain: float | Tensor) -> None:
        """For inference: put the scale and `gain` (a number or one per output channel) into the weights."""
        gain = torch.as_tensor(gain, dtype=self.weight.dtype, device=self.weight.device)
        self.weight.mul_((gain * self.scale).view(-1, 1, 1, 1))
        self.bias.mul_(gain)
        self.scale = 1.0


class EqualizedLinear(Equalized):
    """Fully connected layer with equalized learning rate; `bias` is the initial value."""

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0) -> None:
        super().__init__(out_features, in_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return F.linear(x, self.kernel(), self.bias)

    @torch.no_grad()
    def fold(self, gain: float) -> None:
        """For inference: put the scale and `gain` into the weights."""
        self.weight.mul_(self.scale * gain)
        self.bias.mul_(gain)
        self.scale = 1.0


def modulate(x: Tensor, kernel: Tensor, style: Tensor, fir: FIR | None) -> Tensor:
    """Scale the input's channels by a style and convolve, or with a FIR convolve upwards to twice the side.

    Args:
        x: (B, in, H, H).
        kernel: (out, in, k, k).
        style: (B, in).
        fir: Follows the transposed convolution.

    Returns:
        (B, out, H, H), or (B, out, 2H, 2H).
    """
    x = x * style.to(x.dtype)[:, :, None, None]
    if fir is not None:
        upwards: Tensor = fir(F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2))
        return upwards
    return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


def demodulation(style: Tensor, energy: Tensor) -> Tensor:
    """1 / ||style * weight|| per sample and output channel, (B, out), in the energy's precision.

    Args:
        style: (B, in).
        energy: (out, in) squares of the weights, summed over the kernel, in at least fp32.
    """
    with full_precision(style.device):
        return torch.rsqrt(style.to(energy.dtype).square() @ energy.T + 1e-8)


class ModulatedConv2d(Equalized):
    """StyleGAN2's modulated and demodulated 3x3 convolution, in the fast form, with a bias.

    The style scales the input's channels and the demodulation factor (computed in fp32) the output's, so one
    plain convolution serves any batch: equal, up to rounding, to giving each sample its own weights.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        latent: Length of v.
        upsample: Doubles the side: transposed convolution, then the FIR.
    """

    energy: Tensor | None
    gain: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, latent: int, upsample: bool = False) -> None:
        super().__init__(out_channels, in_channels, 3, 3)
        self.style = EqualizedLinear(latent, in_channels, bias=1.0)
        self.fir = FIR(gain=4.0, pad=1) if upsample else None
        self.register_buffer("energy", None, persistent=False)  # set by `fold`
        self.register_buffer("gain", None, persistent=False)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """(B, in, H, H) and v, (B, latent) -> (B, out, H, H), or (B, out, 2H, 2H) with `upsample`."""
        style, factor = self.factors(latent)
        kernel = self.kernel()
        if len(x) == 1 and kernel.numel() <= x.numel() and only_infers(x, style, factor, kernel, self.bias):
            # one sample's factors fit into the weights, which are smaller than the map
            kernel = (kernel * style[0, :, None, None] * factor.T[..., None, None]).to(x.dtype)
            if self.fir is None:
                return F.conv2d(x, kernel, self.bias, padding=1)
            raised: Tensor = self.fir(F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2))
            own = raised if overwritable(raised, self.fir) else None
            return torch.add(raised, self.bias[:, None, None].to(raised.dtype), out=own)
        x = modulate(x, kernel, style, self.fir)
        return x * factor.to(x.dtype)[:, :, None, None] + self.bias[:, None, None].to(x.dtype)

    def factors(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, latent): the factors on the input's channels (B, in) and on the output's (B, out)."""
        style = self.style(latent)
        demodulation = self.demodulation(style)
        return style, demodulation if self.gain is None else demodulation * self.gain

    def demodulation(self, style: Tensor) -> Tensor:
        """1 / ||style * weight|| per sample and output channel, (B, out), in at least fp32."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return demodulation(style, self._energy(dtype) if self.energy is None else self.energy.to(dtype))

    @torch.no_grad()
    def fold(self, gain: float | Tensor) -> None:
        """For inference: put the scale into the weights, `gain` (see `EqualizedConv2d.fold`) into the rest."""
        self.style.fold(1.0)
        self.energy = self._energy(torch.promote_types(self.weight.dtype, torch.float32))
        self.gain = torch.as_tensor(gain, dtype=self.energy.dtype, device=self.energy.device).expand(
            self.bias.shape
        )
        self.weight.mul_(self.scale)
        self.bias.mul_(self.gain.to(self.bias.dtype))
        if self.fir is not None:
            lay_out(self.weight, (1, 2, 3, 0))  # channels_last for the transposed convolution
        self.scale = 1.0

    def _energy(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.to(dtype) * self.scale).square().sum((2, 3))
