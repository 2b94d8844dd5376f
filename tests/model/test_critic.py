import naive_layers as naive
import numpy as np
import pytest
import torch

from rpf_lightning.model.critic import Critic

SIDES = [8, 16, 32, 64, 128, 256, 512, 1024]
CHANNELS = [32, 64, 128, 256, 512, 512, 512, 512]


def meta_critic(side):
    with torch.device("meta"):
        return Critic(side)


@pytest.mark.parametrize(("side", "pairs"), [(side, i + 1) for i, side in enumerate(SIDES)])
def test_parameters(side, pairs):
    widths = CHANNELS[:pairs]
    expected = 0
    for before, width in zip([3, *widths], widths, strict=False):
        expected += 9 * before * width + width + 9 * width * width + width
    expected += (4 * 4 * widths[-1] + 1) * 1024 + 1024 + 1
    assert sum(p.numel() for p in meta_critic(side).parameters()) == expected


@pytest.mark.parametrize("side", SIDES)
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


@pytest.mark.parametrize("training", [True, False])
def test_score_of_a_sample_does_not_depend_on_the_others(training):
    critic = Critic(16).double().train(training)
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    alone = critic(image)
    together = critic(torch.cat([image, 100 * torch.randn(4, 3, 16, 16, dtype=torch.float64)]))
    torch.testing.assert_close(together[:1], alone, atol=1e-12, rtol=0)
    assert (together[1:] - alone).abs().min() > 1e-3


def test_score_is_not_bounded():
    critic = Critic(16)
    with torch.no_grad():
        critic.score.bias.fill_(50.0)
    assert (critic(torch.rand(2, 3, 16, 16)) > 40).all()
