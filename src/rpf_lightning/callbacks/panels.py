"""Labelled pictures of what a stage makes, after every validation."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from rpf_lightning.drawing import Row, cell, draw_rows
from rpf_lightning.files import write_atomically
from rpf_lightning.pictures import png
from rpf_lightning.stages.base import RPFStage

KEY = "val/panel"  # the loggers' name of the picture


class ImagePanels(Callback):
    """Draws the stage's pictures of the first validation batch: a row per photo, a titled column per picture.

    Writes `panels/epoch0003.png` into the run folder (epochs count from 0, as in the metrics) and gives the
    picture, named ``val/panel``, to every W&B and TensorBoard logger. Only the first process draws. Training
    goes on as if nothing had been drawn: all random states are put back.

    Args:
        every_n_epochs: Draw after validations of every n-th epoch; 0 never draws.
        images: How many photos of the batch.

    Raises:
        ValueError: If `every_n_epochs` is negative or `images` is not positive.
        TypeError: In a fit, if the LightningModule is not one of this package's stages.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 4) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs: expected 0 or more, got {every_n_epochs}")
        if images < 1:
            raise ValueError(f"images: expected 1 or more, got {images}")
        self.every_n_epochs = every_n_epochs
        self.images = images
        self._panel: Image.Image | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Draw the first batch, while it is on the device."""
        if batch_idx or dataloader_idx or not self._wanted(trainer):
            return
        if not isinstance(pl_module, RPFStage):
            raise TypeError(f"ImagePanels: expected a stage of rpf_lightning, got {type(pl_module).__name__}")
        fields = batch._asdict().items()
        few = batch._replace(**{k: v[: self.images] for k, v in fields if isinstance(v, Tensor | list)})
        # as the validation step runs: in eval mode, without gradients, in the fit's precision
        with isolate_rng(), trainer.precision_plugin.val_step_context():
            pictures = pl_module.pictures(few)
        cells = [
            {title: cell(images[place]) for title, images in pictures.items()} for place in range(len(few.id))
        ]
        self._panel, _ = draw_rows([Row(name, row) for name, row in zip(few.id, cells, strict=True)])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture and hand it to the loggers."""
        if self._panel is None:
            return
        assert isinstance(pl_module, RPFStage)
        panel, self._panel = np.asarray(self._panel), None
        folder = pl_module.run_dir / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"epoch{trainer.current_epoch:04d}.png", png(panel))
        step = trainer.fit_loop.epoch_loop.total_batch_idx  # that of this validation's metrics
        with isolate_rng():  # loggers may draw names
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(KEY, [panel], step=step)
                elif isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(KEY, panel, step, dataformats="HWC")

    def _wanted(self, trainer: Trainer) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return False
        return self.every_n_epochs > 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0
