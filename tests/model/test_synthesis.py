import naive_layers as naive
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from rpf_lightning.model import RPFConfig, SynthesisModule


def synthesis(side, in_side, channels=64, fuse=True, residual=False, init="kaiming"):
    config = RPFConfig(
        in_side, side // in_side, channels, progressive=False, init=init,
        synthesis_fuse=fuse, synthesis_residual=residual,
    )  # fmt: skip
    return SynthesisModule(config, 1)


def inputs(side=32, in_side=16, batch=2, **kwargs):
    return torch.rand(batch, 3, in_side, in_side, **kwargs), torch.rand(batch, 3, side, side, **kwargs)


def bicubic(x, side):
    return F.interpolate(x, size=(side, side), mode="bicubic", antialias=True)


def macs_per_pixel(fuse):
    module = synthesis(64, 32, fuse=fuse).to("meta")
    with FlopCounterMode(display=False) as counter:
        module(*inputs(64, 32, 1, device="meta"))
    return counter.get_total_flops() / 2 / 64**2


@pytest.mark.parametrize(("init", "offset"), [("kaiming", 0.5), ("torch", 0.0)])
def test_residual_starts_close_to_the_bicubic_image(init, offset):
    x, aligned = (bicubic(torch.rand(2, 3, 4, 4), side).clamp(0, 1) for side in (16, 32))
    differences = {}
    for residual in (True, False):
        torch.manual_seed(1)
        image = synthesis(32, 16, residual=residual, init=init)(x, aligned)
        differences[residual] = image - (bicubic(x, 32) if residual else offset)
    assert differences[True].abs().max() < 0.2
    assert differences[True].square().mean().sqrt() < 0.05
    if init == "kaiming":  # biases are zero: the head is exactly 0.02 of its usual size
        torch.testing.assert_close(differences[True], 0.02 * differences[False], atol=1e-5, rtol=0)


def test_without_fusion_the_residual_blocks_have_twice_the_channels():
    module = synthesis(32, 16, channels=5, fuse=False)
    assert {conv.weight.shape for block in module.blocks for conv in (block.conv1, block.conv2)} == {
        (10, 10, 3, 3)
    }
    assert module(*inputs()).shape == (2, 3, 32, 32)
    # 3x3 convolutions: LR features at a quarter of the pixels, reference features, eight in the blocks, RGB
    first = 3 * 256 / 4 + 3 * 64
    fused, concatenated = macs_per_pixel(True), macs_per_pixel(False)
    assert fused == 9 * (first + 128 * 64 + 8 * 64 * 64 + 64 * 3)
    assert concatenated == 9 * (first + 8 * 128 * 128 + 128 * 3)
    assert concatenated / fused == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("residual", [False, True])
def test_fp32_under_autocast(residual):
    module = synthesis(16, 8, 2, residual=residual)
    torch.nn.init.zeros_(module.to_rgb.weight)
    x, aligned = inputs(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = module(x, aligned)
    assert image.dtype == torch.float32
    expected = bicubic(x, 16) if residual else torch.full_like(image, 0.5)
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)  # bf16 would be off by 1e-3


@pytest.mark.parametrize(
    ("fuse", "residual", "init", "offset"),
    [(True, True, "kaiming", 0.5), (False, False, "kaiming", 0.5), (True, False, "torch", 0.0)],
)
def test_equals_the_network_written_out(fuse, residual, init, offset):
    module = synthesis(16, 8, 3, fuse=fuse, residual=residual, init=init).double()
    naive.randomize(module, std=0.3)
    x, aligned = inputs(16, 8, dtype=torch.float64)
    w = dict(module.named_parameters())

    def layer(name, value):
        return F.conv2d(value, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    value = torch.cat(
        [
            F.pixel_shuffle(layer("lr_features.steps.0", x - offset), 2).relu(),
            layer("reference_features", aligned - offset).relu(),
        ],
        dim=1,
    )
    if fuse:
        value = layer("fuse", value).relu()
    for i in range(4):
        value = value + layer(f"blocks.{i}.conv2", layer(f"blocks.{i}.conv1", value).relu())
    value = layer("to_rgb", value)
    expected = value + bicubic(x, 16) if residual else value + offset
    result = module(x, aligned)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)  # the resize matrices are fp32
