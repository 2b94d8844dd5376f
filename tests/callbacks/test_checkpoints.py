"""LastCheckpoint: when it writes, that the file is whole, and that what it holds goes on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import small_fits
from rpf_lightning.callbacks import LastCheckpoint

QUIET = {**small_fits.QUIET, "enable_checkpointing": True}


class TwoOptimizers(LightningModule):
    """Manual optimization with two steps per batch; notes what every checkpoint saw."""

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate = accumulate
        self.mid_accumulation = False
        self.layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        self.seen: list[tuple[int, int, int]] = []  # epoch, batches of it, validations
        self.batches = self.validations = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in self.layers]

    def on_train_epoch_start(self) -> None:
        self.batches = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.batches = batch_idx + 1
        last = self.batches % self.accumulate == 0 or self.trainer.is_last_batch
        for layer, optimizer in zip(self.layers, self.optimizers(), strict=True):
            self.manual_backward(layer(batch).square().mean())
            if last:
                optimizer.step()
                optimizer.zero_grad()
        self.mid_accumulation = not last

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/score", torch.tensor(float(self.current_epoch)))

    def on_validation_end(self) -> None:
        self.validations += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert not self.mid_accumulation
        self.seen.append((self.current_epoch, self.batches, self.validations))


def fit(
    folder: Path | None, n: int, batches: int = 7, epochs: int = 1, accumulate: int = 1, **kwargs: Any
) -> TwoOptimizers:
    module, ckpt_path = TwoOptimizers(accumulate), kwargs.pop("ckpt_path", None)
    callbacks = [*kwargs.pop("callbacks", []), LastCheckpoint(folder, n)]
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **{**QUIET, **kwargs})
    loader = DataLoader(torch.ones(batches, 1), batch_size=1)
    trainer.fit(module, loader, DataLoader(torch.ones(1, 1)), ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize(
    ("n", "options", "seen"),
    [
        (3, {"epochs": 2}, [(0, 3, 0), (0, 6, 0), (0, 7, 1), (1, 3, 1), (1, 6, 1), (1, 7, 2)]),
        (3, {"batches": 6}, [(0, 3, 0), (0, 6, 1)]),  # the last batch is the epoch's end
        (0, {"epochs": 2}, [(0, 7, 1), (1, 7, 2)]),
        (500, {}, [(0, 7, 1)]),
        (0, {"epochs": 3, "check_val_every_n_epoch": 3}, [(0, 7, 0), (1, 7, 0), (2, 7, 1)]),
        # batches 3 and 6 are in the middle of a step; the module itself refuses to be saved there
        (3, {"batches": 11, "accumulate": 4}, [(0, 4, 0), (0, 8, 0), (0, 11, 1)]),
    ],
)
def test_when_it_writes(tmp_path: Path, n: int, options: dict[str, Any], seen: list[Any]) -> None:
    assert fit(tmp_path / "new", n, **options).seen == seen
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["last.ckpt"]


def test_knows_the_best_checkpoints_score(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/score", mode="max")
    fit(tmp_path, 0, epochs=2, callbacks=[best])
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    scores = [state["best_model_score"] for state in states.values() if "best_model_score" in state]
    assert scores == [1.0]


def test_a_failed_write_keeps_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, sync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError("no space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        fit(tmp_path, 0, epochs=3)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


def test_the_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written, `last.ckpt` is the one before."""
    epochs, save = [], torch.save

    def saving(content: Any, file: Any) -> None:
        save(content, file)
        if (tmp_path / "last.ckpt").exists():
            epochs.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"])
        assert Path(file.name).parent == tmp_path  # on the same disk, so that it can be renamed

    monkeypatch.setattr(torch, "save", saving)
    fit(tmp_path, 0, epochs=3)
    assert epochs == [0, 1]


def test_a_finished_fit_can_be_resumed_and_lengthened(tmp_path: Path) -> None:
    fit(tmp_path, 3)
    for epochs, expected in ((1, []), (2, [(1, 3, 0), (1, 6, 0), (1, 7, 1)])):
        assert fit(tmp_path, 3, epochs=epochs, ckpt_path=tmp_path / "last.ckpt").seen == expected


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path / "new", 1, fast_dev_run=2)
    assert not (tmp_path / "new").exists()


def test_default_folder(tmp_path: Path) -> None:
    fit(None, 0, default_root_dir=tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_negative_number() -> None:
    with pytest.raises(ValueError, match="every_n_batches: expected 0 or more, got -1"):
        LastCheckpoint(every_n_batches=-1)


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from test_checkpoints import fit\n"
        "if __name__ == '__main__':\n"
        "    ddp = {'strategy': 'ddp_find_unused_parameters_true', 'devices': 2}\n"
        "    module = fit(Path(sys.argv[1]), 3, batches=14, accumulate=2, **ddp)\n"
        "    seen = [Path(sys.argv[1]).with_name(f'seen{rank}') for rank in (0, 1)]\n"
        "    seen[module.global_rank].write_text(str(module.seen))\n"
        # Lightning's first process takes the other with it when it ends
        "    while not seen[1].is_file(): time.sleep(0.1)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "out")]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert (tmp_path / f"seen{rank}").read_text() == "[(0, 4, 0), (0, 6, 0), (0, 7, 1)]"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["last.ckpt"]
