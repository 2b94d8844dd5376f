"""Freezing of everything that a stage does not train (paper IV-B)."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from torch import nn

from rpf_lightning.stages.model_dir import DirectoryStage


class FreezeEarlierBlocks(Callback):
    """Freezes earlier blocks, and the other modules of the block that is trained; every stage brings it itself.

    It keeps no state: it freezes in `setup`, before the optimizers are made, on every start and every resume,
    since `requires_grad` is not in checkpoints; and it keeps frozen modules in eval mode.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switch gradients off for all but the trained module. Parts of that which others have frozen stay so.

        Raises:
            TypeError: If the LightningModule is not one of this package's stages.
        """
        rpf_stage = _stage(pl_module)
        own = list(rpf_stage.trained_module.parameters())
        free = [p for p in own if p.requires_grad] or own
        rpf_stage.model.requires_grad_(False)
        for parameter in free:
            parameter.requires_grad_(True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same where a resumed fit enters in the middle of an epoch, which does not start then."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put frozen modules into eval mode; Lightning has just called `train()` on all of them."""
        rpf_stage = _stage(pl_module)
        rpf_stage.model.eval()
        rpf_stage.trained_module.train()


def _stage(module: nn.Module) -> DirectoryStage:
    if not isinstance(module, DirectoryStage):
        raise TypeError(
            f"FreezeEarlierBlocks: expected a stage of rpf_lightning, got {type(module).__name__}"
        )
    return module
