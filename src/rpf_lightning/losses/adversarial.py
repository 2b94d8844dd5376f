"""Adversarial losses: Wasserstein with gradient penalty, logistic with R1 penalty.

The first are the paper's (III-C, after WGAN-GP and SRNTT), the others GCFSR's (after StyleGAN2). Scores in
half precision give losses in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rpf_lightning.model.resize import at_least_fp32, full_precision

PenaltyNorm = Literal["rms", "l2"]


def critic_loss(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)]: minus the critic's estimate of the Wasserstein distance.

    Args:
        real_score: (B, 1) scores of real images.
        fake_score: (B, 1) scores of generated images.
    """
    return at_least_fp32(fake_score).mean() - at_least_fp32(real_score).mean()


def generator_loss(fake_score: Tensor) -> Tensor:
    """-E[D(fake)], for scores (B, 1)."""
    return -at_least_fp32(fake_score).mean()


def logistic_critic_loss(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """E[softplus(D(fake))] + E[softplus(-D(real))]: the cross-entropy of telling real from generated.

    Differs from the paper, which has the Wasserstein form only.

    Args:
        real_score: (B, 1) scores of real images.
        fake_score: (B, 1) scores of generated images.

    Returns:
        A scalar, positive; 2 ln 2 where the critic cannot tell.
    """
    return F.softplus(at_least_fp32(fake_score)).mean() + F.softplus(-at_least_fp32(real_score)).mean()


def logistic_generator_loss(fake_score: Tensor) -> Tensor:
    """E[softplus(-D(fake))], for scores (B, 1): the non-saturating loss, positive."""
    return F.softplus(-at_least_fp32(fake_score)).mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, norm: PenaltyNorm = "rms"
) -> Tensor:
    """Mean of ``(||grad D(x)|| - 1)^2`` at random points between real and fake images, in fp32.

    The norm is taken over all dimensions of a sample. ``"rms"`` multiplies it by sqrt(numel): the critic's
    gradient then has the size of the mean L1's, at every level. Differs from the paper, which prints no
    norm: with ``"l2"``, the literal one, the adversarial gradient exceeds the mean L1's sqrt(numel) times,
    55 at side 32 and 1774 at side 1024.

    Args:
        critic: Maps (B, C, S, S) to (B, 1).
        real: (B, C, S, S).
        fake: (B, C, S, S); gradients do not flow back to it.
        norm: ``"rms"`` or ``"l2"``.

    Returns:
        A scalar, not weighted.
    """
    with full_precision(real.device), torch.enable_grad():
        real, fake = at_least_fp32(real.detach()), at_least_fp32(fake.detach())
        mix = torch.rand(real.shape[0], 1, 1, 1, device=real.device, dtype=real.dtype)
        length = _gradient(critic, torch.lerp(real, fake, mix)).norm(dim=1)
        if norm == "rms":
            length = length * real[0].numel() ** 0.5
        return (length - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Mean of ``||grad D(x)||_2^2`` at real images, in fp32, over all dimensions of a sample.

    Differs from the paper: it belongs to the logistic losses. The usual weight is gamma / 2, which the caller
    applies. With a critic that has minibatch standard deviation, D is the sum of the batch's scores, as in
    StyleGAN2.

    Args:
        critic: Maps (B, C, S, S) to (B, 1).
        real: (B, C, S, S), RGB nominally in [0, 1]; gradients do not flow back to it.

    Returns:
        A scalar, not weighted.
    """
    with full_precision(real.device), torch.enable_grad():
        return _gradient(critic, at_least_fp32(real.detach())).square().sum(1).mean()


def _gradient(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The critic's gradients at (B, C, S, S), flat (B, C * S * S), themselves differentiable."""
    points = points.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return gradient.flatten(1)
