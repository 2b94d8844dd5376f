"""The two kinds of critic, with their losses and penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

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
from rpf_lightning.model import Critic, StyleGAN2Critic

CriticKind = Literal["srntt", "stylegan2"]


class Adversary(NamedTuple):
    """A kind of critic.

    Attributes:
        make: Makes one, for images of a side and a refinement of a width.
        betas: Adam's.
        critic_loss: Of the scores (B, 1) of real and of generated images.
        generator_loss: Of the latter.
        penalty: Of the critic at real and generated images, to be weighted.
    """

    make: Callable[[int, float], nn.Module]
    betas: tuple[float, float]
    critic_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    penalty: Callable[[nn.Module, Tensor, Tensor, PenaltyNorm], Tensor]


ADVERSARIES = {
    # SRNTT's critic, the paper's (III-C)
    "srntt": Adversary(
        make=lambda side, width: Critic(side).to(memory_format=torch.channels_last),
        betas=(0.0, 0.9),
        critic_loss=critic_loss,
        generator_loss=generator_loss,
        penalty=gradient_penalty,
    ),
    # GCFSR's recipe; its gamma/2 * R1 is of images in [-1, 1], a step there is half of one in [0, 1]
    "stylegan2": Adversary(
        make=StyleGAN2Critic,
        betas=(0.0, 0.99),
        critic_loss=logistic_critic_loss,
        generator_loss=logistic_generator_loss,
        penalty=lambda critic, real, fake, norm: r1_penalty(critic, real) / 8,
    ),
}
