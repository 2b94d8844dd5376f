import naive_layers as naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from rpf_lightning.model import RPFConfig, WarpingModule, backward_warp


def warping(side, **arguments):
    return WarpingModule(RPFConfig(side // 2, 2, **arguments), 1)


def constant_flow(side, x, y, dtype=torch.float32):
    return torch.tensor([x, y], dtype=dtype).view(1, 2, 1, 1).expand(1, 2, side, side)


def shifted(image, x, y):
    """out(p) = image(p + (x, y)) for whole pixels, zero outside."""
    side, far = image.shape[-1], 2 * image.shape[-1]
    padded = F.pad(image, (far, far, far, far))
    return padded[..., far + y : far + y + side, far + x : far + x + side]


def warp_of_scipy(image, flow):
    side = image.shape[-1]
    row, column = np.mgrid[:side, :side]
    out = np.empty(image.shape)
    for b in range(image.shape[0]):
        for c in range(image.shape[1]):
            where = [row + flow[b, 1].numpy(), column + flow[b, 0].numpy()]
            # grid-constant: the neighbours outside the image are zeros
            out[b, c] = map_coordinates(image[b, c].numpy(), where, order=1, mode="grid-constant", cval=0)
    return torch.from_numpy(out)


@pytest.mark.parametrize("reach", [0.4, 30.0])
def test_backward_warp_equals_scipy(reach):
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    flow = torch.randn(2, 2, 16, 16, dtype=torch.float64) * reach
    torch.testing.assert_close(backward_warp(image, flow), warp_of_scipy(image, flow), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("x", "y"), [(-3, 2), (40, 0)])
def test_constant_flow_shifts_exactly(x, y):
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(backward_warp(image, constant_flow(32, x, y)), shifted(image, x, y))


def test_flow_of_one_in_x_takes_the_pixel_to_the_right():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[1.0, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0], [13, 14, 15, 0]])
    assert torch.equal(backward_warp(image, constant_flow(4, 1, 0))[0, 0], expected)


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.bfloat16])
def test_coordinates_are_fp32_for_bf16_flow(image_dtype):
    image = torch.rand(1, 1, 1024, 1024).to(image_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = backward_warp(image, constant_flow(1024, 37, -11, torch.bfloat16))
    assert result.dtype == torch.float32
    assert torch.equal(result, shifted(image.float(), 37, -11))


def test_module_under_autocast_shifts_exactly_at_1024():
    module = warping(1024, channels=1)
    with torch.no_grad():
        module.flow_head.bias.copy_(torch.tensor([2.0, -1.0]))
    reference = torch.rand(1, 3, 1024, 1024)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        flow, aligned = module(torch.rand(1, 3, 512, 512), reference)
    assert flow.dtype == aligned.dtype == torch.float32
    assert torch.equal(flow, constant_flow(1024, 32, -16))
    assert torch.equal(aligned, shifted(reference, 32, -16))


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("init", ["kaiming", "torch"])
def test_untrained_module_is_the_identity_warp(side, init):
    reference = torch.rand(2, 3, side, side)
    flow, aligned = warping(side, channels=4, init=init)(torch.rand(2, 3, side // 2, side // 2), reference)
    assert flow.shape == (2, 2, side, side)
    assert not flow.any()
    assert torch.equal(aligned, reference)


@pytest.mark.parametrize(
    ("unit", "side", "pixels"),
    [("relative", 16, 0.25), ("relative", 128, 2.0), ("pixels", 16, 1.0)],
)
def test_flow_unit(unit, side, pixels):
    module = warping(side, channels=2, flow_unit=unit)
    with torch.no_grad():
        module.flow_head.bias.fill_(1.0)
    flow, _ = module(torch.rand(1, 3, side // 2, side // 2), torch.rand(1, 3, side, side))
    assert torch.equal(flow, constant_flow(side, pixels, pixels))


@pytest.mark.parametrize(("side", "blocks"), [(8, 0), (32, 2), (1024, 7)])
def test_encoder_ends_at_8x8(side, blocks):
    module = warping(side, channels=2).to("meta")
    assert len(module.encoder) == len(module.decoder) == blocks
    sides = []
    for block in module.encoder:
        block.register_forward_hook(lambda _module, _inputs, output: sides.append(output[1].shape[-1]))
    x, reference = (torch.empty(1, 3, s, s, device="meta") for s in (side // 2, side))
    assert module(x, reference)[0].shape == (1, 2, side, side)
    assert sides == [side // 2**i for i in range(1, blocks + 1)]
    assert not sides or sides[-1] == 8


@pytest.mark.parametrize(("init", "offset"), [("kaiming", 0.5), ("torch", 0.0)])
def test_flow_equals_the_network_written_out(init, offset):
    module = naive.randomize(warping(32, channels=3, init=init).double(), std=0.3)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    reference = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    w = dict(module.named_parameters())

    def layer(name, value, stride=1):
        return F.conv2d(value, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=1)

    def deconvolution(name, value, stride):
        return F.conv_transpose2d(
            value, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=1
        ).relu()

    features = torch.cat(
        [
            F.pixel_shuffle(layer("lr_features.steps.0", x - offset), 2).relu(),
            layer("reference_features", reference - offset).relu(),
        ],
        dim=1,
    )
    skip_32 = layer("encoder.0.conv", features).relu()
    skip_16 = layer("encoder.1.conv", layer("encoder.0.stride", skip_32, 2).relu()).relu()
    value = layer("encoder.1.stride", skip_16, 2).relu()
    assert value.shape[-1] == 8
    for block, skip in (("decoder.0", skip_16), ("decoder.1", skip_32)):
        value = deconvolution(f"{block}.up", layer(f"{block}.conv", value).relu(), 2)
        value = deconvolution(f"{block}.merge", torch.cat([value, skip], dim=1), 1)
    expected = layer("flow_head", value) * 32 / 64

    flow, aligned = module(x, reference)
    torch.testing.assert_close(flow, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(aligned, warp_of_scipy(reference, expected.detach()), atol=1e-9, rtol=0)
