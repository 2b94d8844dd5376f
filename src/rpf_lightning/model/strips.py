"""Inference in strips: the modules' computations, a few rows of the feature maps at a time.

A 64-channel map of side 1024 has 268 MB. Handing out that much fresh memory for every layer costs a CPU time (how
much: `benchmarks/RESULTS.md`), and several such maps exceed a small memory. Here a map is a `Map`: a function that
computes the rows it is asked for, with the rows above and below that they depend on. Only what is worth keeping is
stored whole. The outputs equal, up to rounding, those of the modules' own `forward`, which training uses and whose
hooks do not see strips.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.model import refinement, warping
from rpf_lightning.model.layers import FIR, Activate, EqualizedConv2d, LRFeatures, ModulatedConv2d, centred
from rpf_lightning.model.resize import at_least_fp32
from rpf_lightning.model.synthesis import ResidualBlock, SynthesisModule

STRIP_BYTES = 16 * 2**20  # of the widest map in a strip: half of what the C library keeps when it is freed


def release() -> None:
    """Give the system back what the C library keeps of freed strips, which would add up to hundreds of MB.

    Only glibc needs to be told, and only there it does anything.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Map(NamedTuple):
    """A feature map that is computed where it is asked for.

    Attributes:
        rows: ``rows(first, stop)`` returns these rows, (B, C, stop - first, W); 0 <= first < stop <= height.
        height: Its number of rows.
        width: Its number of columns.
        cost: Largest number of values per row and sample that computing it takes.
    """

    rows: Callable[[int, int], Tensor]
    height: int
    width: int
    cost: int


def stored(x: Tensor) -> Map:
    """Wrap a whole map, (B, C, H, W)."""
    return Map(lambda first, stop: x[:, :, first:stop], x.shape[2], x.shape[3], 0)


