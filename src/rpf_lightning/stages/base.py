"""What the three stages share: the model directory, two optimizers, the training step, the checkpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchmetrics import Metric, MetricCollection

from rpf_lightning.data.records import FaceBatch, ReferenceBatch
from rpf_lightning.losses import IdentityLoss, PerceptualLoss
from rpf_lightning.losses.adversarial import PenaltyNorm
from rpf_lightning.metrics import PSNR, SSIM, LRConsistency, PSNRFace
from rpf_lightning.model import ReconstructionBlock
from rpf_lightning.model.resize import full_precision
from rpf_lightning.model.storage import weights_hash
from rpf_lightning.stages.adversary import ADVERSARIES, CriticKind, gradient_norms
from rpf_lightning.stages.finite import FiniteGuard, names, refuse_not_finite
from rpf_lightning.stages.model_dir import open_model, write_module
from rpf_lightning.stages.pictures import draw_stage
from rpf_lightning.stages.prefix_cache import PrefixCache, open_prefix_cache
from rpf_lightning.stages.random_state import random_state, restore_random_state

Outputs = dict[str, Tensor]
PRECISIONS = ("32-true", "bf16-mixed")


class RPFStage(LightningModule, ABC):
    """Trains one module of one reconstruction block of the model in a model directory.

    The model is read from the directory when the stage is made, and the module is written back when a fit has
    finished.
    Checkpoints hold the trained module, its critic, the optimizers, the random state and a hash of the frozen
    rest. With or without `FreezeEarlierBlocks` only the trained module has an optimizer.

    Subclasses say which module they train, what it computes and its loss terms. Manual optimization: critic
    backward and step, then generator backward and step.

    Args:
        model_dir: The model directory.
        block: n, counted from 1.
        network: Arguments of `RPFModel` for a directory that holds no model yet.
        learning_rate: Adam's learning rate; betas (0.9, 0.999).
        decay: ``"cosine"`` lowers the learning rate to zero over the fit; the paper has no schedule.
        accumulate: Batches whose gradients are averaged before each step. (The Trainer's own argument raises
            with two optimizers.)
        cache_prefix: Keep x^(n) of the training samples on disk, rounded to 8 bit (see `PrefixCache`).
        gradient_norms_every: Batches between two logs of every term's gradient norm at the output, relative to
            the reconstruction term's; 0 never. It costs one more backward pass per term.
        adversarial_weight: Weight of the adversarial term; 0 trains without a critic.
        perceptual_weight: Weight of the AlexNet term (eq. 8); 0 loads no AlexNet.
        identity_weight: Weight of the ArcFace term (eq. 9); 0 loads no ArcFace. insightface's models are for
            non-commercial research only.
        perceptual_norm: See `PerceptualLoss`.
        critic: ``"srntt"``: Wasserstein with gradient penalty, as in the paper; ``"stylegan2"``: StyleGAN2's
            discriminator with the logistic loss and R1, GCFSR's recipe for the refinement.
        critic_learning_rate: Adam's learning rate for the critic, 1e-4 in the paper; betas (0, 0.9), or (0, 0.99)
            for ``"stylegan2"``, whose equalized weights want 2e-3.
        penalty_weight: lambda of the gradient penalty; for ``"stylegan2"`` gamma of gamma/2 * R1.
        penalty_norm: See `gradient_penalty`; ``"stylegan2"`` has none.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None, or weights are missing.
        ValueError: If `block` is not one of the model's, `network` differs from the model's, or `accumulate` is
            not positive.
    """

    name: str
    """Name of the stage; names the run folder."""
    needs_references = True
    """Whether batches must be a `ReferenceBatch`; a `FaceBatch` serves stage 1."""
    monitor: tuple[str, Literal["min", "max"]] = ("val/psnr", "max")
    """The validation metric by which the best checkpoint is kept."""
    output_title = "output"
    """What the trained module makes, in pictures."""

    def __init__(
        self,
        model_dir: str,
        block: int = 1,
        network: dict[str, Any] | None = None,
        learning_rate: float = 1e-4,
        decay: Literal["none", "cosine"] = "none",
        accumulate: int = 1,
        cache_prefix: bool = True,
        gradient_norms_every: int = 100,
        adversarial_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        identity_weight: float = 0.0,
        perceptual_norm: Literal["mse", "l2"] = "mse",
        critic: CriticKind = "srntt",
        critic_learning_rate: float = 1e-4,
        penalty_weight: float = 10.0,
        penalty_norm: PenaltyNorm = "rms",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model_dir = Path(model_dir)
        self.model = open_model(self.model_dir, network)
        self.model.to(memory_format=torch.channels_last)  # a training step on a CPU gains 10 to 25 %
        self.model.validate = False  # our own data; the check would synchronise a GPU in every step
        if not 1 <= block <= len(self.model.blocks):
            raise ValueError(f"block: expected 1 .. {len(self.model.blocks)}, got {block}")
        if accumulate < 1:
            raise ValueError(f"accumulate: expected a positive number of batches, got {accumulate}")
        self.block = block
        self.lr_size, self.size = self.model.lr_size, self.model.size
        self.side = self.model.sides[block - 1]
        self.learning_rate = learning_rate
        self.decay = decay
        self.accumulate = accumulate
        self.cache_prefix = cache_prefix
        self.gradient_norms_every = gradient_norms_every
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        self.identity_weight = identity_weight
        self.critic_learning_rate = critic_learning_rate
        self.adversary = ADVERSARIES[critic](penalty_weight, penalty_norm)
        self.critic = self.adversary.critic(self.model, self.side) if adversarial_weight else None
        self.perceptual = PerceptualLoss(perceptual_norm) if perceptual_weight else None
        self.identity = IdentityLoss() if identity_weight else None
        self.val_metrics = MetricCollection(dict(self.metrics()), prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.generator_steps = 0  # the trainer's global_step counts the critic's steps as well
        self.mid_accumulation = False
        """Whether gradients wait for the rest of their batches; a checkpoint would lose them."""
        self._guard = FiniteGuard()
        self._kept_prefix: PrefixCache | None = None
        self._frozen_hash: str | None = None
        self._group = 1

    @property
    def run_dir(self) -> Path:
        """Where this fit's logs and checkpoints go: `runs/block<n>-<stage>` in the model directory."""
        return self.model_dir / "runs" / f"block{self.block}-{self.name}"

    @property
    @abstractmethod
    def trained_module(self) -> nn.Module:
        """The module of the model that this stage trains."""

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

    @property
    def current_block(self) -> ReconstructionBlock:
        """The block that is trained."""
        block = self.model.blocks[self.block - 1]
        assert isinstance(block, ReconstructionBlock)
        return block

    def prefix(self, batch: ReferenceBatch) -> Tensor:
        """x^(n), from the frozen blocks before this one, without gradients; in training from the cache."""

        def compute() -> Tensor:
            with torch.no_grad():
                return self.model.prefix(batch.lr, batch.reference, self.block)

        if self._kept_prefix is None or not self.trainer.training:
            return compute()
        assert isinstance(batch.place, list)
        return self._kept_prefix.get(batch.place, compute, batch.lr.device)

    def terms(self) -> dict[str, float]:
        """Weight of every term that all stages can have; 0 is off."""
        return {
            f"adversarial ({self.adversary.name})": self.adversarial_weight,
            "perceptual": self.perceptual_weight,
            "identity": self.identity_weight,
        }

    def on_fit_start(self) -> None:
        """Say which terms are on and what is frozen; open the cache of x^(n).

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
        rank_zero_info(
            f"block {self.block} {self.name}: side {self.side}, {size:.2f} M trained parameters; {terms}"
        )
        if self.identity is not None:
            rank_zero_info("identity: insightface's models are for non-commercial research only")
        if any(p.requires_grad and id(p) not in trained for p in self.model.parameters()):
            rank_zero_info(
                "FreezeEarlierBlocks is not among the callbacks; the optimizer still holds the trained module alone"
            )
        self._frozen_hash = self.frozen_hash()
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
        self._log("train", values)
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

    def validation_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """Log the stage's terms, its metrics and what `diagnostics` adds."""
        self._measure(batch, "val", self.val_metrics)

    def test_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """The same as validation, named ``test/...``."""
        self._measure(batch, "test", self.test_metrics)

    @torch.no_grad()
    def _measure(self, batch: ReferenceBatch, phase: str, metrics: MetricCollection) -> None:
        self._check(batch)
        outputs = self.generate(batch)
        values = self.reconstruction_terms(batch, outputs)
        size = batch.lr.shape[0]
        self._log(phase, {**values, **self.diagnostics(batch, outputs)}, size)
        if len(metrics):
            given = {"output": outputs["output"], "gt": batch.gt, "mask": batch.gt_mask, "lr": batch.lr}
            metrics.update(**given, reference=getattr(batch, "reference", None))
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=size)

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

    @torch.no_grad()
    def pictures(self, batch: ReferenceBatch) -> Outputs:
        """What goes into and comes out of the stage, to look at.

        Returns:
            Title -> (B, 3, S, S) in [0, 1], in the order of the computation.
        """
        return draw_stage(batch, self.generate(batch), self.output_title)

    def on_fit_end(self) -> None:
        """Write the trained module into the model directory, also when a resumed fit had nothing left to train.

        Raises:
            FloatingPointError: If a weight is NaN or infinite.
            RuntimeError: If a frozen weight changed during the fit.
        """
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        refuse_not_finite(self.trained_module.state_dict())
        if self.frozen_hash() != self._frozen_hash:
            raise RuntimeError(
                f"{self.run_dir}: weights that are frozen changed during the fit; nothing was written"
            )
        if self.trainer.is_global_zero:
            own = self._own_keys()[0].removeprefix("model.")
            write_module(self.model_dir, self.model, own, [f"{name}." for name in self.read_modules()])
        self.trainer.strategy.barrier()  # the next fit reads the directory in every process

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained module and the critic, and a hash in place of the frozen rest.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: the checkpoint before stays.
        """
        self._guard.check(self.run_dir, self.global_rank)
        own, state = self._own_keys(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key.startswith(own)}
        refuse_not_finite(checkpoint["state_dict"])
        checkpoint["fit"] = self.run_dir.name
        checkpoint["frozen_hash"] = self._frozen_hash or self.frozen_hash()
        checkpoint["generator_steps"] = self.generator_steps
        checkpoint["random_state"] = random_state()
        if "model_dir" in checkpoint.get("hyper_parameters", {}):  # a Path could not be read safely
            checkpoint["hyper_parameters"]["model_dir"] = str(self.model_dir)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another fit, or whose frozen rest differs from the model directory's.

        Raises:
            ValueError: If it is another one, or differs.
        """
        if checkpoint["fit"] != self.run_dir.name:
            raise ValueError(f"expected a checkpoint of {self.run_dir.name}, got one of {checkpoint['fit']}")
        if checkpoint["frozen_hash"] != self.frozen_hash():
            raise ValueError(
                f"the checkpoint of block {self.block} {self.name} was trained on another model than the one in "
                f"{self.model_dir}: their frozen modules differ. Delete {self.run_dir} to train it anew"
            )
        own = self._own_keys()
        frozen = {key: value for key, value in self.state_dict().items() if not key.startswith(own)}
        checkpoint["state_dict"] = {**frozen, **checkpoint["state_dict"]}
        self.generator_steps = checkpoint["generator_steps"]
        restore_random_state(checkpoint["random_state"])  # the package's loaders draw none of these numbers

    def frozen_hash(self) -> str:
        """SHA-256 over the weights that this stage reads but does not train."""
        read = tuple(f"{name}." for name in self.read_modules())
        return weights_hash({k: v for k, v in self.model.state_dict().items() if read and k.startswith(read)})

    def read_modules(self) -> list[str]:
        """Names of the frozen modules that this stage computes with: those of earlier blocks."""
        return [f"blocks.{n}" for n in range(self.block - 1)]

    def _generator_terms(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """All weighted terms; each is a scalar in fp32."""
        image = outputs["output"]
        terms = self.reconstruction_terms(batch, outputs)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(image, batch.gt)
        if self.identity is not None:
            terms["identity"] = self.identity_weight * self.identity(image, batch.gt)
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

    def _own_keys(self) -> tuple[str, str]:
        """Beginnings of the names of what this stage trains."""
        module = self.trained_module
        return next(name for name, other in self.named_modules() if other is module) + ".", "critic."

    def _decay(self, optimizer: Any) -> None:
        if self.decay == "cosine":
            steps = math.ceil(int(self.trainer.num_training_batches) / self.accumulate)
            total = max(1, steps * int(self.trainer.max_epochs or 1))
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 + math.cos(math.pi * self.generator_steps / total)) / 2

    def _log(self, phase: str, values: Mapping[str, Tensor], batch_size: int | None = None) -> None:
        named = {f"{phase}/{name}": value.detach() for name, value in values.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=phase != "train")
