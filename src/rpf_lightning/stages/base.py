"""What the three stages share: the model directory, two optimizers, the training step, the checkpoint."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rpf_lightning.data.records import FaceBatch, ReferenceBatch
from rpf_lightning.losses import IdentityLoss, PerceptualLoss, critic_loss, generator_loss, gradient_penalty
from rpf_lightning.losses.adversarial import PenaltyNorm
from rpf_lightning.metrics import psnr, psnr_face
from rpf_lightning.model import Critic, ReconstructionBlock, RPFModel
from rpf_lightning.model.storage import weights_hash

Outputs = dict[str, Tensor]


class RPFStage(LightningModule, ABC):
    """Trains one module of one reconstruction block of the model in a model directory.

    The model is read from the directory when the stage is made, and written back when a fit has finished.
    Checkpoints hold the trained module, its critic, the optimizers and a hash of the frozen rest.

    Subclasses say which module they train, what it computes and its loss terms. Manual optimization: critic
    backward and step, then generator backward and step.

    Args:
        model_dir: The model directory.
        block: n, counted from 1.
        network: Arguments of `RPFModel` for a directory that holds no model yet.
        learning_rate: Adam's learning rate; betas (0.9, 0.999).
        decay: ``"cosine"`` lowers the learning rate to zero over the fit; the paper has no schedule.
        adversarial_weight: Weight of the Wasserstein term; 0 trains without a critic.
        perceptual_weight: Weight of the AlexNet term (eq. 8); 0 loads no AlexNet.
        identity_weight: Weight of the ArcFace term (eq. 9); 0 loads no ArcFace.
        perceptual_norm: See `PerceptualLoss`.
        critic_learning_rate: Adam's learning rate for the critic; betas (0, 0.9).
        penalty_weight: lambda of the gradient penalty.
        penalty_norm: See `gradient_penalty`.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None, or weights are missing.
        ValueError: If `block` is not one of the model's, or `network` differs from the model's.
    """

    name: str
    """Name of the stage; names the run folder."""
    needs_references = True
    """Whether batches must be a `ReferenceBatch`; a `FaceBatch` serves stage 1."""

    def __init__(
        self,
        model_dir: str,
        block: int,
        network: dict[str, Any] | None,
        learning_rate: float,
        decay: Literal["none", "cosine"],
        adversarial_weight: float,
        perceptual_weight: float,
        identity_weight: float,
        perceptual_norm: Literal["mse", "l2"],
        critic_learning_rate: float,
        penalty_weight: float,
        penalty_norm: PenaltyNorm,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model_dir = Path(model_dir)
        self.model = open_model(self.model_dir, network)
        self.model.to(memory_format=torch.channels_last)  # a training step on a CPU gains 10 to 25 %
        self.model.validate = False  # our own data; the check would synchronise a GPU in every step
        if not 1 <= block <= len(self.model.blocks):
            raise ValueError(f"block: expected 1 .. {len(self.model.blocks)}, got {block}")
        self.block = block
        self.lr_size, self.size = self.model.lr_size, self.model.size
        self.side = self.model.sides[block - 1]
        self.learning_rate = learning_rate
        self.decay = decay
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        self.identity_weight = identity_weight
        self.critic_learning_rate = critic_learning_rate
        self.penalty_weight = penalty_weight
        self.penalty_norm = penalty_norm
        self.critic = Critic(self.side).to(memory_format=torch.channels_last) if adversarial_weight else None
        self.perceptual = PerceptualLoss(perceptual_norm) if perceptual_weight else None
        self.identity = IdentityLoss() if identity_weight else None
        self.generator_steps = 0  # the trainer's global_step counts the critic's steps as well

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
        """The stage's own loss terms by name, weighted."""

    def critic_images(self, batch: ReferenceBatch, image: Tensor) -> tuple[Tensor, Tensor]:
        """The real and the generated images as the critic sees them."""
        return batch.gt, image

    @property
    def current_block(self) -> ReconstructionBlock:
        """The block that is trained."""
        block = self.model.blocks[self.block - 1]
        assert isinstance(block, ReconstructionBlock)
        return block

    def prefix(self, batch: ReferenceBatch) -> Tensor:
        """x^(n), from the frozen blocks before this one, without gradients."""
        with torch.no_grad():
            return self.model.prefix(batch.lr, batch.reference, self.block)

    def terms(self) -> dict[str, float]:
        """Weight of every term that all stages can have; 0 is off."""
        return {
            "adversarial": self.adversarial_weight,
            "perceptual": self.perceptual_weight,
            "identity": self.identity_weight,
        }

    def on_fit_start(self) -> None:
        """Say which terms are on.

        Raises:
            ValueError: If the precision is another than 32-true or bf16-mixed, which nobody has shown to be
                right with the penalty, or if the fit's length is unknown to the decay.
        """
        if self.trainer.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"precision: expected 32-true or bf16-mixed, got {self.trainer.precision}")
        if self.decay == "cosine" and (self.trainer.max_epochs or 0) < 1:
            raise ValueError("decay: cosine needs the fit's length in trainer.max_epochs")
        terms = ", ".join(f"{name} {f'x {w:g}' if w else 'off'}" for name, w in self.terms().items())
        trained = sum(p.numel() for p in self.trained_module.parameters())
        rank_zero_info(
            f"block {self.block} {self.name}: side {self.side}, {trained / 1e6:.2f} M trained parameters; {terms}"
        )

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for the trained module, and for the critic if there is one."""
        parameters = [p for p in self.trained_module.parameters() if p.requires_grad]
        optimizers: list[Optimizer] = [Adam(parameters, lr=self.learning_rate, betas=(0.9, 0.999))]
        if self.critic is not None:
            optimizers.append(Adam(self.critic.parameters(), lr=self.critic_learning_rate, betas=(0.0, 0.9)))
        return optimizers

    def on_train_start(self) -> None:
        """Use the learning rates that were given; a restored optimizer brings those of its checkpoint."""
        optimizers = self.optimizers()
        rates = (self.learning_rate, self.critic_learning_rate)
        for optimizer, rate in zip(
            optimizers if isinstance(optimizers, list) else [optimizers], rates, strict=False
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def training_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """One critic step, if there is a critic, and one generator step."""
        self._check(batch)
        optimizers = self.optimizers()
        generator, *critics = optimizers if isinstance(optimizers, list) else [optimizers]
        self._decay(generator)
        outputs = self.generate(batch)
        real, fake = self.critic_images(batch, outputs["output"])
        if self.critic is not None:
            with self.toggled_optimizer(critics[0]):
                loss = critic_loss(self.critic(real), self.critic(fake.detach()))
                penalty = gradient_penalty(self.critic, real, fake, self.penalty_norm)
                critics[0].zero_grad()
                self.manual_backward(loss + self.penalty_weight * penalty)
                critics[0].step()
            self._log("train", {"critic_estimate": -loss.detach(), "penalty": penalty.detach()})
        with self.toggled_optimizer(generator):
            terms = self.reconstruction_terms(batch, outputs)
            if self.perceptual is not None:
                terms["perceptual"] = self.perceptual_weight * self.perceptual(outputs["output"], batch.gt)
            if self.identity is not None:
                terms["identity"] = self.identity_weight * self.identity(outputs["output"], batch.gt)
            if self.critic is not None:
                terms["adversarial"] = self.adversarial_weight * generator_loss(self.critic(fake))
            total = torch.stack(list(terms.values())).sum()
            generator.zero_grad()
            self.manual_backward(total)
            generator.step()
        self.generator_steps += 1
        self._log("train", {**terms, "loss": total})
        self.log("loss", total.detach(), prog_bar=True, logger=False)

    def validation_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """Log the stage's terms and what `diagnostics` adds."""
        self._check(batch)
        with torch.no_grad():
            outputs = self.generate(batch)
            values = self.reconstruction_terms(batch, outputs)
        self._log("val", {**values, **self.diagnostics(batch, outputs)}, batch.lr.shape[0])

    def test_step(self, batch: ReferenceBatch, batch_idx: int) -> None:
        """The same as validation."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: ReferenceBatch, batch_idx: int) -> tuple[list[str], Tensor]:
        """Names and clamped outputs (B, 3, S, S) of the trained module."""
        self._check(batch)
        return list(batch.id), self.generate(batch)["output"].clamp(0, 1)

    def diagnostics(self, batch: ReferenceBatch, outputs: Outputs) -> Outputs:
        """Further values for the validation log: PSNR in the whole picture and inside the face."""
        image = outputs["output"]
        return {
            "psnr": psnr(image, batch.gt).mean(),
            "psnr_face": psnr_face(image, batch.gt, batch.gt_mask).nanmean(),
        }

    def on_fit_end(self) -> None:
        """Write the model back into its directory, also when a resumed fit had nothing left to train."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.model.save_pretrained(self.model_dir)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained module and the critic, and a hash in place of the frozen rest."""
        own, state = self._own_keys(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key.startswith(own)}
        checkpoint["frozen_hash"] = self.frozen_hash()
        checkpoint["generator_steps"] = self.generator_steps
        checkpoint["random_state"] = _random_state()
        if "model_dir" in checkpoint.get("hyper_parameters", {}):
            checkpoint["hyper_parameters"]["model_dir"] = str(
                self.model_dir
            )  # a Path could not be read safely

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose frozen rest differs from the model directory's.

        Raises:
            ValueError: If it differs.
        """
        if checkpoint["frozen_hash"] != self.frozen_hash():
            raise ValueError(
                f"the checkpoint of block {self.block} {self.name} was trained on another model than the one in "
                f"{self.model_dir}: their frozen modules differ. Delete {self.run_dir} to train it anew"
            )
        own = self._own_keys()
        frozen = {key: value for key, value in self.state_dict().items() if not key.startswith(own)}
        checkpoint["state_dict"] = {**frozen, **checkpoint["state_dict"]}
        self.generator_steps = checkpoint["generator_steps"]
        _restore_random_state(checkpoint["random_state"])

    def frozen_hash(self) -> str:
        """SHA-256 over the weights that this stage reads but does not train: the blocks up to its own."""
        trained = {id(value) for value in self.trained_module.state_dict(keep_vars=True).values()}
        frozen = {
            f"{n}.{key}": value
            for n, block in enumerate(self.model.blocks[: self.block], start=1)
            for key, value in block.state_dict(keep_vars=True).items()
            if id(value) not in trained
        }
        return weights_hash(frozen)

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
            batches = self.trainer.num_training_batches
            total = max(1, int(batches) * int(self.trainer.max_epochs or 1))
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 + math.cos(math.pi * self.generator_steps / total)) / 2

    def _log(self, phase: str, values: Mapping[str, Tensor], batch_size: int | None = None) -> None:
        named = {f"{phase}/{name}": value.detach() for name, value in values.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=phase == "val")


def _random_state() -> dict[str, Any]:
    """State of all generators as plain types, which a checkpoint may hold under `weights_only`."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": (version, list(numbers), gauss),
        "numpy": {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}},
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})  # noqa: NPY002


def open_model(model_dir: Path, network: dict[str, Any] | None) -> RPFModel:
    """Read the model of a directory, or make a new one and write it there.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None.
        ValueError: If `network` differs from the model's configuration.
    """
    if (model_dir / "config.json").is_file():
        model = RPFModel.from_pretrained(model_dir)
        changed = {
            k: (model.config.get(k), v) for k, v in (network or {}).items() if model.config.get(k) != v
        }
        if changed:
            text = ", ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
            raise ValueError(f"{model_dir} holds a model with other arguments ({text})")
        return model
    if network is None:
        raise FileNotFoundError(
            f"{model_dir} holds no model: expected config.json and model.safetensors. Make one with "
            "`rpf curriculum`, RPFModel(...).save_pretrained(directory), or the argument network"
        )
    model = RPFModel(**network)
    model.save_pretrained(model_dir)
    return model
