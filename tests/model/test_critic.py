import math

import naive_layers as naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rpf_lightning.model import Critic, StyleGAN2Critic
from rpf_lightning.model.critic import minibatch_std

SIDES = [8, 16, 32, 64, 128, 256, 512, 1024]
CHANNELS = [32, 64, 128, 256, 512, 512, 512, 512]


def meta_critic(side):
    with torch.device("meta"):
        return Critic(side)


@pytest.mark.parametrize("side", [8, 1024])
def test_reaches_4x4(side):
    critic = meta_critic(side)
    shapes = []
    for conv in critic.convolutions:
        conv.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    assert critic(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1)
    pairs = SIDES.index(side) + 1
    expected = []
    for i, width in enumerate(CHANNELS[:pairs]):
        expected += [(width, side // 2**i, side // 2**i), (width, side // 2 ** (i + 1), side // 2 ** (i + 1))]
    assert shapes == expected
    assert shapes[-1][1:] == (4, 4)


def test_equals_the_network_written_out():
    critic = naive.stir(Critic(8).double())
    image = torch.rand(3, 8, 8, dtype=torch.float64)

    def leaky(value):
        return np.where(value > 0, value, 0.2 * value)

    value = image.numpy()
    for layer, stride in zip(critic.convolutions, (1, 2), strict=True):
        value = naive.conv(value, naive.array(layer.weight))[:, ::stride, ::stride]
        value = leaky(value + naive.array(layer.bias)[:, None, None])
    value = leaky(naive.array(critic.hidden.weight) @ value.ravel() + naive.array(critic.hidden.bias))
    value = naive.array(critic.score.weight) @ value + naive.array(critic.score.bias)
    np.testing.assert_allclose(critic(image[None])[0].detach().numpy(), value, atol=1e-10)


def test_score_of_a_sample_does_not_depend_on_the_others():
    critic = Critic(16).double()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    alone = critic(image)
    together = critic(torch.cat([image, 100 * torch.randn(4, 3, 16, 16, dtype=torch.float64)]))
    torch.testing.assert_close(together[:1], alone, atol=1e-12, rtol=0)
    assert (together[1:] - alone).abs().min() > 1e-3


WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


def count(critic):
    return sum(p.numel() for p in critic.parameters())


@pytest.mark.parametrize(("side", "width"), [(8, 1.0), (1024, 0.25)])
def test_stylegan2_parameters(side, width):
    c = {s: int(n * width) for s, n in WIDTHS.items()}
    expected = 3 * c[side] + c[side]
    for s in (2**i for i in range(3, int(math.log2(side)) + 1)):
        first = 9 * c[s] * c[s] + c[s]
        second = 9 * c[s] * c[s // 2] + c[s // 2]
        expected += first + second + c[s] * c[s // 2]  # the skip has no bias
    expected += 9 * (c[4] + 1) * c[4] + c[4]
    expected += (16 * c[4] + 1) * c[4] + c[4] + 1
    with torch.device("meta"):
        critic = StyleGAN2Critic(side, width)
    assert count(critic) == expected
    assert critic(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1)


def test_stylegan2_at_1024_has_as_many_parameters_as_the_published_network():
    with torch.device("meta"):
        assert count(StyleGAN2Critic(1024)) == 29_012_513


def written_out(critic, image):
    """The same scores from plain functions and the raw weights, one group of samples."""
    weights = {name: p.detach() for name, p in critic.named_parameters()}
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=image.dtype) / 8

    def blur(x, pad):
        x = F.conv2d(F.pad(x, (pad,) * 4).flatten(0, 1)[:, None], torch.outer(taps, taps)[None, None])
        return x.unflatten(0, (len(image), -1))[:, :, 0]

    def conv(x, name, **kwargs):
        weight = weights[f"{name}.weight"]
        scale = weight[0].numel() ** -0.5
        return F.conv2d(x, weight * scale, weights.get(f"{name}.bias"), **kwargs)

    def linear(x, name):
        weight = weights[f"{name}.weight"]
        return x @ weight.T / weight.shape[1] ** 0.5 + weights[f"{name}.bias"]

    def act(x):
        return 2**0.5 * torch.where(x > 0, x, 0.2 * x)

    x = act(conv(image * 2 - 1, "from_rgb"))
    for i in range(len(critic.blocks)):
        y = act(conv(x, f"blocks.{i}.conv", padding=1))
        y = act(conv(blur(y, 2), f"blocks.{i}.stride", stride=2))
        x = (y + conv(blur(x, 1), f"blocks.{i}.skip", stride=2)) / 2**0.5
    centred = x - sum(x) / len(x)
    std = ((centred**2).sum(0) / len(x) + 1e-8).sqrt().mean()
    x = act(conv(torch.cat([x, torch.full_like(x[:, :1], std.item())], 1), "conv", padding=1))
    return linear(act(linear(x.flatten(1), "hidden")), "score")


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_stylegan2_equals_the_network_written_out(batch):
    torch.manual_seed(0)
    critic = naive.stir(StyleGAN2Critic(32, width=1 / 64).double())
    image = torch.rand(batch, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(critic(image), written_out(critic, image), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("batch", "groups"), [(1, [1]), (2, [2]), (3, [3]), (4, [4]), (5, [3, 2]), (8, [4, 4]), (9, [3, 3, 3])]
)
def test_minibatch_std_is_that_of_each_group(batch, groups):
    torch.manual_seed(0)
    x = torch.randn(batch, 5, 4, 4, dtype=torch.float64)
    result = minibatch_std(x)
    assert result.shape == (batch, 6, 4, 4)
    assert torch.equal(result[:, :5], x)
    start = 0
    for size in groups:
        expected = x[start : start + size].numpy().std(0).mean()
        np.testing.assert_allclose(result[start : start + size, 5].numpy(), expected, atol=2e-4)
        assert bool(expected > 0.3) is (size > 1)
        start += size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_minibatch_std_of_equal_images_is_zero(dtype):
    x = torch.randn(1, 8, 4, 4).to(dtype).expand(4, -1, -1, -1).clone().requires_grad_()
    result = minibatch_std(x)
    assert result.dtype == dtype
    assert result[:, 8].abs().max() < 1.01e-4
    (gradient,) = torch.autograd.grad(result[:, 8].sum(), x)
    assert gradient.isfinite().all()  # the root has no derivative at zero


def test_minibatch_std_is_taken_in_fp32():
    x = 400 * torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    value = minibatch_std(x)[0, 8, 0, 0].item()  # fp16 variances would be infinite
    assert value == pytest.approx(x.double().std(0, correction=0).mean().item(), rel=2**-10)


@pytest.mark.parametrize("batch", [1, 5])
def test_stylegan2_takes_every_batch_size_under_autocast_too(batch):
    torch.manual_seed(0)
    critic = StyleGAN2Critic(16, width=1 / 32)
    image = torch.rand(batch, 3, 16, 16)
    score = critic(image)
    with torch.autocast("cpu", torch.bfloat16):
        low = critic(image)
    assert score.shape == (batch, 1)
    assert score.isfinite().all()
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), score, atol=0.03, rtol=0.03)


def test_penalty_carries_no_zeros_through_the_critic():
    """Its second derivative is exact, and the forward pass is not differentiated a second time for nothing."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Backwards(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func.overloadpacket is torch.ops.aten.convolution_backward
            return func(*args, **(kwargs or {}))

    def plain(critic, image):
        x = image
        for conv in critic.convolutions:
            x = F.leaky_relu(conv(x), 0.2)
        return critic.score(F.leaky_relu(critic.hidden(x.flatten(1)), 0.2))

    torch.manual_seed(0)
    critic = Critic(32).double()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    gradients, counts = [], []
    for score in (critic, lambda x: plain(critic, x)):
        critic.zero_grad()
        given = image.clone().requires_grad_()
        with Backwards() as mode:
            (gradient,) = torch.autograd.grad(score(given).sum(), given, create_graph=True)
            gradient.square().sum().backward()
        gradients.append([conv.weight.grad.clone() for conv in critic.convolutions])
        counts.append(mode.count)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert counts[0] < counts[1]
