"""RPF in plain eager PyTorch: the baseline of the inference benchmark.

Written as one would from the paper (Kim et al., IEEE Access 2023) and StyleGAN2's published layers without
thinking about speed: every sample gets its own modulated weights, equalized weights are scaled and filters
applied at run time, and nothing is done in place, folded or freed early. It takes nothing from the library's
forward methods but the plain `nn.Conv2d` and `nn.ConvTranspose2d`, and computes the same numbers up to rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model.layers import EqualizedConv2d, EqualizedLinear, LRFeatures, ModulatedConv2d
from rpf_lightning.model.reconstruction_block import ReconstructionBlock
from rpf_lightning.model.refinement import FeatureModulation, RefinementModule
from rpf_lightning.model.rpf import RPFModel
from rpf_lightning.model.synthesis import SynthesisModule
from rpf_lightning.model.warping import WarpingModule

# the readings of the paper that are written out here
SUPPORTED = {
    "skip": "same_resolution", "progressive": True, "synthesis_fuse": True, "flow_unit": "relative",
    "refinement_mean": True,
}  # fmt: skip


class StraightforwardRPF(nn.Module):
    """The whole network, layer by layer, with the weights of an `RPFModel`.

    The options `residual`, `synthesis_residual`, `act` and `init` follow the model; of the others, only the
    default reading is written out.

    Args:
        model: Not fused. Its parameters are shared, not copied, so a later `model.to(...)` changes them here.

    Raises:
        ValueError: If the model is fused, was built with another reading of the paper, or its weights do not
            lie in memory as (out, in, 3, 3).
    """

    kernel: Tensor

    def __init__(self, model: RPFModel) -> None:
        super().__init__()
        for option, value in SUPPORTED.items():
            if (got := getattr(model.config, option)) != value:
                raise ValueError(f"{option}: only {value!r} is supported, got {got!r}")
        _refuse_fused(model)
        if not all(parameter.is_contiguous() for parameter in model.parameters()):
            raise ValueError("model: expected contiguous weights, not channels_last")
        self.model = model
        self.residual = model.config.residual
        self.synthesis_residual = model.config.synthesis_residual
        self.slope = 0.2 if model.config.act == "leaky_relu" else 0.0
        self.offset = -0.5 if model.config.init == "kaiming" else 0.0
        taps = next(model.parameters()).new_tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps) / taps.sum() ** 2, persistent=False)

    def forward(self, lr: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
        """Super-resolve faces (paper III, Fig. 2 a).

        Args:
            lr: (B, 3, L, L) in [0, 1].
            reference: (B, 3, S, S) in [0, 1].
            mask: (B, 1, S, S), 1 on the facial region of the reference and 0 elsewhere, or None if the
                reference is masked already.

        Returns:
            (B, 3, S, S) in [0, 1].

        Raises:
            ValueError: If the model was fused since.
        """
        _refuse_fused(self.model)
        reference = reference.contiguous()
        if mask is not None:
            reference = reference * mask  # eq. 1
        pyramid = [reference]
        for side in reversed(self.model.sides[:-1]):
            pyramid.append(_resize(pyramid[-1], side).clamp(0, 1))
        x = lr.contiguous()
        for block, level in zip(self.model.blocks, reversed(pyramid), strict=True):
            x = self.reconstruct(block, x, level).clamp(0, 1)
        return x

    def reconstruct(self, block: ReconstructionBlock, x: Tensor, reference: Tensor) -> Tensor:
        """Reconstruction block, Fig. 2 (b): x^(n) (B, 3, S/2, S/2) and r_hat^(n) -> (B, 3, S, S)."""
        flow = self.flow(block.warping, x, reference)
        aligned = _warp(reference, flow)
        enlarged = _resize(x, block.side)
        synthesized = self.synthesize(block.synthesis, x, aligned, enlarged)
        return self.refine(block.refinement, (enlarged + synthesized) / 2)

    def flow(self, module: WarpingModule, x: Tensor, reference: Tensor) -> Tensor:
        """Warping module, Fig. 4: the flow from x^(n) to the reference, (B, 2, S, S) in pixels."""
        features = torch.cat(
            (self.lr_features(module.lr_features, x), self.shallow(module, reference)), dim=1
        )
        skips = []
        for down in module.encoder:
            skips.append(F.relu(down.conv(features)))
            features = F.relu(down.stride(skips[-1]))
        for up, skip in zip(module.decoder, reversed(skips), strict=True):
            features = F.relu(up.conv(features))
            features = F.relu(up.up(features))
            features = F.relu(up.merge(torch.cat((features, skip), dim=1)))
        return module.flow_head(features) * (reference.shape[-1] / 64)

    def synthesize(self, module: SynthesisModule, x: Tensor, aligned: Tensor, enlarged: Tensor) -> Tensor:
        """Synthesis module, Fig. 5: x^(n) and the aligned reference -> (B, 3, S, S)."""
        features = torch.cat((self.lr_features(module.lr_features, x), self.shallow(module, aligned)), dim=1)
        features = F.relu(module.fuse(features))
        for block in module.blocks:
            features = features + block.conv2(F.relu(block.conv1(features)))
        image = module.to_rgb(features)
        return image + enlarged if self.synthesis_residual else image - self.offset

    def lr_features(self, module: LRFeatures, x: Tensor) -> Tensor:
        """Convolution and pixel shuffle: (B, 3, S/2, S/2) -> (B, C, S, S)."""
        return F.relu(F.pixel_shuffle(module.steps[0](x + self.offset), 2))

    def shallow(self, module: WarpingModule | SynthesisModule, image: Tensor) -> Tensor:
        """First convolution of the reference: (B, 3, S, S) -> (B, C, S, S)."""
        return F.relu(module.reference_features(image + self.offset))

    def refine(self, module: RefinementModule, image: Tensor) -> Tensor:
        """Refinement module, Fig. 6: (B, 3, S, S) -> (B, 3, S, S)."""
        x = self.activate(_conv(module.first, image))
        features = []
        for down in module.encoder:
            features.append(self.activate(_conv(down.conv, x)))
            x = self.activate(self.down_conv(down.stride, features[-1]))
        embedded = x
        for conv in module.embedding:
            embedded = self.activate(self.down_conv(conv, embedded))
        embedded = embedded.flatten(1)
        for fc, up, feature in zip(module.latents, module.decoder, reversed(features), strict=True):
            latent = self.activate(_linear(fc, embedded))
            x = self.activate(self.modulated_up_conv(up.up, x, latent))
            x = _modulated_conv(up.conv, x, latent)
            x = self.activate(_blend(up.blend, x, feature))
        output = _conv(module.to_rgb, x)
        return output + image if self.residual else output

    def activate(self, x: Tensor) -> Tensor:
        """(Leaky) ReLU, then the gain of equalized layers."""
        return F.leaky_relu(x, self.slope) * math.sqrt(2)

    def low_pass(self, x: Tensor, pad: int, gain: float = 1.0) -> Tensor:
        """Filter each channel with (1, 3, 3, 1) x (1, 3, 3, 1): (B, C, H, H) -> side H + 2 pad - 3."""
        channels = x.shape[1]
        kernel = (self.kernel * gain).repeat(channels, 1, 1, 1)
        return F.conv2d(F.pad(x, (pad, pad, pad, pad)), kernel, groups=channels)

    def down_conv(self, layer: EqualizedConv2d, x: Tensor) -> Tensor:
        """FIR, then convolution with stride 2: (B, in, H, H) -> (B, out, H/2, H/2)."""
        return F.conv2d(self.low_pass(x, pad=2), _equalized(layer.weight), layer.bias, stride=2)

    def modulated_up_conv(self, layer: ModulatedConv2d, x: Tensor, latent: Tensor) -> Tensor:
        """Transposed convolution with each sample's weights, then FIR: (B, in, H, H) -> (B, out, 2H, 2H)."""
        B, C, H, W = x.shape
        weight = _modulated_weight(layer, latent).transpose(1, 2)  # (B, in, out, 3, 3)
        weight = weight.reshape(B * C, -1, 3, 3)
        x = F.conv_transpose2d(x.reshape(1, B * C, H, W), weight, stride=2, groups=B)
        x = x.reshape(B, -1, 2 * H + 1, 2 * W + 1)
        return self.low_pass(x, pad=1, gain=4.0) + layer.bias.reshape(1, -1, 1, 1)


