"""GCFSR: its published checkpoints' keys, and its numbers against the network written out once more."""

import csv
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rpf_lightning.baselines import GCFSR
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


def images(side=SIZE, batch=2):
    return torch.rand(batch, 3, side, side)


def published(shared, size):
    """Keys and shapes of the published checkpoint."""
    with (shared / "design" / f"gcfsr_{size}_state_dict.csv").open(newline="") as file:
        return {row["key"]: tuple(map(int, row["shape"].split("x"))) for row in csv.DictReader(file)}


def saved(path, content):
    torch.save(content, path)
    return path


# The published checkpoints


@pytest.mark.parametrize("size", PARAMETERS)
def test_keys_and_shapes_are_the_published_ones(shared, size):
    with torch.device("meta"):
        network = GCFSR(size)
    found = [(key, tuple(tensor.shape)) for key, tensor in network.state_dict().items()]
    assert found == list(published(shared, size).items())


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters(size):
    with torch.device("meta"):
        network = GCFSR(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[size]
    noises = [noise.shape[-1] for noise in network.noises.buffers()]
    assert (noises[:5], noises[-1]) == ([4, 8, 8, 16, 16], size // 4)


def test_a_made_checkpoint_of_the_published_list_loads(shared, tmp_path):
    state = {key: torch.empty(shape).uniform_(-1, 1) for key, shape in published(shared, 512).items()}
    network = GCFSR.from_checkpoint(saved(tmp_path / "made.pth", {"params_ema": state}))
    assert network.size == 512
    assert not network.training
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


# Loading


@pytest.mark.parametrize(("size", "wrap"), [(32, None), (64, "params"), (128, "params_ema")])
def test_checkpoint_restores_the_network(tmp_path, size, wrap):
    network, image = stirred(size), images(size)
    state = network.state_dict()
    # averaged weights are preferred
    content = {"params": {}, wrap: state} if wrap else state
    loaded = GCFSR.from_checkpoint(saved(tmp_path / "x.pth", content), width=WIDTH)
    with torch.no_grad():
        assert torch.equal(loaded(image, 4.0), network(image, 4.0))
    saved(tmp_path / "half.pth", {key: value.half() for key, value in state.items()})
    half = GCFSR.from_checkpoint(tmp_path / "half.pth", width=WIDTH)
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("noises.noise3"), r'size 64: .*Missing key.*"noises\.noise3"'),
        (lambda s: s.update({"final_linear.bias": torch.ones(7)}), r"final_linear\.bias: .*\[7\].*\[48\]"),
        (
            lambda s: s.update({"x": s.pop("style_conv1.weight")}),
            r'Missing.*"style_conv1\.weight".*Unexpected.*"x"',
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
    with pytest.raises(ValueError, match=rf"(?s)odd\.pth.*{message}"):
        GCFSR.from_checkpoint(saved(tmp_path / "odd.pth", state), width=WIDTH)


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
def test_equals_the_network_by_hand(tmp_path, size, options):
    path = saved(tmp_path / "x.pth", stirred(size).state_dict())
    network = GCFSR.from_checkpoint(path, width=WIDTH, **options)
    image, factors = images(size, batch=3), torch.tensor([2.0, 4.0, 8.0])
    with torch.no_grad():
        state = network.state_dict()
        pairs = zip(image, factors, strict=True)
        expected = torch.stack([by_hand(state, x, f.item(), **options) for x, f in pairs])
        assert expected.std() > 0.1
        result = network.double()(image.double(), factors.double())
        torch.testing.assert_close(network.float()(image, factors).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-9)


# Noise


def noise_weights(network):
    """The noise's weights by layer, in the order in which they run."""
    weights = {"style_conv1": network.style_conv1.weight}
    return weights | {f"style_convs.{i}": layer.weight for i, layer in enumerate(network.style_convs)}


@torch.no_grad()
def test_noise_is_off_at_first_and_at_will_and_the_stored_one_is_not_read():
    network, image = stirred(), images()
    expected = network(image, 4.0)
    assert torch.equal(network(image, 4.0, randomize_noise=True), expected)
    for weight in noise_weights(network).values():
        weight.fill_(1.0)
    for noise in network.noises.buffers():
        noise.fill_(math.nan)
    assert torch.equal(network(image, 4.0), expected)
    lr = image[..., :16, :16]
    assert torch.equal(network.super_resolve(lr), network.super_resolve(lr))
    assert network(image, 4.0, randomize_noise=True).isfinite().all()


@torch.no_grad()
def test_noise_enters_where_its_weight_is_not_zero():
    network, image, outputs = stirred(), images(), {}
    weights = noise_weights(network)
    for name in weights:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.setdefault(name, []).append(output)
        )
    for number, weight in enumerate(weights.values()):
        outputs.clear()
        weight.fill_(0.5)
        first, second = (network(image, 4.0, randomize_noise=True) for _ in range(2))
        weight.zero_()
        assert not torch.equal(first, second)
        assert [not torch.equal(*outputs[name]) for name in weights] == [i >= number for i in range(5)]


@torch.no_grad()
def test_noise_is_one_value_per_pixel_and_image():
    network, seen = stirred(), []
    layer = network.style_conv1
    layer.activate.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    image = images(batch=1).expand(2, -1, -1, -1)
    network(image, 4.0)
    layer.weight.fill_(0.5)
    network(image, 4.0, randomize_noise=True)
    noise = (seen[1] - seen[0]) / 0.5
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), atol=1e-4, rtol=0)
    assert noise[:, 0].std().item() == pytest.approx(1, abs=0.15)
    assert (noise[0] - noise[1]).abs().max() > 0.5


