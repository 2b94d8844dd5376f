"""Losses of the paper's section III-C."""

from rpf_lightning.losses.adversarial import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    logistic_critic_loss,
    logistic_generator_loss,
    r1_penalty,
)
from rpf_lightning.losses.identity_loss import IdentityLoss
from rpf_lightning.losses.perceptual_loss import AlexNetFeatures, PerceptualLoss
from rpf_lightning.losses.reconstruction import masked_l1

__all__ = [
    "AlexNetFeatures",
    "IdentityLoss",
    "PerceptualLoss",
    "critic_loss",
    "generator_loss",
    "gradient_penalty",
    "logistic_critic_loss",
    "logistic_generator_loss",
    "masked_l1",
    "r1_penalty",
]
