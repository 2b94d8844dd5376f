"""Losses of the paper's section III-C."""

from rpf_lightning.losses.adversarial import critic_loss, generator_loss, gradient_penalty
from rpf_lightning.losses.identity import IdentityLoss
from rpf_lightning.losses.perceptual import AlexNetFeatures, PerceptualLoss
from rpf_lightning.losses.reconstruction import masked_l1

__all__ = [
    "AlexNetFeatures",
    "IdentityLoss",
    "PerceptualLoss",
    "critic_loss",
    "generator_loss",
    "gradient_penalty",
    "masked_l1",
]