# The scale factor


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


# Images at the boundary


@torch.no_grad()
def test_output_is_zero_to_one_and_clamped_only_in_super_resolve():
    network = stirred()
    for layer in (network.to_rgb1, *network.to_rgbs):
        layer.modulated_conv.weight.zero_()
        layer.bias.zero_()
    for inside, outside, clamped in ((-1, 0, 0), (0, 0.5, 0.5), (1, 1, 1), (3, 2, 1)):
        network.to_rgbs[-1].bias.fill_(inside)
        assert network(images(), 4.0).unique().tolist() == [outside]
        assert network.super_resolve(images(16)).unique().tolist() == [clamped]


@pytest.mark.parametrize("side", [2, 20, 64])
def test_super_resolve_enlarges_and_finds_the_factor(side):
    network, lr = stirred(), images(side)
    with torch.no_grad():
        expected = network(resize(lr, SIZE), SIZE / side).clamp(0, 1)
    result = network.super_resolve(lr)
    assert torch.equal(result, expected)
    assert not result.requires_grad


REFUSED_LRS = [
    (torch.rand(1, 1, 8, 8), "square RGB images"),
    (torch.rand(1, 3, 8, 6), "square RGB images"),
    (torch.rand(0, 3, 8, 8), "square RGB images"),
    (torch.rand(1, 3, 128, 128), "at most 64"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point"),
    (torch.full((1, 3, 8, 8), 2.0), r"\[0, 1\]"),
    (torch.full((1, 3, 8, 8), math.nan), "NaN"),
]


def test_what_does_not_fit_is_refused():
    network = stirred()
    for lr, message in REFUSED_LRS:
        with pytest.raises(ValueError, match=f"lr: expected .*{message}"):
            network.super_resolve(lr)
    for shape in ((1, 3, 32, 32), (3, 64, 64), (1, 4, 64, 64)):
        with pytest.raises(ValueError, match=r"image: expected RGB images of the shape \(B, 3, 64, 64\)"):
            network(torch.rand(shape), 4.0)
    for factor in (torch.ones(3), torch.ones(2, 1), torch.ones(0)):
        with pytest.raises(ValueError, match="scale_factor: expected a number or 2 of them"):
            network(images(), factor)
    for options in ({"size": 96}, {"size": 2048}, {"width": 0}, {"blend": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
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
