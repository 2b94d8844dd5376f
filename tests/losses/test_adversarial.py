"""Wasserstein losses, the gradient penalty against two linear critics (docs/method.md section 6), logistic and R1."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rpf_lightning.losses import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    logistic_critic_loss,
    logistic_generator_loss,
    r1_penalty,
)
from rpf_lightning.model import Critic, StyleGAN2Critic


class Linear(nn.Module):
    """D(x) = <w, x> with a given ||w||_2, the same gradient everywhere."""

    def __init__(self, shape: tuple[int, ...], length: float) -> None:
        super().__init__()
        w = torch.randn(shape[1:], generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w / w.norm() * length)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).flatten(1).sum(1, keepdim=True)


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 4, 32)])
def test_norms_are_over_all_dimensions_of_a_sample_and_r1_is_the_squared_length(
    shape: tuple[int, ...],
) -> None:
    root = math.sqrt(math.prod(shape[1:]))
    unit, short = Linear(shape, 1.0), Linear(shape, 1 / root)
    with torch.no_grad():  # as in validation
        assert gradient_penalty(unit, *pair(shape), "l2").item() < 1e-10
        assert gradient_penalty(short, *pair(shape)).item() < 1e-10  # rms is the default
        assert gradient_penalty(unit, *pair(shape), "rms").item() == pytest.approx((root - 1) ** 2, rel=1e-4)
        assert gradient_penalty(short, *pair(shape), "l2").item() == pytest.approx(
            (1 / root - 1) ** 2, rel=1e-4
        )
        assert r1_penalty(Linear(shape, 3.0), pair(shape)[0]).item() == pytest.approx(9, rel=1e-5)
    # what rms is for: the critic pulls as hard as mean L1
    image = pair(shape)[0].requires_grad_()
    (adversarial,) = torch.autograd.grad(generator_loss(short(image)), image)
    (l1,) = torch.autograd.grad((image - 2).abs().mean(), image)
    assert adversarial.norm().item() == pytest.approx(l1.norm().item(), rel=1e-5)


def test_each_sample_has_its_own_norm() -> None:
    def critic(x: Tensor) -> Tensor:  # gradient of length 1 in the first sample and 3 in the second
        weights = torch.tensor([1.0, 3.0])[:, None, None, None] / math.sqrt(3 * 8 * 8)
        return (x * weights).flatten(1).sum(1, keepdim=True)

    value = gradient_penalty(critic, *pair((2, 3, 8, 8)), "l2")
    assert value.item() == pytest.approx((0 + 4) / 2, rel=1e-5)


def test_no_gradient_to_the_images_and_one_to_the_critic() -> None:
    real, fake = (x.requires_grad_() for x in pair((2, 3, 16, 16)))
    torch.manual_seed(0)
    critic = Critic(16)
    gradient_penalty(critic, real, fake).backward()
    assert real.grad is None
    assert fake.grad is None
    for conv in critic.convolutions:
        assert conv.weight.grad.abs().sum() > 0
    assert critic.score.weight.grad.abs().sum() > 0


def test_gradient_to_the_critic_is_the_derivative_of_the_formula() -> None:
    shape = (2, 3, 8, 8)
    critic = Linear(shape, 2.0)
    gradient_penalty(critic, *pair(shape), "l2").backward()
    w = critic.w.detach()
    torch.testing.assert_close(critic.w.grad, 2 * (w.norm() - 1) * w / w.norm())


def test_fp32_under_autocast() -> None:
    seen: list[torch.dtype] = []
    torch.manual_seed(0)
    critic = Critic(16)
    critic.convolutions[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    real, fake = pair((2, 3, 16, 16))
    torch.manual_seed(3)
    expected = gradient_penalty(critic, real, fake)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        value = gradient_penalty(critic, real, fake)
    assert seen == [torch.float32, torch.float32]
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert gradient_penalty(critic, real, fake.bfloat16()).dtype == torch.float32


def test_points_lie_between_real_and_fake_each_at_its_own_place() -> None:
    points: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        points.append(x.detach())
        return x.flatten(1).sum(1, keepdim=True)

    torch.manual_seed(0)
    real, fake = pair((64, 3, 8, 8))
    gradient_penalty(critic, real, fake)
    share = (points[0] - real) / (fake - real)
    near = (fake - real).abs() > 0.2  # the quotient is ill-conditioned elsewhere
    first = torch.stack([s[n].median() for s, n in zip(share, near, strict=True)])
    assert (share - first[:, None, None, None])[near].abs().max() < 1e-4  # one share per sample
    assert 0 <= first.min() < 0.15
    assert 0.85 < first.max() <= 1
    assert first.unique().numel() == 64


def test_signs() -> None:
    real, fake = torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [-2.0]])
    assert critic_loss(real, fake).item() == pytest.approx(-0.5 - 4)
    assert generator_loss(fake).item() == pytest.approx(0.5)


def test_r1_of_a_quadratic_critic_is_taken_at_the_real_images() -> None:
    real = pair((3, 3, 8, 8))[0]
    real[1] *= 5  # a mean of squared lengths is not the square of a mean
    value = r1_penalty(lambda x: x.square().flatten(1).sum(1, keepdim=True), real)
    lengths = [(2 * image).norm().item() for image in real]
    assert value.item() == pytest.approx(sum(length**2 for length in lengths) / 3, rel=1e-5)


@pytest.mark.parametrize("make", [Critic, lambda side: StyleGAN2Critic(side, width=1 / 32)])
def test_r1_gradient_reaches_every_weight_of_the_critic_and_no_image(
    make: Callable[[int], nn.Module],
) -> None:
    torch.manual_seed(0)
    critic = make(16)
    real = pair((3, 3, 16, 16))[0].requires_grad_()
    r1_penalty(critic, real).backward()
    assert real.grad is None
    for name, parameter in critic.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_r1_is_fp32_under_autocast() -> None:
    seen: list[torch.dtype] = []
    torch.manual_seed(0)
    critic = StyleGAN2Critic(16, width=1 / 32)
    for block in critic.blocks:
        block.conv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    real = pair((2, 3, 16, 16))[0]
    expected = r1_penalty(critic, real)
    with torch.autocast("cpu", torch.bfloat16):
        value = r1_penalty(critic, real)
    assert seen == [torch.float32] * 4
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert r1_penalty(critic, real.bfloat16()).dtype == torch.float32
    assert r1_penalty(critic.double(), real.double()).dtype == torch.float64


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def mean(scores: Tensor, function: Callable[[float], float]) -> float:
    return sum(map(function, scores.flatten().tolist())) / len(scores)


def test_logistic_losses_equal_their_formulas() -> None:
    real, fake = torch.tensor([[3.0], [-0.5]]), torch.tensor([[1.0], [-2.0]])

    expected = (softplus(1) + softplus(-2)) / 2 + (softplus(-3) + softplus(0.5)) / 2
    assert logistic_critic_loss(real, fake).item() == pytest.approx(expected)
    assert logistic_generator_loss(fake).item() == pytest.approx((softplus(-1) + softplus(2)) / 2)
    assert logistic_critic_loss(torch.zeros(2, 1), torch.zeros(2, 1)).item() == pytest.approx(2 * math.log(2))


def test_logistic_losses_pull_the_scores_the_right_way_and_saturate() -> None:
    real, fake = (
        torch.tensor([[0.0], [40.0]]).requires_grad_(),
        torch.tensor([[0.0], [-40.0]]).requires_grad_(),
    )
    logistic_critic_loss(real, fake).backward()
    assert real.grad.flatten().tolist() == pytest.approx([-0.25, 0])
    assert fake.grad.flatten().tolist() == pytest.approx([0.25, 0])
    fake.grad = None
    logistic_generator_loss(fake).backward()
    assert fake.grad.flatten().tolist() == pytest.approx([-0.25, -0.5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_are_taken_in_at_least_fp32(dtype: torch.dtype) -> None:
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    real = torch.tensor([[1.5], [1.5], [1.5078125]]).to(dtype)  # exact in bf16, their mean is not
    fake = torch.tensor([[1.0], [1.0], [1.0078125]]).to(dtype)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            values = {
                critic_loss(real, fake): mean(fake, float) - mean(real, float),
                generator_loss(fake): -mean(fake, float),
                logistic_critic_loss(real, fake): mean(fake, softplus) + mean(-real, softplus),
                logistic_generator_loss(fake): mean(-fake, softplus),
            }
        for value, expected in values.items():
            assert value.dtype == wanted
            assert value.item() == pytest.approx(expected, rel=1e-6)
