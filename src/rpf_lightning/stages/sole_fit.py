"""One fit at a time in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout
from lightning import Callback, LightningModule, Trainer

from rpf_lightning.files import locked
from rpf_lightning.stages.model_dir import LOCK, DirectoryStage


@contextmanager
def sole_fit(run_dir: Path) -> Iterator[None]:
    """Keep the same fit out of its run folder while it runs, and remove what a kill in the middle of a write has left.

    Raises:
        FileExistsError: If another process runs it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run_dir / LOCK, blocking=False))
        except Timeout as error:
            raise FileExistsError(
                f"{run_dir}: another process runs this fit; wait for its end, or take another model directory"
            ) from error
        for file in run_dir.glob("checkpoints/.*.tmp"):
            file.unlink(missing_ok=True)
        yield


class SoleFit(Callback):
    """Holds `sole_fit` for fits that a Trainer runs from Python; every stage brings it itself.

    `rpf fit` holds it before there is a Trainer, and says so by the stage's `alone`.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the lock, where something is written; the first of several processes does for all.

        Raises:
            FileExistsError: If another process runs this fit.
        """
        assert isinstance(pl_module, DirectoryStage)
        tries = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if stage == "fit" and not (tries or pl_module.alone) and trainer.is_global_zero:
            self._held.enter_context(sole_fit(pl_module.run_dir))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give it back."""
        self._held.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give it back: there is no teardown then."""
        self._held.close()
