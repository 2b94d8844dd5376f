import csv
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rpf_lightning.baselines import GCFSR
from rpf_lightning.baselines.gcfsr import ModulatedConv, ToRGB
from rpf_lightning.model.layers import EqualizedLinear, ModulatedConv2d
from rpf_lightning.model.resize import resize

SIZE, WIDTH = 64, 1 / 64
PARAMETERS = {1024: 66_668_706, 512: 62_352_925}
READINGS = [
    {},
    {"blend": "after_activation"},
    {"normalize": False},
    {"blend": "after_activation", "normalize": False},
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@torch.no_grad()
def stirred(size=SIZE, **options):
    """A tiny network with biases other than their first values; the noise's weights stay zero."""
    network = GCFSR(size, WIDTH, **options)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def images(side=SIZE, batch=2, **options):
    return torch.rand(batch, 3, side, side, **options)


def published(shared, size):
    """Keys and shapes of the published checkpoint."""
    with (shared / "design" / f"gcfsr_{size}_state_dict.csv").open(newline="") as file:
        return {row["key"]: tuple(map(int, row["shape"].split("x"))) for row in csv.DictReader(file)}


def shapes(network):
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def saved(path, content):
    torch.save(content, path)
    return path


# The published checkpoints


@pytest.mark.parametrize("size", PARAMETERS)
def test_keys_and_shapes_are_the_published_ones(shared, size):
    with torch.device("meta"):
        network = GCFSR(size)
    expected = published(shared, size)
    assert shapes(network) == expected
    assert list(network.state_dict()) == list(expected)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters(size):
    with torch.device("meta"):
        network = GCFSR(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[size]
    steps = int(math.log2(size)) - 4
    assert network.num_latent == 2 * (int(math.log2(size)) - 2) - 2
    assert network.final_linear.weight.shape == (512 * network.num_latent, 4096)
    assert [len(part) for part in (network.style_convs, network.to_rgbs)] == [2 * steps, steps]
    noises = [tuple(noise.shape[2:]) for noise in network.noises.buffers()]
    assert noises[:5] == [(4, 4), (8, 8), (8, 8), (16, 16), (16, 16)]
    assert noises[-1] == (size // 4, size // 4)


@pytest.mark.parametrize("size", PARAMETERS)
def test_a_made_checkpoint_of_the_published_list_loads(shared, tmp_path, size):
    state = {key: torch.empty(shape).uniform_(-1, 1) for key, shape in published(shared, size).items()}
    network = GCFSR.from_checkpoint(saved(tmp_path / "made.pth", {"params_ema": state}))
    assert network.size == size
    assert not network.training
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    GCFSR(size).load_state_dict(state, strict=True)


# Loading


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("wrap", ["plain", "params", "params_ema"])
def test_checkpoint_restores_the_network(tmp_path, size, wrap):
    network = stirred(size)
    state = network.state_dict()
    content = state if wrap == "plain" else {wrap: state}
    loaded = GCFSR.from_checkpoint(saved(tmp_path / "x.pth", content), width=WIDTH)
    image = images(size)
    with torch.no_grad():
        assert torch.equal(loaded(image, 4.0), network(image, 4.0))


def test_averaged_weights_are_preferred(tmp_path):
    state = stirred().state_dict()
    other = {key: value + 1 for key, value in state.items()}
    path = saved(tmp_path / "x.pth", {"params": other, "params_ema": state})
    loaded = GCFSR.from_checkpoint(path, width=WIDTH)
    assert torch.equal(loaded.final_linear.weight, state["final_linear.weight"])


def test_half_precision_becomes_fp32(tmp_path):
    state = {key: value.half() for key, value in stirred().state_dict().items()}
    loaded = GCFSR.from_checkpoint(saved(tmp_path / "x.pth", state), width=WIDTH)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


def test_options_reach_the_network(tmp_path):
    path = saved(tmp_path / "x.pth", stirred().state_dict())
    image = images()
    outputs = []
    for options in READINGS:
        with torch.no_grad():
            output = GCFSR.from_checkpoint(path, width=WIDTH, **options)(image, 4.0)
            assert torch.equal(output, stirred_from(path, options)(image, 4.0))
        outputs.append(output)
    for i, output in enumerate(outputs):
        assert all((output - other).abs().max() > 1e-3 for other in outputs[:i])


def stirred_from(path, options):
    network = GCFSR(SIZE, WIDTH, **options)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("to_rgbs.1.bias"), r"missing: to_rgbs\.1\.bias"),
        (lambda s: s.pop("noises.noise3"), r"missing: noises\.noise3"),
        (lambda s: s.update({"fir.kernel": torch.ones(4, 4)}), r"unexpected: fir\.kernel"),
        (
            lambda s: s.update({"final_linear.bias": torch.ones(7)}),
            r"of another shape: final_linear\.bias has \(7,\) instead of \(48,\)",
        ),
        (
            lambda s: s.update({"x": s.pop("style_conv1.weight")}),
            r"missing: style_conv1\.weight; unexpected: x",
        ),
        (lambda s: s.update({"step": 3}), "no tensors: step"),
        (lambda s: [s.pop(k) for k in list(s) if "to_rgbs" in k], "no GCFSR checkpoint.*conv_body_first"),
        (lambda s: s.update({"to_rgbs.6.bias": torch.ones(1)}), "no GCFSR checkpoint"),
        (lambda s: s.clear(), "no GCFSR checkpoint.*none"),
        (lambda s: s.update(params=torch.ones(3)), "expected a dictionary of weights, got Tensor"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, change, message):
    state = dict(stirred().state_dict())
    change(state)
    with pytest.raises(ValueError, match=rf"odd\.pth.*{message}"):
        GCFSR.from_checkpoint(saved(tmp_path / "odd.pth", state), width=WIDTH)


def test_another_size_says_what_does_not_fit(tmp_path):
    path = saved(tmp_path / "odd.pth", stirred().state_dict())
    with pytest.raises(ValueError, match=r"odd\.pth.*size 64.*of another shape.*and \d+ more"):
        GCFSR.from_checkpoint(path, width=2 * WIDTH)


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").touch()
    saved(tmp_path / "code.pth", {**stirred().state_dict(), "x": Runs(tmp_path / "ran")})
    saved(tmp_path / "list.pth", [1, 2])
    whole = saved(tmp_path / "half.pth", stirred().state_dict()).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "empty", "code", "list", "half"):
        with pytest.raises(ValueError, match=rf"{name}\.pth"):
            GCFSR.from_checkpoint(tmp_path / f"{name}.pth", width=WIDTH)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        GCFSR.from_checkpoint(tmp_path / "absent.pth")


# Numbers: the network once more, one sample at a time, from nothing but its state dict

TAPS = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])).double() / 64


