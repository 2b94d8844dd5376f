"""Writing predicted images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from rpf_lightning.files import write_atomically
from rpf_lightning.pictures import png, result_file, to_uint8


class PredictionWriter(BasePredictionWriter):
    """Writes every prediction of a stage as `<id>.png`, batch by batch; ids with folders go into subfolders.

    Files of an earlier run are overwritten.

    Args:
        directory: Made if it is missing. None: `predictions/` in the trainer's default_root_dir.

    Raises:
        ValueError: When a process comes to a second photo for one file, such as `a.png` after `a.jpg`.
    """

    def __init__(self, directory: str | None = None) -> None:
        super().__init__("batch")
        self.directory = directory
        self._photos: dict[str, str] = {}  # what each file shows

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the run before."""
        self._photos = {}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: tuple[list[str], Tensor],
        *_: Any,
    ) -> None:
        """Write one batch."""
        root = Path(self.directory) if self.directory else Path(trainer.default_root_dir) / "predictions"
        names, images = prediction
        for name, image in zip(names, to_uint8(images), strict=True):
            written = result_file(name)
            if (photo := self._photos.setdefault(written, name)) != name:
                raise ValueError(
                    f"{written} would stand for two photos, {photo} and {name}; rename one of them"
                )
            file = root / written
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, png(image))
