"""The two kinds of critic with their losses, and how strongly each term pulls at the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rpf_lightning.losses.adversarial import (
    PenaltyNorm,
    critic_loss,
    generator_loss,
    gradient_penalty,
    logistic_critic_loss,
    logistic_generator_loss,
    r1_penalty,
)
from rpf_lightning.model import Critic, RPFModel, StyleGAN2Critic

CriticKind = Literal["srntt", "stylegan2"]


class Wasserstein:
    """SRNTT's critic with the gradient penalty (paper III-C).

    Args:
        penalty_weight: lambda.
        penalty_norm: See `gradient_penalty`.
    """

    name = "srntt"
    betas = (0.0, 0.9)

    def __init__(self, penalty_weight: float, penalty_norm: PenaltyNorm) -> None:
        self.penalty_weight, self.penalty_norm = penalty_weight, penalty_norm

    def critic(self, model: RPFModel, side: int) -> nn.Module:
        """Make the critic for images of a side."""
        return Critic(side).to(memory_format=torch.channels_last)

    def critic_terms(self, critic: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The critic's loss, its weighted penalty, and how much more it likes real images."""
        loss = critic_loss(critic(real), critic(fake))
        penalty = gradient_penalty(critic, real, fake, self.penalty_norm)
        return loss, self.penalty_weight * penalty, -loss

    def generator_loss(self, score: Tensor) -> Tensor:
        """What the generator minimises, from scores (B, 1)."""
        return generator_loss(score)


class Logistic:
    """StyleGAN2's discriminator with the logistic loss and R1: GCFSR's recipe for the refinement.

    Args:
        penalty_weight: gamma of gamma/2 * R1, for images in [-1, 1] as there.
        penalty_norm: Not used; R1 has no choice of norm.
    """

    name = "stylegan2"
    betas = (0.0, 0.99)

    def __init__(self, penalty_weight: float, penalty_norm: PenaltyNorm) -> None:
        self.penalty_weight = penalty_weight

    def critic(self, model: RPFModel, side: int) -> nn.Module:
        """Make the critic for images of a side, as wide as the model's refinement."""
        return StyleGAN2Critic(side, model.config.block_widths[model.sides.index(side)])

    def critic_terms(self, critic: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The critic's loss, its weighted penalty, and how much more it likes real images."""
        scores = critic(real), critic(fake)
        penalty = (
            self.penalty_weight / 2 * r1_penalty(critic, real) / 4
        )  # a step in [-1, 1] is half of one in [0, 1]
        return logistic_critic_loss(*scores), penalty, (scores[0].float() - scores[1].float()).mean()

    def generator_loss(self, score: Tensor) -> Tensor:
        """What the generator minimises, from scores (B, 1)."""
        return logistic_generator_loss(score)


ADVERSARIES: dict[str, type[Wasserstein] | type[Logistic]] = {"srntt": Wasserstein, "stylegan2": Logistic}


def gradient_norms(terms: Mapping[str, Tensor], at: Tensor) -> dict[str, Tensor]:
    """Norm of the first term's gradient at an image, and those of the other terms relative to it.

    Args:
        terms: Weighted scalars; their graph is kept.
        at: What they were computed from; the first one must depend on it.

    Returns:
        ``{first: norm, "<other>_relative": ratio, ...}``; all finite, also where the first norm is zero.
    """
    norms: dict[str, Tensor] = {}
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, at, retain_graph=True, allow_unused=len(norms) > 0)
        norms[name] = at.new_zeros(()) if gradient is None else gradient.float().norm()
    first, *others = norms
    unit = norms[first].clamp_min(torch.finfo(torch.float32).tiny)
    highest = torch.finfo(torch.float32).max
    return {
        first: norms[first],
        **{f"{name}_relative": (norms[name] / unit).clamp_max(highest) for name in others},
    }