def low_pass(x, before, after):
    """The FIR on each channel of (1, C, H, H), with zeros around."""
    x = F.pad(x, (before, after, before, after))
    return torch.cat([F.conv2d(c, TAPS[None, None]) for c in x.split(1, 1)], 1)


def spread(x):
    """Zeros between and behind the pixels."""
    result = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    result[..., ::2, ::2] = x
    return result


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def per_sample(x, weight, style, demodulate=True, upsample=False):
    """One sample (1, in, H, H) with weights (out, in, k, k) of its own, as StyleGAN2 writes it."""
    weight = weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]
    if demodulate:
        weight = weight / torch.sqrt((weight**2).sum((1, 2, 3), keepdim=True) + 1e-8)
    if upsample:  # a transposed convolution with stride 2 is a true convolution between zeros
        x = F.conv2d(F.pad(spread(x), (2, 1, 2, 1)), weight.flip(2, 3))
        return 4 * low_pass(x, 1, 1)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def by_hand(state, image, scale_factor, blend="before_activation", normalize=True):
    """GCFSR on one sample (3, S, S), in float64."""
    state = {key: value.double() for key, value in state.items()}
    size = image.shape[-1]
    steps = int(math.log2(size)) - 4

    def linear(name, x):
        weight = state[f"{name}.weight"]
        return weight @ x / math.sqrt(weight.shape[1]) + state[f"{name}.bias"]

    def encode(name, x, down=False):
        first = int(down)
        weight = state[f"{name}.{first}.weight"]
        weight = weight / math.sqrt(weight[0].numel())
        x = F.conv2d(low_pass(x, 2, 2), weight, stride=2) if down else F.conv2d(x, weight, padding=1)
        return leaky(x + state[f"{name}.{first + 1}.bias"].view(-1, 1, 1))

    def mix(x, level):
        condition = torch.tensor([scale_factor / (size / 16)], dtype=torch.float64)
        alpha, beta = (linear(f"condition_scale{k}.{level}", condition).view(-1, 1, 1) for k in (1, 2))
        root = torch.sqrt(alpha**2 + beta**2 + 1e-8) if normalize else 1.0
        weight = state[f"condition_shift.{level}.0.weight"]
        shift = F.conv2d(features[level], weight / math.sqrt(weight[0].numel()), padding=1)
        shift = shift + state[f"condition_shift.{level}.0.bias"].view(-1, 1, 1)
        return (alpha * x + beta * shift) / root

    def styled(name, x, latent, level=None, upsample=False):
        style = linear(f"{name}.modulated_conv.modulation", latent)
        x = per_sample(x, state[f"{name}.modulated_conv.weight"][0], style, upsample=upsample)
        if level is not None and blend == "before_activation":
            x = mix(x, level)
        x = leaky(x + state[f"{name}.activate.bias"].view(-1, 1, 1))
        return mix(x, level) if level is not None and blend == "after_activation" else x

    def to_rgb(name, x, latent):
        style = linear(f"{name}.modulated_conv.modulation", latent)
        weight = state[f"{name}.modulated_conv.weight"][0]
        return per_sample(x, weight, style, demodulate=False) + state[f"{name}.bias"]

    features = [encode("conv_body_first", image[None].double() * 2 - 1)]
    for i in range(steps):
        features.append(encode(f"conv_body_down.{i}", features[-1], down=True))
    x = encode("final_conv", features[-1])
    embedded = encode("final_down2", encode("final_down1", x, down=True), down=True)
    latents = list(linear("final_linear", embedded.flatten()).view(2 * steps + 2, -1))

    x = styled("style_conv1", x, latents.pop(0), level=steps)
    rgb = to_rgb("to_rgb1", x, latents[0])
    for i in range(steps):
        x = styled(f"style_convs.{2 * i}", x, latents.pop(0), upsample=True)
        x = styled(f"style_convs.{2 * i + 1}", x, latents.pop(0), level=steps - 1 - i)
        rgb = to_rgb(f"to_rgbs.{i}", x, latents[0]) + 4 * low_pass(spread(rgb), 2, 1)
    assert len(latents) == 1
    return (rgb[0] + 1) / 2


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("options", READINGS, ids=str)
def test_equals_the_network_by_hand(size, options):
    network = stirred(size, **options)
    image, factors = images(size, batch=3), torch.tensor([2.0, 4.0, 8.0])
    with torch.no_grad():
        expected = torch.stack(
            [
                by_hand(network.state_dict(), x, f.item(), **options)
                for x, f in zip(image, factors, strict=True)
            ]
        )
        assert expected.std() > 0.1
        result = network.double()(image.double(), factors.double())
        torch.testing.assert_close(network.float()(image, factors).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("upsample", [True, False])
def test_modulated_layer_equals_weights_per_sample(kernel, demodulate, upsample):
    if kernel == 1 and upsample:
        return
    layer = ModulatedConv(5, 4, kernel, 6, demodulate, upsample).double()
    x, latent = torch.randn(3, 5, 8, 8).double(), torch.randn(3, 6).double()
    styles = latent @ layer.modulation.weight.T / math.sqrt(6) + 1
    expected = torch.cat(
        [per_sample(x[i : i + 1], layer.weight[0], styles[i], demodulate, upsample) for i in range(3)]
    )
    torch.testing.assert_close(layer(x, latent), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("upsample", [True, False])
def test_modulated_layer_is_the_refinement_s(upsample):
    ours = ModulatedConv(5, 4, 3, 6, upsample=upsample)
    theirs = ModulatedConv2d(5, 4, 6, upsample=upsample)
    theirs.load_state_dict(
        {
            "weight": ours.weight[0],
            "bias": torch.zeros(4),
            "style.weight": ours.modulation.weight,
            "style.bias": ours.modulation.bias,
        }
    )
    x, latent = torch.randn(3, 5, 8, 8), torch.randn(3, 6)
    torch.testing.assert_close(ours(x, latent), theirs(x, latent))


def test_enlarging_rgb_keeps_a_constant_inside():
    result = ToRGB(4, 4).enlarge(torch.full((1, 3, 8, 8), 0.7))
    assert result.shape == (1, 3, 16, 16)
    torch.testing.assert_close(result[..., 1:-1, 1:-1], torch.full((1, 3, 14, 14), 0.7))


# Noise


def test_without_noise_outputs_are_identical():
    network, image = stirred(), images()
    with torch.no_grad():
        for layer in noise_weights(network).values():
            layer.fill_(1.0)
        first = network(image, 4.0)
        torch.manual_seed(1)
        assert torch.equal(network(image, 4.0), first)
        assert torch.equal(
            network.super_resolve(image[..., :16, :16]), network.super_resolve(image[..., :16, :16])
        )


def noise_weights(network):
    """The noise's weights by layer, in the order in which they run."""
    weights = {"style_conv1": network.style_conv1.weight}
    return weights | {f"style_convs.{i}": layer.weight for i, layer in enumerate(network.style_convs)}


def test_noise_is_off_at_first():
    network, image = GCFSR(SIZE, WIDTH), images()
    assert all(weight.item() == 0 for weight in noise_weights(network).values())
    assert torch.equal(network(image, 4.0, randomize_noise=True), network(image, 4.0))


@pytest.mark.parametrize("number", range(5))
def test_noise_enters_where_its_weight_is_not_zero(number):
    network, image = stirred(), images()
    names = list(noise_weights(network))
    assert len(names) == 5
    outputs = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.setdefault(name, []).append(output)
        )
    with torch.no_grad():
        noise_weights(network)[names[number]].fill_(0.5)
        first, second = network(image, 4.0, randomize_noise=True), network(image, 4.0, randomize_noise=True)
    assert not torch.equal(first, second)
    unequal = [not torch.equal(*outputs[name]) for name in names]
    assert unequal == [i >= number for i in range(5)]


def test_noise_is_one_value_per_pixel_and_image():
    network = stirred()
    layer = network.style_conv1
    seen = []
    layer.activate.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    image = images(batch=1).expand(2, -1, -1, -1)
    with torch.no_grad():
        network(image, 4.0)
        layer.weight.fill_(0.5)
        network(image, 4.0, randomize_noise=True)
    noise = (seen[1] - seen[0]) / 0.5
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), atol=1e-4, rtol=0)
    assert noise[:, 0].std().item() == pytest.approx(1, abs=0.15)
    assert (noise[0] - noise[1]).abs().max() > 0.5


