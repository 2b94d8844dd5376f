"""GCFSR (He et al., CVPR 2022), the row of Table 1, under the key names of its published checkpoints.

Written from the checkpoints' keys and shapes, StyleGAN2's formulas and docs/method.md section 5; the published files
were not at hand. What names and shapes leave open is listed at `GCFSR`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rpf_lightning.model.layers import FIR, Activate, EqualizedConv2d, EqualizedLinear, demodulation, modulate
from rpf_lightning.model.refinement import LATENT, channels_at
from rpf_lightning.model.resize import at_least_fp32, resize

Blend = Literal["before_activation", "after_activation"]
Mix = tuple[Tensor, Tensor]  # a and b * shift: the styled feature s becomes a * s + b * shift
BASE_SIDE = 16  # the encoder stops and the decoder begins here
SIDES = (32, 64, 128, 256, 512, 1024)


class BiasActivation(nn.Module):
    """Bias, then leaky ReLU 0.2 times sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.act = Activate("leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, C, H, H)."""
        return self.act(x + self.bias[:, None, None].to(x.dtype))


def conv_layer(in_channels: int, out_channels: int, downsample: bool = False) -> nn.Sequential:
    """Equalized 3x3 convolution whose bias belongs to the activation; `downsample` is that of the convolution.

    The checkpoint numbers the FIR as a layer of its own; here the convolution holds it, and 0 is left out.
    """
    conv = EqualizedConv2d(in_channels, out_channels, downsample)
    conv.register_parameter("bias", None)
    number = 1 if downsample else 0
    return nn.Sequential(OrderedDict({str(number): conv, str(number + 1): BiasActivation(out_channels)}))


class ModulatedConv(nn.Module):
    """StyleGAN2's modulated convolution in the fast form of `layers.ModulatedConv2d`; also without demodulation.

    `latent` is the length of the latent vector. `upsample` doubles the side: transposed convolution, then the FIR;
    for a 3x3 kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        latent: int,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel, kernel))
        self.modulation = EqualizedLinear(latent, in_channels, bias=1.0)
        self.scale = 1 / math.sqrt(in_channels * kernel**2)
        self.demodulate = demodulate
        self.fir = FIR(gain=4.0, pad=1) if upsample else None

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """(B, in, H, H) and (B, latent) -> (B, out, H, H), or (B, out, 2H, 2H) with `upsample`."""
        style = self.modulation(latent)
        weight = self.weight[0] * self.scale
        x = modulate(x, weight, style, self.fir)
        if not self.demodulate:
            return x
        energy = at_least_fp32(weight).square().sum((2, 3))
        return x * demodulation(style, energy).to(x.dtype)[:, :, None, None]


class StyleConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and activation; at one layer per side with the encoder's feature.

    `blend` says where that comes in; before the activation also means before the noise.
    """

    def __init__(
        self, in_channels: int, out_channels: int, latent: int, upsample: bool, blend: Blend
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # of the noise
        self.modulated_conv = ModulatedConv(in_channels, out_channels, 3, latent, upsample=upsample)
        self.activate = BiasActivation(out_channels)
        self.blend_last = blend == "after_activation"

    def forward(self, x: Tensor, latent: Tensor, noise: bool, mix: Mix | None = None) -> Tensor:
        """(B, in, H, H) and (B, latent) -> (B, out, H', H'), H' = H, or 2H with `upsample`.

        Args:
            x: Features.
            latent: The style.
            noise: Add fresh N(0, 1) noise, one value per pixel, times `weight`.
            mix: a (B, out, 1, 1) and b * shift (B, out, H', H').
        """
        x = self.modulated_conv(x, latent)
        if mix is not None and not self.blend_last:
            x = mix[0] * x + mix[1]
        if noise:
            x = x + self.weight.to(x.dtype) * torch.randn_like(x[:, :1])
        x = self.activate(x)
        if mix is not None and self.blend_last:
            x = mix[0] * x + mix[1]
        return x


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to RGB without demodulation; adds the RGB image of half the side, enlarged."""

    def __init__(self, in_channels: int, latent: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.modulated_conv = ModulatedConv(in_channels, 3, 1, latent, demodulate=False)
        self.fir = FIR(gain=4.0, pad=2)

    def forward(self, x: Tensor, latent: Tensor, smaller: Tensor | None = None) -> Tensor:
        """(B, in, H, H), (B, latent) and (B, 3, H/2, H/2) or None -> (B, 3, H, H)."""
        rgb = self.modulated_conv(x, latent)
        rgb = rgb + self.bias.to(rgb.dtype)
        return rgb if smaller is None else rgb + self.enlarge(smaller)

    def enlarge(self, image: Tensor) -> Tensor:
        """Zeros between the pixels, then the FIR: (B, 3, H, H) -> (B, 3, 2H, 2H)."""
        batch, channels, side, _ = image.shape
        spread = image.new_zeros(batch, channels, 2 * side - 1, 2 * side - 1)
        spread[..., ::2, ::2] = image
        return self.fir(spread)


class GCFSR(nn.Module):
    """GCFSR: face super-resolution without a reference, controlled by the scale factor.

    `state_dict` has the keys and shapes of the published checkpoints (sizes 1024 and 512). They do not say
    everything. The readings taken here are NOT CHECKED against the published outputs:

    - Feature modulation happens once per side: at `style_conv1` (side 16) and at the second of the two
      `style_convs` of every other side, with the output of `conv_body_first` or `conv_body_down` of that side,
      out = a * styled + b * condition_shift(feature).
    - (a, b) = (alpha, beta) / sqrt(alpha^2 + beta^2 + 1e-8), where `condition_scale1` gives alpha and
      `condition_scale2` beta (docs/method.md section 5); `normalize` switches the division off.
    - It comes before noise, bias and activation (docs/method.md section 5): `blend`.
    - `final_conv` gives both the input of the embedding and that of the decoder.
    - Latents as in StyleGAN2: style_conv1 0, to_rgb1 1; then side by side the first convolution takes 1, 3, ...,
      the second 2, 4, ..., to-RGB 3, 5, ...
    - `final_linear` and the condition's layers have no activation, and their learning rate no multiplier.

    The stored `noises` have a quarter of the sides of the layers that they are numbered after, so no layer can
    add them; they are loaded and saved, and never read. Noise is fresh or off.

    Args:
        size: S, side of the output: 32, 64, ..., 1024.
        width: Multiplier of all channels and of the latent's length; 1 in the published checkpoints.
        blend: ``"before_activation"`` or ``"after_activation"``.
        normalize: Whether a^2 + b^2 = 1.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        size: int = 1024,
        width: float = 1.0,
        blend: Blend = "before_activation",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if size not in SIDES:
            raise ValueError(f"size: expected one of {', '.join(map(str, SIDES))}, got {size}")
        if width <= 0:
            raise ValueError(f"width: expected a positive number, got {width}")
        if blend not in ("before_activation", "after_activation"):
            raise ValueError(f"blend: expected before_activation or after_activation, got {blend!r}")
        self.size = size
        self.normalize = normalize
        steps = int(math.log2(size // BASE_SIDE))
        channels = [channels_at(size // 2**i, width) for i in range(steps + 1)]  # of side S, S/2, ..., 16
        coarse = channels[-1]
        embedded = max(1, round(256 * width))
        latent = max(1, round(LATENT * width))
        self.num_latent = 2 * steps + 2

        self.conv_body_first = conv_layer(3, channels[0])
        self.conv_body_down = nn.ModuleList(
            conv_layer(before, after, downsample=True) for before, after in pairwise(channels)
        )
        self.final_conv = conv_layer(coarse, coarse)
        self.final_down1 = conv_layer(coarse, coarse, downsample=True)
        self.final_down2 = conv_layer(coarse, embedded, downsample=True)
        self.final_linear = EqualizedLinear(embedded * 4 * 4, latent * self.num_latent)
        self.condition_scale1 = nn.ModuleList(EqualizedLinear(1, c, bias=1.0) for c in channels)
        self.condition_scale2 = nn.ModuleList(EqualizedLinear(1, c, bias=1.0) for c in channels)
        self.condition_shift = nn.ModuleList(nn.Sequential(EqualizedConv2d(c, c)) for c in channels)

        self.style_conv1 = StyleConv(coarse, coarse, latent, False, blend)
        self.to_rgb1 = ToRGB(coarse, latent)
        self.style_convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for before, after in pairwise(reversed(channels)):
            self.style_convs.append(StyleConv(before, after, latent, True, blend))
            self.style_convs.append(StyleConv(after, after, latent, False, blend))
            self.to_rgbs.append(ToRGB(after, latent))
        self.noises = nn.Module()
        for number in range(2 * steps + 1):
            side = 2 ** ((number + 5) // 2)  # 4, 8, 8, 16, 16, ...
            self.noises.register_buffer(f"noise{number}", torch.zeros(1, 1, side, side))

    def forward(self, image: Tensor, scale_factor: float | Tensor, randomize_noise: bool = False) -> Tensor:
        """Restore an enlarged image; inside, images are in [-1, 1].

        Args:
            image: (B, 3, S, S): the LR image, enlarged bicubically; RGB in [0, 1] up to the overshoot.
            scale_factor: S / L, a number or one per image (B,). The network sees it divided by S/16: by 64 at
                size 1024, by 32 at 512.
            randomize_noise: Add fresh noise at every layer. False: none, equal inputs give equal outputs.

        Returns:
            (B, 3, S, S), RGB nominally in [0, 1], in at least fp32; not clamped, for losses.

        Raises:
            ValueError: If a shape does not fit.
        """
        if image.ndim != 4 or image.shape[1:] != (3, self.size, self.size):
            expected = f"(B, 3, {self.size}, {self.size})"
            raise ValueError(f"image: expected RGB images of the shape {expected}, got {tuple(image.shape)}")
        condition = self._condition(scale_factor, image)
        x = self.conv_body_first(2 * image - 1)
        features = [x]  # of side S, S/2, ..., 16
        for down in self.conv_body_down:
            x = down(x)
            features.append(x)
        x = self.final_conv(x)
        latents = self.latent_vectors(x)

        x = self.style_conv1(x, latents[0], randomize_noise, self._mix(features, condition))
        rgb = self.to_rgb1(x, latents[1])
        for i, to_rgb in enumerate(self.to_rgbs):
            up, conv = self.style_convs[2 * i], self.style_convs[2 * i + 1]
            x = up(x, latents[2 * i + 1], randomize_noise)
            x = conv(x, latents[2 * i + 2], randomize_noise, self._mix(features, condition))
            rgb = to_rgb(x, latents[2 * i + 3], rgb)
        return (at_least_fp32(rgb) + 1) / 2

    def latent_vectors(self, coarse: Tensor) -> tuple[Tensor, ...]:
        """Embed the feature of side 16, (B, C, 16, 16): `num_latent` vectors (B, latent)."""
        embedded = self.final_down2(self.final_down1(coarse)).flatten(1)
        return cast(Tensor, self.final_linear(embedded)).chunk(self.num_latent, 1)

    @torch.no_grad()
    def super_resolve(self, lr: Tensor, randomize_noise: bool = False) -> Tensor:
        """Enlarge LR images with antialiased bicubic interpolation and restore them, without gradients.

        Args:
            lr: (B, 3, L, L), RGB in [0, 1], L at most S.
            randomize_noise: See `forward`.

        Returns:
            (B, 3, S, S) in [0, 1], clamped.

        Raises:
            ValueError: If the shape does not fit, or a value is NaN or outside [0, 1].
        """
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.shape[2] != lr.shape[3] or 0 in lr.shape:
            raise ValueError(f"lr: expected square RGB images (B, 3, L, L), got the shape {tuple(lr.shape)}")
        if lr.shape[-1] > self.size:
            raise ValueError(f"lr: expected a side of at most {self.size} pixels, got {lr.shape[-1]}")
        if not lr.is_floating_point():
            raise ValueError(f"lr: expected floating point values in [0, 1], got {lr.dtype}")
        low, high = lr.min().item(), lr.max().item()
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(f"lr: expected values in [0, 1] without NaN, got {low:.4g} .. {high:.4g}")
        image = resize(lr, self.size).to(self.final_linear.weight.dtype)
        return self(image, self.size / lr.shape[-1], randomize_noise).clamp(0, 1)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        width: float = 1.0,
        blend: Blend = "before_activation",
        normalize: bool = True,
    ) -> GCFSR:
        """Load a published checkpoint strictly, in fp32 and eval mode; the size is read from its keys.

        Args:
            path: What `torch.save` wrote: the weights themselves, or a dictionary that holds them under
                ``params_ema`` (preferred) or ``params``.
            width: See `GCFSR`.
            blend: See `GCFSR`.
            normalize: See `GCFSR`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no GCFSR checkpoint, or a weight is missing, left over, or of another shape.
        """
        state = _read_weights(Path(path))
        levels = [int(found[1]) for key in state if (found := re.match(r"to_rgbs\.(\d+)\.", key))]
        if not levels or max(levels) >= len(SIDES):
            keys = _listed(list(state)) or "none"
            raise ValueError(
                f"{path}: no GCFSR checkpoint, expected to_rgbs.0 to to_rgbs.5; its keys: {keys}"
            )
        model = cls(SIDES[max(levels)], width, blend, normalize)
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ValueError(f"{path}: does not fit GCFSR of size {model.size}: {error}") from error
        return model.eval()

    def _condition(self, scale_factor: float | Tensor, image: Tensor) -> Tensor:
        condition = torch.as_tensor(scale_factor, dtype=image.dtype, device=image.device)
        batch = image.shape[0]
        if condition.ndim > 1 or condition.numel() not in (1, batch):
            raise ValueError(
                f"scale_factor: expected a number or {batch} of them, got the shape {tuple(condition.shape)}"
            )
        return condition.reshape(-1, 1).expand(batch, 1) / (self.size / BASE_SIDE)

    def _mix(self, features: list[Tensor], condition: Tensor) -> Mix:
        feature = features.pop()
        level = len(features)
        a: Tensor = self.condition_scale1[level](condition)
        b: Tensor = self.condition_scale2[level](condition)
        if self.normalize:
            norm = torch.rsqrt(a.square() + b.square() + 1e-8)
            a, b = a * norm, b * norm
        shift = self.condition_shift[level](feature)
        a, b = (factor.to(shift.dtype)[:, :, None, None] for factor in (a, b))
        return a, b * shift


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read a file of weights alone, or of a dictionary with `params_ema` (preferred) or `params`."""
    with path.open("rb") as file:  # an error of the file system names the file
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path}: not a whole file of weights alone: {error}") from error
    for name in ("params_ema", "params"):
        if isinstance(content, Mapping) and name in content:
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of weights, got {type(content).__name__}")
    others = [str(k) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if others:
        raise ValueError(f"{path}: expected weights alone, but these are no tensors: {_listed(others)}")
    return content


def _listed(names: Sequence[str], shown: int = 8) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
