import math

import naive_layers as naive
import numpy as np
import pytest
import torch

from rpf_lightning.model import RefinementModule, RPFConfig
from rpf_lightning.model.refinement import FeatureModulation

TINY = 1 / 256  # two channels up to side 64


def refinement(side, **kwargs):
    return RefinementModule(RPFConfig(side // 2, 2, **{"width": TINY, **kwargs}), 1)


def image(side, batch=2, dtype=torch.float64):
    return torch.rand(batch, 3, side, side, dtype=dtype)


@pytest.mark.parametrize(("act", "slope"), [("leaky_relu", 0.2), ("relu", 0.0)])
def test_feature_modulation_equals_its_formula(act, slope):
    module = naive.randomize(FeatureModulation(3, act).double())
    styled, feature = torch.randn(2, 2, 3, 6, 6, dtype=torch.float64)
    alpha, beta = naive.array(module.alpha), naive.array(module.beta)
    norm = np.sqrt(alpha**2 + beta**2 + 1e-8)
    for s, e, d in zip(styled, feature, module(styled, feature), strict=True):
        a, b = ((weight / norm)[:, None, None] for weight in (alpha, beta))
        blend = a * s.numpy() + b * naive.equalized(module.conv, e.numpy())
        expected = np.where(blend > 0, blend, slope * blend) * math.sqrt(2)
        np.testing.assert_allclose(d.detach().numpy(), expected, atol=1e-12)


def test_feature_modulation_starts_with_equal_shares():
    module = FeatureModulation(3, "relu")
    assert torch.equal(module.alpha, torch.ones(3))
    assert torch.equal(module.beta, torch.ones(3))


def written_out(module, x, literal, slope, residual):
    """The refinement of one sample, from docs/method.md section 5."""

    def act(value):
        return np.where(value > 0, value, slope * value) * math.sqrt(2)

    image = x
    x = act(naive.equalized(module.first, x))
    ordinary, blocks = {}, {}
    for block in module.encoder:
        side = x.shape[-1]
        ordinary[side] = act(naive.equalized(block.conv, x))
        x = blocks[side // 2] = act(naive.equalized(block.stride, ordinary[side], down=True))
    assert x.shape[-1] == 4
    embedded = x
    for conv in module.embedding:
        embedded = act(naive.equalized(conv, embedded, down=True))
    assert embedded.shape[1:] == (1, 1)
    for fully_connected, block in zip(module.latents, module.decoder, strict=True):
        v = act(naive.linear(fully_connected, embedded[:, 0, 0]))
        if literal:
            s, e = naive.modulated(block.conv, x, v), blocks[x.shape[-1]]
        else:
            s = naive.modulated(block.conv, act(naive.modulated(block.up, x, v, up=True)), v)
            e = ordinary[s.shape[-1]]
        alpha, beta = naive.array(block.blend.alpha), naive.array(block.blend.beta)
        norm = np.sqrt(alpha**2 + beta**2 + 1e-8)
        a, b = ((weight / norm)[:, None, None] for weight in (alpha, beta))
        x = act(a * s + b * naive.equalized(block.blend.conv, e))
        if literal:
            x = act(naive.modulated(block.up, x, v, up=True))
    output = naive.equalized(module.to_rgb, x)
    return output + image if residual else output


@pytest.mark.parametrize("skip", ["same_resolution", "literal"])
@pytest.mark.parametrize(("act", "slope"), [("leaky_relu", 0.2), ("relu", 0.0)])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_the_network_written_out(skip, act, slope, residual):
    module = naive.stir(refinement(16, skip=skip, act=act, residual=residual).double(), std=0.5)
    x = image(16)
    result = module(x).detach().numpy()
    for sample, out in zip(x.numpy(), result, strict=True):
        expected = written_out(module, sample, skip == "literal", slope, residual)
        np.testing.assert_allclose(out, expected, atol=1e-9)


def test_channels_change_with_the_side():
    # 64 -> 128 -> 256 cross the sides where the number of channels changes
    module = naive.stir(refinement(256).double(), std=0.5)
    assert [block.stride.weight.shape[:2] for block in module.encoder][:3] == [(1, 1), (2, 1), (2, 2)]
    x = image(256, batch=1)
    expected = written_out(module, x[0].numpy(), False, 0.2, False)
    np.testing.assert_allclose(module(x)[0].detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("skip", ["same_resolution", "literal"])
def test_residual_starts_close_to_the_identity(skip):
    x = image(32, dtype=torch.float32)
    assert (refinement(32, width=1 / 16, skip=skip, residual=True)(x) - x).abs().max() < 0.2
    assert (refinement(32, width=1 / 16, skip=skip, residual=False)(x) - x).abs().max() > 1


@pytest.mark.parametrize("width", [1.0, 0.25])
def test_width_scales_channels_and_latents(width):
    latent = 512 * width
    with torch.device("meta"):
        module = refinement(1024, width=width)
    assert module.first.weight.shape[0] == 32 * width
    assert [block.conv.weight.shape[0] for block in module.encoder] == [
        c * width for c in (32, 64, 128, 256, 512, 512, 512, 512)
    ]
    assert [block.conv.weight.shape[0] for block in module.decoder] == [
        c * width for c in (512, 512, 512, 512, 256, 128, 64, 32)
    ]
    assert module.embedding[0].weight.shape[:2] == (latent, latent)
    assert module.embedding[1].weight.shape[:2] == (latent, latent)
    assert {layer.weight.shape for layer in module.latents} == {(latent, latent)}
    assert {block.up.style.weight.shape[1] for block in module.decoder} == {latent}


def test_deterministic():
    module = refinement(32, width=1 / 16).train()
    x = image(32, dtype=torch.float32)
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("residual", [False, True])
def test_fp32_under_autocast(residual):
    module = refinement(16, residual=residual)
    torch.nn.init.zeros_(module.to_rgb.weight)
    x = image(16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x)
    assert output.dtype == torch.float32
    assert torch.equal(output, x if residual else torch.zeros_like(x))
