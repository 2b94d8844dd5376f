"""The terms of the stages whose output is an image: adversarial with its critic, AlexNet, ArcFace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.losses import IdentityLoss, PerceptualLoss
from rpf_lightning.losses.adversarial import (
    PenaltyNorm,
    critic_loss,
    generator_loss,
    gradient_penalty,
    logistic_critic_loss,
    logistic_generator_loss,
    r1_penalty,
)
from rpf_lightning.losses.identity_loss import IdentityNorm
from rpf_lightning.model import Critic, StyleGAN2Critic
from rpf_lightning.stages.base import Outputs, RPFStage

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


class ImageTerms(RPFStage):
    """Adds these terms to a stage, ``class Mine(ImageTerms, BlockStage)``; in training only.

    Args:
        args: `model_dir`, `block` and `network` of `RPFStage`.
        adversarial_weight: Weight of the adversarial term; 0 trains without a critic.
        perceptual_weight: Weight of the AlexNet term (eq. 8); 0 loads no AlexNet.
        identity_weight: Weight of the ArcFace term (eq. 9); 0 loads no ArcFace. insightface's models are for
            non-commercial research only.
        identity_norm: See `IdentityLoss`.
        perceptual_norm: See `PerceptualLoss`.
        perceptual_jitter: See `PerceptualLoss`.
        critic: ``"srntt"``: Wasserstein with gradient penalty, as in the paper; ``"stylegan2"``: StyleGAN2's
            discriminator with the logistic loss and R1, GCFSR's recipe for the refinement.
        critic_learning_rate: Adam's learning rate for the critic, 1e-4 in the paper; betas (0, 0.9), or (0, 0.99)
            for ``"stylegan2"``, whose equalized weights want 2e-3.
        penalty_weight: lambda of the gradient penalty; for ``"stylegan2"`` gamma of gamma/2 * R1.
        penalty_norm: See `gradient_penalty`; ``"stylegan2"`` has none.
        kwargs: Further arguments of the stage.

    Raises:
        FileNotFoundError: If the weights of a term's network are missing, or as the stage.
    """

    identity_side = 0
    """Smallest side of images that ArcFace's term looks at."""

    def __init__(
        self,
        *args: Any,
        adversarial_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        identity_weight: float = 0.0,
        identity_norm: IdentityNorm = "l1",
        perceptual_norm: Literal["mse", "l2"] = "mse",
        perceptual_jitter: int = 1,
        critic: CriticKind = "srntt",
        critic_learning_rate: float = 1e-4,
        penalty_weight: float = 10.0,
        penalty_norm: PenaltyNorm = "rms",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        self.identity_weight = identity_weight
        self.critic_learning_rate = critic_learning_rate
        self.penalty_weight = penalty_weight
        self.penalty_norm = penalty_norm
        self.adversary = ADVERSARIES[critic]
        width = self.model.config.block_widths[self.block - 1]
        self.critic = self.adversary.make(self.side, width) if adversarial_weight else None
        jitter = perceptual_jitter
        self.perceptual = PerceptualLoss(perceptual_norm, jitter=jitter) if perceptual_weight else None
        self.identity = IdentityLoss(norm=identity_norm) if identity_weight else None

    def critic_images(self, batch: ReferenceBatch, image: Tensor) -> tuple[Tensor, Tensor]:
        """The real and the generated images as the critic sees them."""
        return batch.gt, image

    def feature_terms(self, image: Tensor, gt: Tensor) -> Outputs:
        """The weighted terms that look through a network of others, AlexNet (eq. 8) and ArcFace (eq. 9)."""
        terms = {}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(image, gt)
        if self.identity is not None and gt.shape[-1] >= self.identity_side:
            terms["identity"] = self.identity_weight * self.identity(image, gt)
        return terms

    def training_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """The stage's own terms and these."""
        image = outputs["output"]
        terms = {**super().training_terms(batch, outputs), **self.feature_terms(image, batch.gt)}
        if self.critic is not None:
            score = self.critic(self.critic_images(batch, image)[1])
            terms["adversarial"] = self.adversarial_weight * self.adversary.generator_loss(score)
        return terms

    def critic_step(self, batch: ReferenceBatch, outputs: Outputs, last: bool) -> Outputs:
        """Train the critic on real and generated images."""
        if self.critic is None:
            return {}
        real, fake = self.critic_images(batch, outputs["output"].detach())
        optimizer = self.all_optimizers()[1]
        with self.toggled_optimizer(optimizer):
            scores = self.critic(real), self.critic(fake)
            loss = self.adversary.critic_loss(*scores)
            penalty = self.penalty_weight * self.adversary.penalty(self.critic, real, fake, self.penalty_norm)
            self.update(optimizer, loss + penalty, last)
        estimate = scores[0].float().mean() - scores[1].float().mean()  # how much more it likes real images
        return {"critic_estimate": estimate, "penalty": penalty, "critic_loss": loss + penalty}

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for what is trained, and for the critic if there is one."""
        optimizers = super().configure_optimizers()
        if self.critic is not None:
            betas = self.adversary.betas
            optimizers.append(Adam(self.critic.parameters(), lr=self.critic_learning_rate, betas=betas))
        return optimizers

    def on_fit_start(self) -> None:
        """Say the licence of ArcFace's weights, after what the stage does."""
        super().on_fit_start()
        if self.identity is not None:
            rank_zero_info("identity: insightface's models are for non-commercial research only")
