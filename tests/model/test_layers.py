import math

import naive_layers as naive
import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import nn

from rpf_lightning.model.layers import (
    FIR,
    Activate,
    EqualizedConv2d,
    EqualizedLinear,
    LRFeatures,
    ModulatedConv2d,
    init_convolutions,
    lay_out,
)


def images(channels=3, side=8, batch=2):
    return torch.randn(batch, channels, side, side, dtype=torch.float64)


def each(function, *batches):
    return torch.from_numpy(np.stack([function(*(b.numpy() for b in s)) for s in zip(*batches, strict=True)]))


@pytest.mark.parametrize(("gain", "pad"), [(1.0, 0), (4.0, 1), (1.0, 2)])
def test_fir_is_a_convolution_with_1331(gain, pad):
    x = images()
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    kernel = gain * np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    expected = np.stack([[convolve2d(c, kernel, "valid") for c in sample] for sample in padded])
    np.testing.assert_allclose(FIR(gain, pad)(x).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("upsample", [False, True])
def test_modulated_convolution_equals_weights_per_sample(upsample):
    layer = naive.randomize(ModulatedConv2d(5, 4, latent=6, upsample=upsample).double())
    x, latent = images(channels=5, side=6, batch=3), torch.randn(3, 6, dtype=torch.float64)
    expected = each(lambda sample, v: naive.modulated(layer, sample, v, up=upsample), x, latent)
    torch.testing.assert_close(layer(x, latent), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("side", [3, 12])  # the map smaller and larger than the weights
def test_one_sample_without_gradients_is_modulated_in_the_weights(side, upsample, fold):
    layer = naive.randomize(ModulatedConv2d(5, 4, latent=6, upsample=upsample).double())
    x, latent = images(channels=5, side=side, batch=1), torch.randn(1, 6, dtype=torch.float64)
    expected = layer(x, latent)
    if fold:
        layer.fold(1.0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, latent), expected, atol=1e-12, rtol=1e-12)
        half = layer.bfloat16()(x.bfloat16(), latent.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.1 * expected.abs().max()


def test_modulated_convolution_starts_with_style_one():
    layer = ModulatedConv2d(5, 4, latent=6)
    assert torch.equal(layer.style(torch.zeros(2, 6)), torch.ones(2, 5))


def test_demodulation_ignores_autocast():
    layer = ModulatedConv2d(5, 4, latent=6)
    style = torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer.demodulation(style)
    assert result.dtype == torch.float32
    assert torch.equal(result, layer.demodulation(style))


def test_demodulation_of_bf16_weights_is_computed_in_fp32():
    layer = ModulatedConv2d(5, 4, latent=6).bfloat16()
    style = torch.randn(3, 5).bfloat16()
    weight = layer.weight.double()[None] * layer.scale * style.double()[:, None, :, None, None]
    expected = torch.rsqrt(weight.square().sum((2, 3, 4)) + 1e-8)
    torch.testing.assert_close(layer.demodulation(style).double(), expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("downsample", [False, True])
def test_equalized_convolution(downsample):
    layer = naive.randomize(EqualizedConv2d(5, 4, downsample=downsample).double())
    x = images(channels=5)
    expected = each(lambda sample: naive.equalized(layer, sample, down=downsample), x)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_equalized_layers_keep_the_variance():
    weights = EqualizedConv2d(64, 64).weight
    assert weights.std().item() == pytest.approx(1, rel=0.02)
    assert EqualizedConv2d(64, 64)(torch.randn(2, 64, 18, 18))[..., 1:-1, 1:-1].var().item() == pytest.approx(
        1, rel=0.1
    )
    assert EqualizedLinear(256, 256)(torch.randn(64, 256)).var().item() == pytest.approx(1, rel=0.1)


def test_equalized_linear():
    layer = naive.randomize(EqualizedLinear(7, 3).double())
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), each(lambda v: naive.linear(layer, v), x), atol=1e-12, rtol=0)
    assert torch.equal(EqualizedLinear(7, 3, bias=1.0).bias, torch.ones(3))


@pytest.mark.parametrize(("act", "negative"), [("leaky_relu", -0.2), ("relu", 0.0)])
def test_activation(act, negative):
    result = Activate(act)(torch.tensor([-1.0, 2.0], dtype=torch.float64))
    expected = torch.tensor([negative, 2.0], dtype=torch.float64) * math.sqrt(2)
    torch.testing.assert_close(result, expected, atol=1e-15, rtol=0)


def plain(layer, x):
    return naive.conv(x, naive.array(layer.weight)) + naive.array(layer.bias)[:, None, None]


@pytest.mark.parametrize("side", [8, 16, 32])
def test_lr_features(side):
    module = naive.randomize(LRFeatures(4, side, channels=3).double())
    x = images(side=4)

    def expected(sample):
        if side > 8:  # no progressive reconstruction: features first, then steps of 2
            sample = np.maximum(plain(module.first, sample), 0)
        for step in module.steps:
            sample = np.maximum(naive.pixel_shuffle(plain(step, sample)), 0)
        return sample

    result = module(x)
    assert result.shape == (2, 3, side, side)
    assert len(module.steps) == {8: 1, 16: 2, 32: 3}[side]
    assert (module.first is None) == (side == 8)
    torch.testing.assert_close(result, each(expected, x), atol=1e-9, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: nn.Conv2d(32, 64, 3, padding=1), 32 * 9),
        (lambda: nn.Conv2d(32, 64, 3, stride=2, padding=1), 32 * 9),
        (lambda: nn.ConvTranspose2d(32, 64, 3, padding=1), 32 * 9),
        (lambda: nn.ConvTranspose2d(32, 64, 4, stride=2, padding=1), 32 * 4),
    ],
    ids=["conv", "strided", "transposed", "transposed-strided"],
)
def test_kaiming_initialisation(layer, fan_in):
    layer = layer()
    init_convolutions(nn.Sequential(layer))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.05 * math.sqrt(2 / fan_in))
    assert not layer.bias.any()
    # what it is for: a ReLU halves the mean square, the layer doubles it again
    x = torch.randn(4, 32, 32, 32).relu()
    inside = layer(x)[..., 2:-2, 2:-2]
    assert (inside.square().mean() / x.square().mean()).item() == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (1, 2, 3, 0)])
def test_lay_out_reorders_a_weight_in_its_own_memory(order):
    weight = nn.Parameter(torch.randn(4, 5, 3, 2))
    expected, address = weight.detach().clone(), weight.data_ptr()
    lay_out(weight, order)
    assert torch.equal(weight, expected)
    assert weight.permute(order).is_contiguous()
    assert weight.data_ptr() == address
    assert weight.untyped_storage().nbytes() == 4 * 4 * 5 * 3 * 2
