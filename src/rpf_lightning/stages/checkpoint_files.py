"""How checkpoints are written and read: whole or not at all, checked, and as data only."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO

from rpf_lightning.errors import DamagedError
from rpf_lightning.files import replacing


class CheckpointFiles(TorchCheckpointIO):
    """Local files. Lightning's own class fills one in /tmp, which needs the space twice, and checks nothing."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint beside its name and rename it.

        Raises:
            OSError: If the disk is full or the folder cannot be written; what was there before stays.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # what torch makes of a write that failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, whose checksums torch itself does not look at (0.3 s a GB).

        Args:
            path: The file.
            map_location: See `torch.load`.
            weights_only: Not asked: no checkpoint can run code.

        Raises:
            FileNotFoundError: If there is none.
            DamagedError: If it is not as it was written.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such checkpoint")
        try:
            with zipfile.ZipFile(path) as file:
                wrong = file.testzip()
        except Exception as error:  # one bit can make it stumble over anything
            wrong = str(error)
        if wrong is not None:
            raise _damaged(path, wrong)
        try:
            content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except RuntimeError as error:  # of the archive's headers
            raise _damaged(path, str(error).partition(". ")[0]) from error
        return content


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path}: damaged, it is not what was written ({why}). Put a whole copy back, or delete it: then the fit "
        "starts from its beginning"
    )


def use_checkpoint_files(trainer: Trainer) -> None:
    """Let a trainer read and write checkpoints in this way, unless it was given another."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = CheckpointFiles()