def whole(source: Map, batch: int) -> Tensor:
    """Compute a map in strips and return all of it, (B, C, H, W)."""
    strips = -(-source.height * source.cost * batch * 4 // STRIP_BYTES)
    if strips <= 1:
        return source.rows(0, source.height)
    step = -(-source.height // strips)
    result = None
    for first in range(0, source.height, step):
        stop = min(first + step, source.height)
        strip = source.rows(first, stop)
        if result is None:
            result = torch.empty(
                (batch, strip.shape[1], source.height, source.width),
                dtype=strip.dtype,
                device=strip.device,
                memory_format=torch.channels_last,
            )
        result[:, :, first:stop] = strip
        del strip
    assert result is not None
    if result.device.type == "cpu":
        release()
    return result


def convolve(
    source: Map, weight: Tensor, bias: Tensor | None, stride: int = 1, pad: int = 1, groups: int = 1
) -> Map:
    """`conv2d` with a square kernel (out, in / groups, k, k)."""
    kernel = weight.shape[-1]
    height, width = ((length + 2 * pad - kernel) // stride + 1 for length in source[1:3])

    def rows(first: int, stop: int) -> Tensor:
        if first == 0 and stop == height:
            return F.conv2d(source.rows(0, source.height), weight, bias, stride, pad, 1, groups)
        low, high = first * stride - pad, (stop - 1) * stride - pad + kernel
        above, below = max(-low, 0), max(high - source.height, 0)
        x = source.rows(low + above, high - below)
        if above or below:
            x = F.pad(x, (0, 0, above, below))
        return F.conv2d(x, weight, bias, stride, (0, pad), 1, groups)

    return Map(rows, height, width, max(source.cost * stride, weight.shape[0] * width))


def deconvolve(source: Map, weight: Tensor, bias: Tensor | None, stride: int, pad: int) -> Map:
    """`conv_transpose2d` with a square kernel (in, out, k, k)."""
    kernel = weight.shape[-1]

    def rows(first: int, stop: int) -> Tensor:
        # row i of the source reaches the rows i * stride - pad + 0 .. kernel - 1
        low = max(-((kernel - 1 - pad - first) // stride), 0)
        high = min((stop - 1 + pad) // stride + 1, source.height)
        x = F.conv_transpose2d(source.rows(low, high), weight, bias, stride, (0, pad))
        start = first - (low * stride - pad)
        return x[:, :, start : start + stop - first]

    height, width = ((length - 1) * stride - 2 * pad + kernel for length in source[1:3])
    return Map(rows, height, width, max(source.cost // stride, weight.shape[1] * width))


def each(source: Map, function: Callable[[Tensor], Tensor]) -> Map:
    """A function of each value; one that overwrites its argument must not meet a `stored` map."""
    return source._replace(rows=lambda first, stop: function(source.rows(first, stop)))


def relu(source: Map) -> Map:
    """ReLU, in place."""
    return each(source, torch.relu_)


def activate(source: Map, act: Activate) -> Map:
    """The refinement's activation, in place."""
    return each(source, lambda x: act(x, inplace=True))


def add(a: Map, b: Map) -> Map:
    """The sum, in a's place."""
    rows = lambda first, stop: a.rows(first, stop).add_(b.rows(first, stop))  # noqa: E731
    return a._replace(rows=rows, cost=max(a.cost, b.cost))


def concatenate_relu(a: Map, b: Map, channels: int) -> Map:
    """Both maps' channels beside each other, `channels` together, and ReLU: one pass over the memory."""

    def rows(first: int, stop: int) -> Tensor:
        result = None
        for source, part in ((a, slice(None, channels // 2)), (b, slice(channels // 2, None))):
            x = source.rows(first, stop)
            if result is None:
                result = x.new_empty((len(x), stop - first, a.width, channels)).permute(0, 3, 1, 2)
            torch.clamp_min(x, 0, out=result[:, part])
        assert result is not None
        return result

    return Map(rows, a.height, a.width, max(a.cost, b.cost, channels * a.width))


def shuffle(source: Map) -> Map:
    """Pixel shuffle by 2."""

    def rows(first: int, stop: int) -> Tensor:
        low = first // 2
        x = F.pixel_shuffle(source.rows(low, (stop + 1) // 2), 2)
        return x[:, :, first - 2 * low : stop - 2 * low]

    return Map(rows, 2 * source.height, 2 * source.width, -(-source.cost // 2))


def window(source: Map, first: int, stop: int) -> Map:
    """Compute some rows now, to be asked for more than once; no other rows may be asked for."""
    x = source.rows(first, stop)
    return source._replace(rows=lambda low, high: x[:, :, low - first : high - first], cost=0)


def warp(
    module: warping.WarpingModule, x: Tensor, reference: Tensor, low_memory: bool
) -> tuple[Tensor, Tensor]:
    """`WarpingModule.forward`; with `low_memory` the largest skip is computed twice instead of kept."""
    batch = len(x)
    features = _features(module, x, reference)
    skips = []
    for level, down in enumerate(cast("list[warping.Downscale]", module.encoder)):
        skip = relu(_conv(features, down.conv))
        if level or not low_memory:
            skip = stored(whole(skip, batch))
        skips.append(skip)
        features = stored(whole(relu(_conv(skip, down.stride)), batch))
    for up in cast("list[warping.Upscale]", module.decoder):
        features = _deconv(relu(_conv(features, up.conv)), up.up)
        features = concatenate_relu(features, skips.pop(), up.merge.in_channels)
        features = relu(_deconv(features, up.merge))
        if skips:
            features = stored(whole(features, batch))
    flow = whole(_conv(features, module.flow_head), batch)
    flow = at_least_fp32(flow) * module.flow_scale
    return flow, warping.backward_warp(reference, flow)


def synthesize(module: SynthesisModule, x: Tensor, aligned: Tensor) -> Tensor:
    """`SynthesisModule.forward`."""
    features = _features(module, x, aligned)
    if module.fuse is not None:
        features = relu(_conv(features, module.fuse))
    for block in cast("list[ResidualBlock]", module.blocks):
        features = _residual(features, block)
    image = whole(_conv(features, module.to_rgb), len(x))
    image = at_least_fp32(image)
    return image - module.offset if module.enlarge is None else image + module.enlarge(x)


def refine(module: refinement.RefinementModule, image: Tensor, low_memory: bool) -> Tensor:
    """`RefinementModule.forward`; with `low_memory` the largest feature is computed twice instead of kept."""
    batch = len(image)
    x = activate(_equalized(stored(_channels_last(image)), module.first), module.act)
    features = []
    for level, down in enumerate(cast("list[refinement.Downscale]", module.encoder)):
        feature = activate(_equalized(x, down.conv), down.act)
        if not module.literal and (level or not low_memory):
            feature = stored(whole(feature, batch))
        coarse = whole(activate(_equalized(feature, down.stride), down.act), batch)
        x = stored(coarse)
        features.append(x if module.literal else feature)
    decoder = cast("list[refinement.Upscale]", module.decoder)
    for up, latent in zip(decoder, module.latent_vectors(coarse), strict=True):
        x = _upscale(x, up, latent, features.pop())
        if features:
            x = stored(whole(x, batch))
    output = whole(_equalized(x, module.to_rgb), batch)
    output = at_least_fp32(output)
    return output + image if module.residual else output


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _conv(source: Map, layer: nn.Conv2d) -> Map:
    return convolve(source, layer.weight, layer.bias, layer.stride[0])


def _deconv(source: Map, layer: nn.ConvTranspose2d) -> Map:
    return deconvolve(source, layer.weight, layer.bias, layer.stride[0], pad=1)


def _features(module: warping.WarpingModule | SynthesisModule, x: Tensor, reference: Tensor) -> Map:
    image = stored(_channels_last(centred(reference, module.offset)))
    b = _conv(image, module.reference_features)
    a = _lr_features(module.lr_features, centred(x, module.offset))
    return concatenate_relu(a, b, 2 * module.reference_features.out_channels)


def _lr_features(module: LRFeatures, x: Tensor) -> Map:
    """`LRFeatures.forward` but for the last ReLU."""
    source = stored(_channels_last(x))
    if module.first is not None:
        source = relu(_conv(source, module.first))
    for index, conv in enumerate(cast("list[nn.Conv2d]", module.steps)):
        source = shuffle(_conv(source, conv))
        if index < len(module.steps) - 1:
            source = stored(whole(relu(source), len(x)))
    return source


def _residual(source: Map, block: ResidualBlock) -> Map:
    def rows(first: int, stop: int) -> Tensor:
        kept = window(source, max(first - 2, 0), min(stop + 2, source.height))
        branch = _conv(relu(_conv(kept, block.conv1)), block.conv2)
        return branch.rows(first, stop).add_(kept.rows(first, stop))

    return source._replace(rows=rows)


def _equalized(source: Map, layer: EqualizedConv2d) -> Map:
    if layer.fir is None:
        return convolve(source, layer.kernel(), layer.bias)
    source = _fir(source, layer.fir, layer.weight.shape[1])
    return convolve(source, layer.kernel(), layer.bias, stride=2, pad=0)


def _fir(source: Map, fir: FIR, channels: int) -> Map:
    kernel = fir.kernel.expand(channels, 1, 4, 4).contiguous()
    return convolve(source, kernel, None, pad=fir.pad, groups=channels)


def _upscale(source: Map, block: refinement.Upscale, latent: Tensor, feature: Map) -> Map:
    if block.literal:
        blended = _blend(block.blend, _modulated(source, block.conv, latent), feature)
        return activate(_modulated(blended, block.up, latent), block.act)
    x = activate(_modulated(source, block.up, latent), block.act)
    return _blend(block.blend, _modulated(x, block.conv, latent), feature)


def _blend(module: refinement.FeatureModulation, styled: Map, feature: Map) -> Map:
    feature = _equalized(feature, module.conv)
    if not module.folded:
        a, b = (weight[:, None, None] for weight in module.weights())
        styled, feature = each(styled, lambda x: x.mul_(a)), each(feature, lambda x: x.mul_(b))
    return activate(add(styled, feature), module.act)


def _modulated(source: Map, layer: ModulatedConv2d, latent: Tensor) -> Map:
    style, factor = layer.factors(latent)
    weight = layer.kernel()
    if len(latent) == 1 and weight.numel() <= style.numel() * source.height * source.width:
        # one sample's factors fit into the weights, which are smaller than the map
        return _modulated_convolution(
            source, layer, weight * style[0, :, None, None] * factor.T[..., None, None], layer.bias
        )
    style, factor, bias = style[..., None, None], factor[..., None, None], layer.bias[:, None, None]
    scaled = each(source, lambda x: x * style)
    return each(_modulated_convolution(scaled, layer, weight, None), lambda x: x.mul_(factor).add_(bias))


def _modulated_convolution(source: Map, layer: ModulatedConv2d, weight: Tensor, bias: Tensor | None) -> Map:
    if layer.fir is None:
        return convolve(source, weight, bias)
    up = deconvolve(source, weight.transpose(0, 1), None, stride=2, pad=0)
    up = _fir(up, layer.fir, weight.shape[0])
    return up if bias is None else each(up, lambda x: x.add_(bias[:, None, None]))