def test_stored_noises_are_not_read():
    network, image = stirred(), images()
    with torch.no_grad():
        for weight in noise_weights(network).values():
            weight.fill_(1.0)
        expected = network(image, 4.0)
        for noise in network.noises.buffers():
            noise.fill_(math.nan)
        assert torch.equal(network(image, 4.0), expected)
        assert network(image, 4.0, randomize_noise=True).isfinite().all()


# The scale factor


@pytest.mark.parametrize(("size", "divisor"), [(32, 2), (64, 4), (128, 8)])
def test_condition_is_the_factor_over_a_sixteenth_of_the_size(size, divisor):
    """64 at size 1024 and 32 at 512."""
    network = stirred(size)
    seen = []
    for layer in [*network.condition_scale1, *network.condition_scale2]:
        assert isinstance(layer, EqualizedLinear)
        layer.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    network(images(size), torch.tensor([2.0, 6.0]))
    assert len(seen) == 2 * len(network.condition_shift)
    for condition in seen:
        assert torch.equal(condition, torch.tensor([[2.0], [6.0]]) / divisor)


def test_scale_factor_reaches_both_scales_at_every_side():
    network, image = stirred(), images()
    with torch.no_grad():
        network(image, 2.0)  # a smoke test of the unchanged network
        layers = [*network.condition_scale1, *network.condition_scale2]
        kept = [layer.weight.clone() for layer in layers]
        for layer in layers:
            layer.weight.zero_()
        assert torch.equal(network(image, 2.0), network(image, 8.0))
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.copy_(weight)
            assert not torch.equal(network(image, 2.0), network(image, 8.0))
            layer.weight.zero_()


