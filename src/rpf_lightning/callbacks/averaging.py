"""Averaged weights: what validation looks at and the model directory gets."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rpf_lightning.stages.base import RPFStage

UPDATES = "n_averaged"  # torch's name


class AveragedWeights(EMAWeightAveraging):
    """Exponential moving average of the parameters that a stage trains, one update per generator step.

    Training goes on with the raw weights; validation, and so the best checkpoint's score, sees the average, and the
    model directory gets it. The critic is not averaged. The (t + 1)-th update keeps
    ``min(decay, (1 + t) / (10 + t))`` of the average, or a short fit's would be mostly its start.

    Lightning's class copies and averages the whole module: frozen weights change in their last bits, and loss networks
    land in checkpoints; and it counts every optimizer's steps. Here all but the trained parameters is shared.

    Checkpoints hold the average in ``state_dict``, which validation, testing and prediction load, and the raw weights
    of the trained module in ``current_model_state``, with which a fit goes on. Where there is none, the average starts
    from the checkpoint's weights, with a warning; a fit without this callback goes on with the average.
    `ModelCheckpoint(save_weights_only=True)` asks no callback, and so holds the raw weights.

    Args:
        decay: Share of the average that an update keeps in the long run, in [0, 1).

    Raises:
        ValueError: If `decay` is not in [0, 1).
        TypeError: When the Trainer starts, if the LightningModule is not one of this package's stages.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
        super().__init__(use_buffers=False, decay=decay)
        self.decay = decay
        self._trained: dict[str, nn.Parameter] = {}  # in the module, by their names in its state
        self._swapped = False  # whether the module holds the average, and the copy the raw weights
        self._restored: dict[str, Tensor] = {}  # a checkpoint's average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse other modules; nothing is copied yet."""
        if not isinstance(pl_module, RPFStage):
            raise TypeError(
                f"AveragedWeights: expected a stage of rpf_lightning, got {type(pl_module).__name__}"
            )
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the weights, or where the checkpoint's average was; by now it is settled what is frozen."""
        assert isinstance(pl_module, RPFStage)
        own = {id(p) for p in pl_module.trained_module.parameters() if p.requires_grad}
        self._trained = {name: p for name, p in pl_module.named_parameters() if id(p) in own}
        # without a device its counter stays on the CPU, where reading it waits for no GPU
        self._average_model = AveragedModel(nn.ParameterList(self._trained.values())).requires_grad_(False)
        for name, value in (self._average() | {UPDATES: self._average_model.n_averaged}).items():
            if name in self._restored:
                value.copy_(self._restored[name])
        self._restored = {}
        self._latest_update_step = pl_module.generator_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update, if this batch was a step's last."""
        self._update(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the raw weights; a validation without a fit has none."""
        if self._average_model is not None:
            self._swap()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        if self._swapped:
            self._swap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back where a validation broke off."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the raw weights: others write checkpoints now, and a fit with no batch left never comes here."""

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, which then writes it into the model directory."""
        for name, value in self._average().items():
            self._trained[name].copy_(value)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the copy; the module holds the average by now."""
        self._forget()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average into the state, and the raw weights beside it."""
        if self._average_model is None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)  # says that there is none
            return
        self._update(pl_module)  # who saves at the end of a batch may be listed before this callback
        raw, average = {name: p.detach() for name, p in self._trained.items()}, self._average()
        if self._swapped:
            raw, average = average, raw
        # that the raw weights are finite need not be checked: the average is, and they are in it
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}
        checkpoint["current_model_state"] = raw
        checkpoint["averaging_state"] = {UPDATES: self._average_model.n_averaged}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give a fit its raw weights and remember the average; others have got the average already."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "current_model_state" not in checkpoint:
            rank_zero_warn("the checkpoint holds no averaged weights: the average starts from its weights")
            return
        raw = checkpoint["current_model_state"]
        average = {name: checkpoint["state_dict"][name] for name in raw}
        self._restored = {**average, **checkpoint["averaging_state"]}
        pl_module.load_state_dict(raw, strict=False)

    def _forget(self) -> None:
        self._average_model = None
        self._trained, self._restored, self._swapped = {}, {}, False

    def _average(self) -> dict[str, Tensor]:
        assert self._average_model is not None
        # checkpoints hold plain tensors
        values = (p.detach() for p in self._average_model.module.parameters())
        return dict(zip(self._trained, values, strict=True))

    def _update(self, stage: LightningModule) -> None:
        assert isinstance(stage, RPFStage)
        assert self._average_model is not None
        if stage.generator_steps == self._latest_update_step:
            return
        updates = int(self._average_model.n_averaged)
        average = get_ema_multi_avg_fn(min(self.decay, (1 + updates) / (10 + updates)))  # type: ignore[no-untyped-call]
        average(list(self._average().values()), list(self._trained.values()), updates)
        self._average_model.n_averaged += 1
        self._latest_update_step = stage.generator_steps

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._average().items():
            kept = value.clone()
            value.copy_(self._trained[name])
            self._trained[name].copy_(kept)
        self._swapped = not self._swapped