def _refuse_fused(model: RPFModel) -> None:
    if model.fused:
        raise ValueError("model: is fused; its weights already hold the scales that are applied here")


def _equalized(weight: Tensor) -> Tensor:
    """Scale N(0, 1) weights (out, in, ...) by 1 / sqrt(fan_in)."""
    return weight * (1 / math.sqrt(weight[0].numel()))


def _conv(layer: EqualizedConv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, _equalized(layer.weight), layer.bias, padding=1)


def _linear(layer: EqualizedLinear, x: Tensor) -> Tensor:
    return F.linear(x, _equalized(layer.weight), layer.bias)


def _modulated_weight(layer: ModulatedConv2d, latent: Tensor) -> Tensor:
    """Style times weight, brought to norm 1 per sample and output channel: (B, out, in, 3, 3)."""
    style = _linear(layer.style, latent)
    weight = _equalized(layer.weight)[None] * style[:, None, :, None, None]
    demodulation = torch.rsqrt(weight.square().sum(dim=(2, 3, 4)) + 1e-8)
    return weight * demodulation[:, :, None, None, None]


def _modulated_conv(layer: ModulatedConv2d, x: Tensor, latent: Tensor) -> Tensor:
    """Grouped convolution, one group per sample: (B, in, H, H) -> (B, out, H, H)."""
    B, C, H, W = x.shape
    weight = _modulated_weight(layer, latent).reshape(-1, C, 3, 3)
    x = F.conv2d(x.reshape(1, B * C, H, W), weight, padding=1, groups=B)
    return x.reshape(B, -1, H, W) + layer.bias.reshape(1, -1, 1, 1)


def _blend(layer: FeatureModulation, styled: Tensor, feature: Tensor) -> Tensor:
    """Feature modulation before its activation: a s + b conv(e), with a^2 + b^2 = 1 per channel."""
    norm = torch.sqrt(layer.alpha.square() + layer.beta.square() + 1e-8)
    a = (layer.alpha / norm).reshape(1, -1, 1, 1)
    b = (layer.beta / norm).reshape(1, -1, 1, 1)
    return a * styled + b * _conv(layer.conv, feature)


def _resize(image: Tensor, side: int) -> Tensor:
    return F.interpolate(image, size=(side, side), mode="bicubic", antialias=True)


def _warp(image: Tensor, flow: Tensor) -> Tensor:
    """Eq. 2: out(p) = image(p + flow(p)), bilinear, zero outside; the flow is in pixels, x first."""
    side = image.shape[-1]
    centre = torch.arange(side, device=image.device, dtype=image.dtype) + 0.5
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    position = torch.stack((x, y), dim=-1) + flow.permute(0, 2, 3, 1)
    grid = 2 * position / side - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
