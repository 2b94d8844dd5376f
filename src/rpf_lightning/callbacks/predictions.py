"""Writing predicted images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from rpf_lightning.model.storage import write_atomically


class PredictionWriter(BasePredictionWriter):
    """Writes every prediction of a stage as `<id>.png`, batch by batch.

    Args:
        directory: Made if it is missing. None: `predictions/` in the trainer's default_root_dir.
    """

    def __init__(self, directory: str | None = None) -> None:
        super().__init__("batch")
        self.directory = directory

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: tuple[list[str], Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        root = Path(self.directory) if self.directory else Path(trainer.default_root_dir) / "predictions"
        root.mkdir(parents=True, exist_ok=True)
        names, images = prediction
        pixels = (images.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for name, image in zip(names, pixels, strict=True):
            write_atomically(root / f"{Path(name).stem}.png", png(image))


def png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode an (H, W, 3) uint8 image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
