"""The checkpoint that a killed fit continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from rpf_lightning.stages.checkpoint_files import use_checkpoint_files

FILE = "last.ckpt"
OF_A_FIT = (FILE, "best.ckpt")


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` after every epoch and every n batches within one; the file is always a whole one.

    `ModelCheckpoint(every_n_train_steps)` counts the steps of both optimizers and so misses its numbers, and
    `train_time_interval` saves nothing under manual optimization. At the end of an epoch the file is written
    after that epoch's validation; listed after a `ModelCheckpoint`, it also knows that one's best score. When to
    write depends on counters only: all processes of a distributed fit agree on it.

    Args:
        dirpath: Made if it is missing. None: `checkpoints/` in the stage's run folder, or else in the
            trainer's default_root_dir.
        every_n_batches: Counted within the epoch; 0 writes after epochs only. Where accumulated gradients are
            pending, which no checkpoint holds, the file is written after the next batch that leaves none.

    Raises:
        ValueError: If `every_n_batches` is negative.
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_batches: int = 500) -> None:
        super().__init__()
        if every_n_batches < 0:
            raise ValueError(f"every_n_batches: expected 0 or more, got {every_n_batches}")
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.every_n_batches = every_n_batches
        self._due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See `CheckpointFiles`."""
        use_checkpoint_files(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set a fit's checkpoints aside, as `last_before.ckpt`, where another one starts from its beginning there.

        Else a kill before the first write would let `last` and `best` mean the earlier fit.
        """
        if trainer.ckpt_path is not None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        for file in (self._folder(trainer, pl_module) / name for name in OF_A_FIT):
            if file.is_file():
                file.replace(file.with_stem(f"{file.stem}_before"))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the file if it is time."""
        if self.every_n_batches and (batch_idx + 1) % self.every_n_batches == 0:
            self._due = True
        # the epoch's last batch has its checkpoint after the validation
        if self._due and not trainer.is_last_batch:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; Lightning calls checkpoints last, and after the validation."""
        self._due = True
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run or getattr(pl_module, "mid_accumulation", False):  # type: ignore[attr-defined]
            return
        # in all processes; the first one writes, the others wait; with optimizers: None says so every time
        trainer.save_checkpoint(self._folder(trainer, pl_module) / FILE, weights_only=False)
        self._due = False

    def _folder(self, trainer: Trainer, pl_module: LightningModule) -> Path:
        root = getattr(pl_module, "run_dir", trainer.default_root_dir)
        return self.dirpath or Path(root) / "checkpoints"