def test_scales_begin_with_bias_one():
    network = GCFSR(SIZE, WIDTH)
    for layer in [*network.condition_scale1, *network.condition_scale2]:
        assert torch.equal(layer(torch.zeros(1, 1)), torch.ones(1, len(layer.bias)))


def test_one_factor_serves_the_batch():
    network, image = stirred(), images()
    with torch.no_grad():
        expected = network(image, 4.0)
        assert torch.equal(network(image, torch.tensor(4)), expected)
        assert torch.equal(network(image, torch.tensor([4.0, 4.0])), expected)


@pytest.mark.parametrize("factor", [torch.ones(3), torch.ones(2, 1), torch.ones(0)])
def test_other_numbers_of_factors_are_refused(factor):
    with pytest.raises(ValueError, match="scale_factor: expected a number or 2 of them"):
        stirred()(images(), factor)


# Images at the boundary


def test_network_sees_minus_one_to_one():
    network, image = stirred(), images()
    seen = []
    network.conv_body_first.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    network(image, 4.0)
    torch.testing.assert_close(seen[0], (image - 0.5) / 0.5)


@pytest.mark.parametrize(("inside", "outside", "clamped"), [(-1, 0, 0), (0, 0.5, 0.5), (1, 1, 1), (3, 2, 1)])
def test_output_is_zero_to_one_and_clamped_only_in_super_resolve(inside, outside, clamped):
    network = stirred()
    with torch.no_grad():
        for layer in (network.to_rgb1, *network.to_rgbs):
            layer.modulated_conv.weight.zero_()
            layer.bias.zero_()
        network.to_rgbs[-1].bias.fill_(inside)
        assert torch.equal(network(images(), 4.0), torch.full((2, 3, SIZE, SIZE), float(outside)))
        assert torch.equal(network.super_resolve(images(16)), torch.full((2, 3, SIZE, SIZE), float(clamped)))


