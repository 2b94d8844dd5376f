"""The benchmark's baseline computes what the library computes, without the library's layers."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rpf_lightning.model import layers, refinement, resize, synthesis, warping
from rpf_lightning.model.resize import resample_matrix
from rpf_lightning.model.rpf import RPFModel

PATH = Path(__file__).parents[1] / "benchmarks" / "straightforward.py"
spec = importlib.util.spec_from_file_location("straightforward", PATH)
straightforward = importlib.util.module_from_spec(spec)
spec.loader.exec_module(straightforward)
StraightforwardRPF = straightforward.StraightforwardRPF

OPTIONS = {
    "paper": {},
    "residual": {"residual": True},
    "synthesis_residual": {"synthesis_residual": True},
    "relu": {"act": "relu"},
    "torch init": {"init": "torch"},
    "all": {"residual": True, "synthesis_residual": True, "act": "relu", "init": "torch"},
}
SIZES = {  # lr_size and scale
    "8 to 32": (4, 8),  # the warping module of side 8 has no encoder; the reference is halved twice
    "128": (64, 2),  # the refinement's channels change with the side from 128 on
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@torch.no_grad()
def randomized(lr_size=16, scale=4, channels=8, **options):
    """A model in which every parameter counts, in a range in which the output hardly saturates."""
    model = RPFModel(lr_size, scale, channels=channels, width=1 / 64, **options).eval()
    for parameter in model.parameters():
        parameter.normal_()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.mul_(math.sqrt(2 / module.weight[0].numel()))
            module.bias.mul_(0.3)
        if isinstance(module, layers.ModulatedConv2d):
            module.weight[0].mul_(1e-4)  # down to where the 1e-8 under the roots counts
        if isinstance(module, refinement.FeatureModulation):
            module.alpha[0].mul_(1e-4)
            module.beta[0].mul_(1e-4)
    for block in model.blocks:
        for to_rgb in (block.synthesis.to_rgb, block.refinement.to_rgb):
            to_rgb.weight.mul_(0.1)
            to_rgb.bias.mul_(0.2)
        block.refinement.to_rgb.bias.add_(0.0 if model.config.residual else 0.5)
    return model


def in_float64(model):
    """The model in float64, its resizing matrices not rounded to fp32."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, resize.Resize):
            module.matrix = resample_matrix(*reversed(module.matrix.shape))
    return model


def photos(model, batch=1, dtype=torch.float32):
    """LR, reference and mask; the reference has edges between 0 and 1, which make bicubic overshoot."""
    lr = torch.rand(batch, 3, model.lr_size, model.lr_size, dtype=dtype)
    tiles = torch.rand(batch, 3, model.size // 4, model.size // 4, dtype=dtype)
    tiles = torch.where(torch.rand_like(tiles) < 0.5, tiles, tiles.round())
    reference = F.interpolate(tiles, scale_factor=4)
    mask = torch.zeros(batch, 1, model.size, model.size, dtype=dtype)
    mask[..., model.size // 4 :, : model.size // 2] = 1
    return lr, reference, mask


def difference(model, *inputs):
    """Largest difference between the two implementations; with gradients, as the model then runs as a whole."""
    expected = model(*inputs)
    saturated = ((expected == 0) | (expected == 1)).double().mean().item()
    assert saturated < 0.7, "the test says little where the output is clamped"
    result = StraightforwardRPF(model)(*inputs)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    return (result - expected).abs().max().item()


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_model(options, batch, masked):
    model = randomized(**options)
    inputs = photos(model, batch)[: 3 if masked else 2]
    assert difference(model, *inputs) < 1e-4
    assert difference(in_float64(model), *(image.double() for image in inputs)) < 1e-9


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_model_at_other_sizes(size):
    model = randomized(*size)
    inputs = photos(model, batch=2)
    assert difference(model, *inputs) < 1e-4
    assert difference(in_float64(model), *(image.double() for image in inputs)) < 1e-9


def test_every_parameter_counts():
    """The comparison sees every weight and bias: its gradient is the model's and not zero."""
    model = in_float64(randomized())
    inputs = photos(model, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    probe = torch.randn(1, 3, model.size, model.size, dtype=torch.float64)
    expected, result = (
        torch.autograd.grad((network(*inputs) * probe).sum(), list(parameters.values()))
        for network in (model, StraightforwardRPF(model))
    )
    for name, ours, theirs in zip(parameters, result, expected, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "option",
    [{"skip": "literal"}, {"progressive": False}, {"synthesis_fuse": False}, {"flow_unit": "pixels"}],
)
def test_other_readings_are_refused(option):
    model = RPFModel(16, 4, channels=2, width=1 / 64, **option)
    with pytest.raises(ValueError, match=f"{next(iter(option))}: only .* is supported"):
        StraightforwardRPF(model)


def test_shares_the_parameters():
    model = randomized()
    baseline = StraightforwardRPF(model)
    assert {id(p) for p in baseline.parameters()} == {id(p) for p in model.parameters()}


def test_uses_none_of_the_fast_layers(monkeypatch):
    model = randomized()
    inputs = photos(model)

    def refuse(*_args, **_kwargs):
        raise AssertionError("a forward method of the library was called")

    own = [
        value
        for namespace in (layers, refinement, resize, synthesis, warping)
        for value in vars(namespace).values()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == namespace.__name__
    ]
    assert {layers.ModulatedConv2d, layers.FIR, refinement.FeatureModulation, resize.Resize} <= set(own)
    for cls in own:
        monkeypatch.setattr(cls, "forward", refuse)
    for namespace, name in (
        (warping, "backward_warp"),
        (resize, "resize"),
        (layers.PairModule, "pair_features"),
    ):
        monkeypatch.setattr(namespace, name, refuse)
    monkeypatch.setattr(layers.ModulatedConv2d, "demodulation", refuse, raising=False)
    with pytest.raises(AssertionError, match="was called"):
        model(*inputs)
    StraightforwardRPF(model)(*inputs)


def test_layout_stays_contiguous():
    """Channels-last inputs do not make the baseline a channels-last network; such weights are refused."""
    model = randomized()
    baseline = StraightforwardRPF(model)
    layouts = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda _module, inputs, output: layouts.extend(
                    (inputs[0].is_contiguous(), output.is_contiguous())
                )
            )
    with torch.no_grad():
        output = baseline(*(image.to(memory_format=torch.channels_last) for image in photos(model, batch=3)))
    assert output.is_contiguous()
    assert layouts
    assert all(layouts)
    with pytest.raises(ValueError, match="contiguous"):
        StraightforwardRPF(model.to(memory_format=torch.channels_last))


def test_fused_models_are_refused():
    """Their weights already hold the scales that the baseline multiplies by."""
    model = randomized()
    inputs = photos(model)
    baseline = StraightforwardRPF(model)
    baseline(*inputs)
    model.fuse()
    with pytest.raises(ValueError, match="fused"):
        baseline(*inputs)
    with pytest.raises(ValueError, match="fused"):
        StraightforwardRPF(model)
