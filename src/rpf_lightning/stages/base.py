"""What all stages share in training: the training step, validation, exact resume."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchmetrics import Metric, MetricCollection
from torchvision.utils import flow_to_image  # type: ignore[import-untyped]

from rpf_lightning.data.batches import FaceBatch, ReferenceBatch
from rpf_lightning.metrics import PSNR, SSIM, LRConsistency, PSNRFace
from rpf_lightning.model import RPFConfig
from rpf_lightning.model.resize import full_precision, resize
from rpf_lightning.stages.finite import FiniteGuard
from rpf_lightning.stages.freezing import FreezeEarlierBlocks
from rpf_lightning.stages.gradients import gradient_norms
from rpf_lightning.stages.model_dir import DirectoryStage
from rpf_lightning.stages.random_state import gather_random_states, restore_random_state
from rpf_lightning.stages.sole_fit import SoleFit

Outputs = dict[str, Tensor]
PRECISIONS = ("32-true", "bf16-mixed")


class RPFStage(DirectoryStage):
    """Trains modules of reconstruction blocks of the model in a model directory; the base of all stages.

    A stage of one's own says three things: its `role` (what it trains), `generate` (what that makes of a batch) and
    `terms` (its losses). `BlockStage` adds x^(n) and the aligned references, `ImageTerms` the adversarial, perceptual
    and identity terms: ``class Mine(ImageTerms, BlockStage)``. A further loss for a stage is a subclass whose `terms`
    adds to those of `super()`. Arguments named ``..._weight`` are said when a fit starts.

    Checkpoints hold what `DirectoryStage` says, the optimizers and the random state. Manual optimization: critic
    backward and step, where there is one, then generator backward and step.

    Args:
        model_dir: The model directory.
        block: n, counted from 1.
        network: The network's structure, for a directory that holds no model yet.
        learning_rate: Adam's learning rate.
        decay: ``"cosine"`` lowers the learning rate to zero over the fit; the paper has no schedule.
        accumulate: Batches whose gradients are averaged before each step. (The Trainer's own argument raises
            with two optimizers.)
        gradient_clip: Largest norm of the gradient of what is trained, in the mean of these batches; 0 does not clip.
            The critic's is left: its penalty bounds it.
        gradient_norms_every: Batches between two logs of every term's gradient norm at the output, relative to
            the first term's; 0 never. It costs one more backward pass per term.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None, or weights are missing.
        ValueError: If `block` is not one of the model's, `network` differs from the model's, `accumulate` is not
            positive, or `gradient_clip` is negative.
    """

    needs_warped_reference = False
    """Whether batches must hold r_warp (eq. 3), which takes time to make."""
    takes_several = False
    """Whether they may hold several references per sample."""
    monitor: tuple[str, Literal["min", "max"]] = ("val/psnr", "max")
    """The validation metric by which the best checkpoint is kept."""
    output_title = "output"
    """What the trained module makes, in pictures."""
    compared_at = "output"
    """The output at which the terms' gradients are compared."""
    betas = (0.9, 0.999)
    """Adam's, for what is trained."""

    def __init__(
        self,
        model_dir: str,
        block: int = 1,
        network: RPFConfig | None = None,
        learning_rate: float = 1e-4,
        decay: Literal["none", "cosine"] = "none",
        accumulate: int = 1,
        gradient_norms_every: int = 100,
        gradient_clip: float = 0.0,
    ) -> None:
        super().__init__(model_dir, block, network)
        self.automatic_optimization = False
        if accumulate < 1:
            raise ValueError(f"accumulate: expected a positive number of batches, got {accumulate}")
        if gradient_clip < 0:
            raise ValueError(f"gradient_clip: expected a norm, or 0 for none, got {gradient_clip}")
        self.learning_rate = learning_rate
        self.decay = decay
        self.accumulate = accumulate
        self.gradient_norms_every = gradient_norms_every
        self.gradient_clip = gradient_clip
        self.measured = MetricCollection(dict(self.metrics()))
        self.generator_steps = 0  # the trainer's global_step counts the critic's steps as well
        self.mid_accumulation = False
        """Whether gradients wait for the rest of their batches; a checkpoint would lose them."""
        self._guard = FiniteGuard()
        self._group = 1
        self.save_hyperparameters()  # those of subclasses too

    @abstractmethod
    def generate(self, batch: ReferenceBatch) -> Outputs:
        """Run the frozen part without and the trained module with gradients; ``"output"`` is what it makes."""

    @abstractmethod
    def terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """The stage's own loss terms by name, weighted scalars; the first is the one that others are compared with."""

    def training_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """All terms of a training step, each a scalar in fp32; validation logs `terms` alone."""
        return self.terms(batch, outputs)

    def critic_step(self, batch: ReferenceBatch, outputs: Outputs, last: bool) -> Outputs:
        """Train the critic, where a stage has one, and return what is logged of it; see `update` for `last`."""
        return {}

    def metrics(self) -> dict[str, Metric]:
        """What validation and testing measure on ``"output"``: each the mean over all images."""
        return {"psnr": PSNR(), "psnr_face": PSNRFace(), "ssim": SSIM(), "lr_consistency": LRConsistency()}

    def diagnostics(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Further values for the logs of training and, where `self.training` is False, of validation."""
        return {}

    @property
    def needs_references(self) -> bool:
        """Whether batches must be a `ReferenceBatch`; a `FaceBatch` serves stage 1."""
        return not self.role.alone

    def references(self, batch: ReferenceBatch) -> Tensor:
        """The references as `RPFModel.pyramid` takes them: with ok where the model has a copy path."""
        if not self.model.config.synthesis_copy:
            return batch.reference
        return torch.cat((batch.reference, batch.reference_ok), dim=-3)

    def progress(self) -> float:
        """Share of the fit's generator steps that are done."""
        steps = math.ceil(int(self.trainer.num_training_batches) / self.accumulate)
        return self.generator_steps / max(1, steps * int(self.trainer.max_epochs or 1))

    def configure_callbacks(self) -> list[Callback]:
        """Bring `FreezeEarlierBlocks`, where it is not among the Trainer's callbacks, and `SoleFit`."""
        listed = any(isinstance(c, FreezeEarlierBlocks) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [SoleFit()] if listed else [FreezeEarlierBlocks(), SoleFit()]

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for what is trained."""
        parameters = [p for p in self.trained_module.parameters() if p.requires_grad]
        return [Adam(parameters, lr=self.learning_rate, betas=self.betas)]

    def on_fit_start(self) -> None:
        """Say what is trained with which weights of its terms, and remember what is frozen.

        Raises:
            ValueError: If the precision is another than 32-true or bf16-mixed, or if the fit's length is not given
                in epochs.
        """
        refuse_precision(str(self.trainer.precision))
        trying = bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        refuse_length(self.trainer.max_epochs, self.trainer.max_steps, trying)
        weights = [f"{name} {value:g}" for name, value in self.hparams.items() if name.endswith("_weight")]
        size = sum(p.numel() for p in self.trained_module.parameters()) / 1e6
        # the precision too: of 16-mixed on a CPU Lightning makes bf16-mixed before a stage can see it
        what = f"{self.fit_name}: side {self.side}, {size:.2f} M trained parameters, {self.trainer.precision}"
        rank_zero_info(", ".join((what, *weights)))
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Use the learning rates that were given; a restored optimizer brings those of its checkpoint."""
        self.mid_accumulation = False  # an interrupted fit may have left gradients
        for optimizer in self.all_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"]

    def training_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """One critic step, if there is a critic, and one generator step.

        Raises:
            FloatingPointError: If the step before had a loss that was not finite; see `FiniteGuard`.
        """
        self._check(batch)
        self._guard.check(self.run_dir, self.global_rank)
        generator = self.all_optimizers()[0]
        if self.decay == "cosine":
            for group in generator.param_groups:
                group["lr"] = self.learning_rate * (1 + math.cos(math.pi * self.progress())) / 2
        last = (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch
        self._group = self._group + 1 if self.mid_accumulation else 1  # an epoch's last one may be smaller
        number = int(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        outputs = self.generate(batch)
        values = self.critic_step(batch, outputs, last)
        with self.toggled_optimizer(generator):
            terms = self.training_terms(batch, outputs)
            total = torch.stack(list(terms.values())).sum()
            if self.gradient_norms_every and (number + 1) % self.gradient_norms_every == 0:
                with full_precision(total.device):
                    self._log("grad", gradient_norms(terms, outputs[self.compared_at]))
            self.update(generator, total, last)
        self.mid_accumulation = not last
        self.generator_steps += int(last)
        values |= {**terms, "loss": total}
        self._guard.watch(
            values, step=number, epoch=self.current_epoch, id=list(batch.id),
            reference_id=list(getattr(batch, "reference_id", [])),
        )  # fmt: skip
        self._log("train", {**values, **self.diagnostics(batch, outputs)})
        self.log("loss", total.detach(), prog_bar=True, logger=False)

    def update(self, optimizer: Any, loss: Tensor, last: bool) -> None:
        """Add a batch's gradients, and step when the last batch of a step is in: with their mean."""
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

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient of what is trained."""
        own = self.all_optimizers()[0].optimizer
        if self.gradient_clip and optimizer is own:
            nn.utils.clip_grad_norm_(own.param_groups[0]["params"], self.gradient_clip)

    def all_optimizers(self) -> list[Any]:
        """That of what is trained, and the critic's if there is one."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

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
        self.measured.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: ReferenceBatch, batch_idx: int) -> Outputs:
        """Log the stage's terms, its metrics and what `diagnostics` adds, as ``val/...``; in a test as ``test/...``.

        Returns:
            What was computed, for callbacks.
        """
        phase = "test" if self.trainer.testing else "val"
        self._check(batch)
        outputs = self.generate(batch)
        size = batch.lr.shape[0]
        self._log(phase, {**self.terms(batch, outputs), **self.diagnostics(batch, outputs)}, size)
        self.measured.update(
            output=outputs["output"], gt=batch.gt, mask=batch.gt_mask, lr=batch.lr,
            reference=getattr(batch, "reference", None), flow=outputs.get("flow"), goal=getattr(batch, "flow", None),
        )  # fmt: skip
        measured = {f"{phase}/{name}": metric for name, metric in self.measured.items()}
        self.log_dict(measured, on_step=False, on_epoch=True, batch_size=size)
        return outputs

    test_step = validation_step

    def predict_step(self, batch: ReferenceBatch, batch_idx: int) -> tuple[list[str], Tensor]:
        """Names and clamped outputs (B, 3, S, S) of the trained module."""
        self._check(batch)
        return list(batch.id), self.generate(batch)["output"].clamp(0, 1)

    @torch.no_grad()
    def pictures(self, batch: ReferenceBatch) -> Outputs:
        """What goes into and comes out of the stage, to look at.

        Returns:
            Title -> (B, 3, S, S) in [0, 1], in the order of the computation. The flow's direction is its hue, its
            length the saturation; white is 0.
        """
        outputs = self.generate(batch)
        side = batch.gt.shape[-1]
        found = {"LR": F.interpolate(batch.lr, size=(side, side)), "bicubic": resize(batch.lr, side)}
        if "flow" in outputs:
            found["flow"] = flow_to_image(outputs["flow"].float()).float() / 255
        found |= {name: outputs[name] for name in ("aligned", "synthesized") if name in outputs}
        found |= {self.output_title: outputs["output"], "GT": batch.gt}
        if isinstance(batch, ReferenceBatch):
            found["reference"] = batch.reference
            if batch.warped_reference is not None:
                found["thin-plate"] = batch.warped_reference
        found["mask"] = batch.gt_mask.expand_as(batch.gt)
        return {title: image.float().clamp(0, 1) for title, image in found.items()}

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
        """Go on with the number of steps and the random state, where `DirectoryStage` takes the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self.generator_steps = checkpoint["generator_steps"]
        states = checkpoint["random_states"]
        # the package's loaders draw none of these numbers
        restore_random_state(states[self.global_rank if self.global_rank < len(states) else 0])

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

    def _log(self, phase: str, values: Mapping[str, Tensor], batch_size: int | None = None) -> None:
        named = {f"{phase}/{name}": value.detach() for name, value in values.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=phase != "train")


def refuse_precision(precision: str) -> None:
    """Raise a ValueError if the precision, by Lightning's name, is another than 32-true or bf16-mixed."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: expected {' or '.join(PRECISIONS)}, got {precision}. In fp16 the gradient of "
            "a mean over a megapixel underflows, and a scaled loss would scale the penalty's gradient norm as well"
        )


def refuse_length(max_epochs: int | None, max_steps: int, trying: bool) -> None:
    """Raise a ValueError if a fit's length is not given in epochs; `trying`: Lightning has set it for a few batches."""
    if not trying and ((max_epochs or 0) < 1 or max_steps != -1):
        raise ValueError(
            "trainer: expected the fit's length in max_epochs, and in limit_train_batches where epochs are too "
            "long. max_steps counts the critic's steps too, and Lightning resumes such a fit at the wrong batch"
        )
