"""What the three stages share in training: terms, two optimizers, the training step, validation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Adam, Optimizer
from torchmetrics import Metric, MetricCollection

from rpf_lightning.data.records import FaceBatch, ReferenceBatch
from rpf_lightning.losses import IdentityLoss, PerceptualLoss
from rpf_lightning.losses.adversarial import PenaltyNorm
from rpf_lightning.losses.identity import IdentityNorm
from rpf_lightning.metrics import PSNR, SSIM, LRConsistency, PSNRFace
from rpf_lightning.model import RPFConfig
from rpf_lightning.model.resize import full_precision, resize
from rpf_lightning.model.rpf import Alignment
from rpf_lightning.stages.adversary import ADVERSARIES, CriticKind, gradient_norms
from rpf_lightning.stages.finite import FiniteGuard, names
from rpf_lightning.stages.model_dir import DirectoryStage
from rpf_lightning.stages.pictures import draw_stage
from rpf_lightning.stages.prefix_cache import PrefixCache, open_prefix_cache
from rpf_lightning.stages.random_state import gather_random_states, restore_random_state

Outputs = dict[str, Tensor]
PRECISIONS = ("32-true", "bf16-mixed")


class RPFStage(DirectoryStage):
    """Trains one module of one reconstruction block of the model in a model directory.

    Checkpoints hold what `DirectoryStage` says, the optimizers and the random state. With or without
    `FreezeEarlierBlocks` only the trained module has an optimizer.

    Subclasses say which module they train, what it computes and its loss terms. Manual optimization: critic
    backward and step, then generator backward and step.

    Args:
        model_dir: The model directory.
        block: n, counted from 1.
        network: The structure of the model, for a directory that holds none yet.
        learning_rate: Adam's learning rate; betas (0.9, 0.999).
        decay: ``"cosine"`` lowers the learning rate to zero over the fit; the paper has no schedule.
        accumulate: Batches whose gradients are averaged before each step. (The Trainer's own argument raises
            with two optimizers.)
        cache_prefix: Keep x^(n) of the training samples on disk, rounded to 8 bit (see `PrefixCache`).
        entry_fraction: Share of the training samples for which x^(n) is the GT reduced to its side, in place of
            what the earlier blocks make: what the block gets where inference enters at it. Not in the paper. Without
            it the later blocks have never seen a sharp input, and may blur one. Block 1 always gets the LR.
        gradient_norms_every: Batches between two logs of every term's gradient norm at the output, relative to
            the reconstruction term's; 0 never. It costs one more backward pass per term.
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

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None, or weights are missing.
        ValueError: If `block` is not one of the model's, `network` differs from the model's, or `accumulate` is
            not positive, or `entry_fraction` not in [0, 1].
    """

    needs_references = True
    """Whether batches must be a `ReferenceBatch`; a `FaceBatch` serves stage 1."""
    needs_warped_reference = False
    """Whether they must hold r_warp (eq. 3), which takes time to make."""
    identity_side = 0
    """Smallest side of images that ArcFace's term looks at."""
    takes_several = False
    """Whether they may hold several references per sample."""
    monitor: tuple[str, Literal["min", "max"]] = ("val/psnr", "max")
    """The validation metric by which the best checkpoint is kept."""
    output_title = "output"
    """What the trained module makes, in pictures."""

    def __init__(
        self,
        model_dir: str,
        block: int = 1,
        network: RPFConfig | None = None,
        learning_rate: float = 1e-4,
        decay: Literal["none", "cosine"] = "none",
        accumulate: int = 1,
        cache_prefix: bool = True,
        entry_fraction: float = 0.0,
        gradient_norms_every: int = 100,
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
    ) -> None:
        super().__init__(model_dir, block, network)
        self.automatic_optimization = False
        if accumulate < 1:
            raise ValueError(f"accumulate: expected a positive number of batches, got {accumulate}")
        if not 0 <= entry_fraction <= 1:
            raise ValueError(f"entry_fraction: expected a share in [0, 1], got {entry_fraction}")
        self.learning_rate = learning_rate
        self.decay = decay
        self.accumulate = accumulate
        self.cache_prefix = cache_prefix
        self.entry_fraction = entry_fraction
        self.gradient_norms_every = gradient_norms_every
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        self.identity_weight = identity_weight
        self.critic_learning_rate = critic_learning_rate
        self.adversary = ADVERSARIES[critic](penalty_weight, penalty_norm)
        self.critic = self.adversary.critic(self.model, self.side) if adversarial_weight else None
        self.perceptual = (
            PerceptualLoss(perceptual_norm, jitter=perceptual_jitter) if perceptual_weight else None
        )
        self.identity = IdentityLoss(norm=identity_norm) if identity_weight else None
        self.val_metrics = MetricCollection(dict(self.metrics()), prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.generator_steps = 0  # the trainer's global_step counts the critic's steps as well
        self.mid_accumulation = False
        """Whether gradients wait for the rest of their batches; a checkpoint would lose them."""
        self._guard = FiniteGuard()
        self._kept_prefix: PrefixCache | None = None
        self._group = 1

    @abstractmethod
    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Run the frozen part without and the trained module with gradients; ``"output"`` is what it makes."""

    @abstractmethod
    def reconstruction_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """The stage's own loss terms by name, weighted; the first is the one that others are compared with."""

    def critic_images(self, batch: ReferenceBatch, image: Tensor) -> tuple[Tensor, Tensor]:
        """The real and the generated images as the critic sees them."""
        return batch.gt, image

    def gradients_at(self, outputs: Outputs) -> Tensor:
        """Where the terms' gradients are compared."""
        return outputs["output"]

    def references(self, batch: ReferenceBatch) -> Tensor:
        """The references as `RPFModel.pyramid` takes them: with ok where the model has a copy path."""
        if not self.model.config.synthesis_copy:
            return batch.reference
        return torch.cat((batch.reference, batch.reference_ok), dim=-3)

    def prefix(self, batch: ReferenceBatch) -> tuple[Tensor, Tensor | None]:
        """x^(n) and the flow before it, without gradients: in training from the cache, or the reduced GT and none."""
        x, flow = self._earlier_blocks(batch)
        if self.entry_fraction and self.block > 1 and self.trainer.training:
            entered = (torch.rand(len(x)) < self.entry_fraction).to(x.device)[:, None, None, None]
            x = torch.where(entered, resize(batch.gt, x.shape[-1]).clamp(0, 1), x)
            flow = None if flow is None else torch.where(entered, 0.0, flow)
        return x, flow

    def align(self, batch: ReferenceBatch) -> tuple[Tensor, Alignment]:
        """x^(n), and the references that the warping module aligns to it."""
        x, flow = self.prefix(batch)
        level = self.model.pyramid(self.references(batch), self.block)[-1]
        return x, self.current_block.align(x, level, flow)

    def feature_terms(self, image: Tensor, gt: Tensor) -> Outputs:
        """The weighted terms that look through a network of others, AlexNet (eq. 8) and ArcFace (eq. 9)."""
        terms = {}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(image, gt)
        if self.identity is not None and gt.shape[-1] >= self.identity_side:
            terms["identity"] = self.identity_weight * self.identity(image, gt)
        return terms

    def terms(self) -> dict[str, float]:
        """Weight of every term that all stages can have; 0 is off."""
        return {
            f"adversarial ({self.adversary.name})": self.adversarial_weight,
            "perceptual": self.perceptual_weight,
            "identity": self.identity_weight,
        }

    def on_fit_start(self) -> None:
        """Say which terms are on and remember what is frozen; open the cache of x^(n).

        Raises:
            ValueError: If the precision is another than 32-true or bf16-mixed, or if the fit's length is not given
                in epochs.
        """
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(
                f"precision: expected {' or '.join(PRECISIONS)}, got {self.trainer.precision}. In fp16 the gradient of "
                "a mean over a megapixel underflows, and a scaled loss would scale the penalty's gradient norm as well"
            )
        trying = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if (self.trainer.max_epochs or 0) < 1 or (self.trainer.max_steps != -1 and not trying):
            raise ValueError(
                "trainer: expected the fit's length in max_epochs, and in limit_train_batches where epochs are too "
                "long. max_steps counts the critic's steps too, and Lightning resumes such a fit at the wrong batch"
            )
        terms = ", ".join(f"{name} {f'x {w:g}' if w else 'off'}" for name, w in self.terms().items())
        trained = {id(p) for p in self.trained_module.parameters()}
        size = sum(p.numel() for p in self.trained_module.parameters()) / 1e6
        rank_zero_info(f"{self.title}: side {self.side}, {size:.2f} M trained parameters; {terms}")
        if self.identity is not None:
            rank_zero_info("identity: insightface's models are for non-commercial research only")
        if any(p.requires_grad and id(p) not in trained for p in self.model.parameters()):
            rank_zero_info(
                "FreezeEarlierBlocks is not among the callbacks; the optimizer still holds the trained module alone"
            )
        super().on_fit_start()
        self._kept_prefix = None
        # the first block's x is the LR; a try shall leave nothing behind
        if self.block > 1 and self.cache_prefix and self.needs_references and not trying:
            data, folder = getattr(self.trainer, "datamodule", None), self.model_dir / "cache"
            self._kept_prefix = open_prefix_cache(
                folder, self.model, self.block, data, self.trainer.precision
            )

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for the trained module, and for the critic if there is one."""
        parameters = [p for p in self.trained_module.parameters() if p.requires_grad]
        optimizers: list[Optimizer] = [Adam(parameters, lr=self.learning_rate, betas=(0.9, 0.999))]
        if self.critic is not None:
            optimizers.append(
                Adam(self.critic.parameters(), lr=self.critic_learning_rate, betas=self.adversary.betas)
            )
        return optimizers

    def on_train_start(self) -> None:
        """Use the learning rates that were given; a restored optimizer brings those of its checkpoint."""
        self.mid_accumulation = False  # an interrupted fit may have left gradients
        for optimizer, rate in zip(
            self._both_optimizers(), (self.learning_rate, self.critic_learning_rate), strict=False
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def training_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """One critic step, if there is a critic, and one generator step.

        Raises:
            FloatingPointError: If the step before had a loss that was not finite; see `FiniteGuard`.
        """
        self._check(batch)
        self._guard.check(self.run_dir, self.global_rank)
        generator, *critics = self._both_optimizers()
        self._decay(generator)
        last = (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch
        self._group = self._group + 1 if self.mid_accumulation else 1  # an epoch's last one may be smaller
        outputs = self.generate(batch)
        values: dict[str, Tensor] = {}
        if self.critic is not None:
            real, fake = self.critic_images(batch, outputs["output"].detach())
            with self.toggled_optimizer(critics[0]):
                loss, penalty, estimate = self.adversary.critic_terms(self.critic, real, fake)
                self._update(critics[0], loss + penalty, last)
            values = {"critic_estimate": estimate, "penalty": penalty, "critic_loss": loss + penalty}
        with self.toggled_optimizer(generator):
            terms = self._generator_terms(batch, outputs)
            total = torch.stack(list(terms.values())).sum()
            if self.gradient_norms_every and (self._batches() + 1) % self.gradient_norms_every == 0:
                with full_precision(total.device):
                    self._log("grad", gradient_norms(terms, self.gradients_at(outputs)))
            self._update(generator, total, last)
        self.mid_accumulation = not last
        self.generator_steps += int(last)
        values |= {**terms, "loss": total}
        self._guard.watch(
            values, step=self._batches(), epoch=self.current_epoch, id=names(batch.id),
            reference_id=names(getattr(batch, "reference_id", [])),
        )  # fmt: skip
        self._log("train", {**values, **self.watched(outputs)})
        self.log("loss", total.detach(), prog_bar=True, logger=False)

    def on_train_epoch_end(self) -> None:
        """Look at the last step's loss too, before anything is saved.

        Where the Trainer stops within an accumulation (`max_time`), the gradients that wait are dropped.
        """
        self._guard.check(self.run_dir, self.global_rank)
        self.mid_accumulation = False

    def on_validation_model_zero_grad(self) -> None:
        """Keep gradients that wait for the rest of their batches; Lightning would drop them before it validates."""
        if not self.mid_accumulation:
            super().on_validation_model_zero_grad()

    def on_validation_epoch_start(self) -> None:
        """Begin anew: an interrupted validation may have left values."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Begin anew, as in validation."""
        self.test_metrics.reset()

    def validation_step(self, batch: ReferenceBatch, batch_idx: int) -> Outputs:
        """Log the stage's terms, its metrics and what `diagnostics` adds; callbacks get what was computed."""
        return self._measure(batch, "val", self.val_metrics)

    def test_step(self, batch: ReferenceBatch, batch_idx: int) -> Outputs:
        """The same as validation, named ``test/...``."""
        return self._measure(batch, "test", self.test_metrics)

    @torch.no_grad()
    def _measure(self, batch: ReferenceBatch, phase: str, metrics: MetricCollection) -> Outputs:
        self._check(batch)
        outputs = self.generate(batch)
        values = self.reconstruction_terms(batch, outputs)
        size = batch.lr.shape[0]
        self._log(phase, {**values, **self.diagnostics(batch, outputs), **self.watched(outputs)}, size)
        metrics.update(
            output=outputs["output"], gt=batch.gt, mask=batch.gt_mask, lr=batch.lr,
            reference=getattr(batch, "reference", None), flow=outputs.get("flow"), goal=getattr(batch, "flow", None),
        )  # fmt: skip
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=size)
        return outputs

    def predict_step(self, batch: ReferenceBatch, batch_idx: int) -> tuple[list[str], Tensor]:
        """Names and clamped outputs (B, 3, S, S) of the trained module."""
        self._check(batch)
        return list(batch.id), self.generate(batch)["output"].clamp(0, 1)

    def metrics(self) -> dict[str, Metric]:
        """What validation and testing measure on ``"output"``: each the mean over all images."""
        return {"psnr": PSNR(), "psnr_face": PSNRFace(), "ssim": SSIM(), "lr_consistency": LRConsistency()}

    def diagnostics(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Further values for the validation log."""
        return {}

    def watched(self, outputs: Outputs) -> Outputs:
        """Further values for the logs of training and validation."""
        return {}

    @torch.no_grad()
    def pictures(self, batch: ReferenceBatch) -> Outputs:
        """What goes into and comes out of the stage, to look at.

        Returns:
            Title -> (B, 3, S, S) in [0, 1], in the order of the computation.
        """
        return draw_stage(batch, self.generate(batch), self.output_title)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of steps and the random state.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: the checkpoint before stays.
        """
        self._guard.check(self.run_dir, self.global_rank)
        super().on_save_checkpoint(checkpoint)
        checkpoint["generator_steps"] = self.generator_steps
        checkpoint["random_states"] = gather_random_states()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the number of steps and the random state.

        Raises:
            ValueError: If it is a checkpoint of another fit, or of one on another model.
        """
        super().on_load_checkpoint(checkpoint)
        self.generator_steps = checkpoint["generator_steps"]
        states = checkpoint["random_states"]
        # the package's loaders draw none of these numbers
        restore_random_state(states[self.global_rank if self.global_rank < len(states) else 0])

    def _earlier_blocks(self, batch: ReferenceBatch) -> tuple[Tensor, Tensor | None]:
        """What the frozen blocks before this one make."""

        def compute() -> tuple[Tensor, Tensor | None]:
            with torch.no_grad():
                return self.model.prefix(batch.lr, self.references(batch), self.block)

        if self._kept_prefix is None or not self.trainer.training:
            return compute()
        assert isinstance(batch.place, list)
        return self._kept_prefix.get(batch.place, compute, batch.lr.device)

    def _generator_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """All weighted terms; each is a scalar in fp32."""
        image = outputs["output"]
        terms = {**self.reconstruction_terms(batch, outputs), **self.feature_terms(image, batch.gt)}
        if self.critic is not None:
            score = self.critic(self.critic_images(batch, image)[1])
            terms["adversarial"] = self.adversarial_weight * self.adversary.generator_loss(score)
        return terms

    def _update(self, optimizer: Any, loss: Tensor, last: bool) -> None:
        """Add a batch's gradients, and step when the last one of a step is in: with their mean."""
        if not self.mid_accumulation:
            optimizer.zero_grad()
        with full_precision(loss.device):  # autocast would round the second derivative of the penalty
            self.manual_backward(loss)
        if last:
            if self._group > 1:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            parameter.grad /= self._group
            optimizer.step()

    def _both_optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _batches(self) -> int:
        """Batches of the fit before this one."""
        return int(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def _check(self, batch: FaceBatch | ReferenceBatch) -> None:
        """Refuse batches without references where they are needed."""
        if self.needs_references and not isinstance(batch, ReferenceBatch):
            data = getattr(self.trainer, "datamodule", None)
            raise ValueError(
                f"{type(self).__name__} ({self.name}) needs references; {type(data).__name__} gives none. Use a "
                "datamodule of pairs, such as ReferencePairsDataModule"
            )
        if isinstance(batch, ReferenceBatch) and batch.reference.ndim == 5 and not self.takes_several:
            raise ValueError(
                f"{type(self).__name__} ({self.name}) takes one reference per sample, got {batch.reference.shape[1]}: "
                "expected max_references: 1 of the data, or a JointStage"
            )

    def progress(self) -> float:
        """Share of the fit's generator steps that are done."""
        steps = math.ceil(int(self.trainer.num_training_batches) / self.accumulate)
        return self.generator_steps / max(1, steps * int(self.trainer.max_epochs or 1))

    def _decay(self, optimizer: Any) -> None:
        if self.decay == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 + math.cos(math.pi * self.progress())) / 2

    def _log(self, phase: str, values: Mapping[str, Tensor], batch_size: int | None = None) -> None:
        named = {f"{phase}/{name}": value.detach() for name, value in values.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=phase != "train")