@pytest.mark.parametrize("side", [2, 16, 20, 64])
def test_super_resolve_enlarges_and_finds_the_factor(side):
    network, lr = stirred(), images(side)
    with torch.no_grad():
        expected = network(resize(lr, SIZE), SIZE / side).clamp(0, 1)
    result = network.super_resolve(lr)
    assert torch.equal(result, expected)
    assert not result.requires_grad


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (torch.rand(3, 8, 8), "square RGB images"),
        (torch.rand(1, 1, 8, 8), "square RGB images"),
        (torch.rand(1, 3, 8, 6), "square RGB images"),
        (torch.rand(0, 3, 8, 8), "square RGB images"),
        (torch.rand(1, 3, 128, 128), "at most 64"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point"),
        (torch.full((1, 3, 8, 8), 2.0), r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), math.nan), "NaN"),
    ],
)
def test_odd_lr_images_are_refused(lr, message):
    with pytest.raises(ValueError, match=message):
        stirred().super_resolve(lr)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 64, 64), (1, 4, 64, 64)])
def test_odd_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"image: expected RGB images of the shape \(B, 3, 64, 64\)"):
        stirred()(torch.rand(shape), 4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, "size"),
        ({"size": 96}, "size"),
        ({"size": 2048}, "size"),
        ({"width": 0}, "width"),
        ({"blend": "x"}, "blend"),
    ],
)
def test_odd_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message}: expected"):
        GCFSR(**options)


# Training and precision


def test_end_to_end_with_gradients():
    network, image = GCFSR(SIZE, WIDTH), images().requires_grad_()
    output = network(image, 4.0, randomize_noise=True)
    assert output.shape == (2, 3, SIZE, SIZE)
    assert output.isfinite().all()
    (output * torch.randn_like(output)).sum().backward()
    assert image.grad.abs().max() > 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_output_starts_with_a_moderate_variance():
    """Equalized layers keep the variance, also in the full width."""
    with torch.no_grad():
        output = GCFSR(32)(images(32), 2.0)
    assert 0.1 < output.std() < 3


def test_autocast_returns_fp32():
    network, image = stirred(), images()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(image, 4.0)
    assert output.dtype == torch.float32
    with torch.no_grad():
        difference = (output - network(image, 4.0)).abs().max()
    assert difference < 0.2


def test_batch_is_independent():
    network, image = stirred(), images(batch=3)
    with torch.no_grad():
        together = network(image, 4.0)
        alone = torch.cat([network(sample[None], 4.0) for sample in image])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_no_other_modules_hold_weights():
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in GCFSR(SIZE, WIDTH).modules())
