"""Labelled pictures of what a stage makes, after every validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rpf_lightning.model.storage import write_atomically
from rpf_lightning.pictures import png, to_uint8
from rpf_lightning.stages.base import RPFStage

KEY = "val/panel"  # the loggers' name of the picture
MAX_WIDTH = 2500  # pixels
SHOWN = 128  # smaller pictures are enlarged to at least this side
GAP = 6
TEXT = 20  # height of a line of text


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
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch, while it is on the device."""
        if batch_idx or dataloader_idx or not self._wanted(trainer):
            return
        if not isinstance(pl_module, RPFStage):
            raise TypeError(f"ImagePanels: expected a stage of rpf_lightning, got {type(pl_module).__name__}")
        few = _first(batch, self.images)
        # as the validation step runs: in eval mode, without gradients, in the fit's precision
        with isolate_rng(), trainer.precision_plugin.val_step_context():
            pictures = pl_module.pictures(few)
        self._panel = draw_panel(pictures, few.id)

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


def draw_panel(pictures: Mapping[str, Tensor], captions: Sequence[str]) -> Image.Image:
    """Draw one row per photo under titled columns, on white.

    Args:
        pictures: Title -> (B, 3, S, S) in [0, 1], in the columns' order. Sides below 128 are enlarged by a
            whole factor without interpolation; large ones are reduced, so that the panel is at most 2500
            pixels wide.
        captions: One text per row.

    Returns:
        An RGB picture.
    """
    side = next(iter(pictures.values())).shape[-1]
    widest = (MAX_WIDTH - GAP) // len(pictures) - GAP
    cell = min(side * math.ceil(SHOWN / side), widest)
    rows = len(captions)
    panel = Image.new(
        "RGB", (GAP + len(pictures) * (cell + GAP), GAP + TEXT + rows * (TEXT + cell + GAP)), "white"
    )
    draw = ImageDraw.Draw(panel)
    for row, caption in enumerate(captions):
        y = GAP + TEXT + row * (TEXT + cell + GAP)
        draw.text((GAP, y + TEXT // 2), caption, fill="dimgray", font=ImageFont.load_default(12), anchor="lm")
    for column, (title, images) in enumerate(pictures.items()):
        x = GAP + column * (cell + GAP)
        size = next((n for n in range(15, 7, -1) if _width(draw, title, n) <= cell), 7)
        middle = (x + cell // 2, GAP + TEXT // 2)
        draw.text(middle, title, fill="black", font=ImageFont.load_default(size), anchor="mm")
        pixels = to_uint8(images)
        for row in range(rows):
            filtering = Image.Resampling.NEAREST if cell >= side else Image.Resampling.LANCZOS
            picture = Image.fromarray(pixels[row]).resize((cell, cell), filtering)
            panel.paste(picture, (x, GAP + TEXT + row * (TEXT + cell + GAP) + TEXT))
    return panel


def _width(draw: ImageDraw.ImageDraw, text: str, size: int) -> float:
    return draw.textlength(text, ImageFont.load_default(size))


def _first(batch: Any, count: int) -> Any:
    fields = {k: v[:count] for k, v in batch._asdict().items() if isinstance(v, Tensor | list)}
    return batch._replace(**fields)
