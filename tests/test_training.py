"""`rpf fit|validate|test|predict` in this process, on a tiny network and a few drawn faces."""

import csv
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rpf_lightning.callbacks import ImagePanels
from rpf_lightning.cli import main
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import WarpingStage
from rpf_lightning.training import lightning_cli
from small_fits import write_fit

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, network: dict[str, Any]) -> Write:
    """Write a configuration and return its path; the model directory is `tmp_path/model`."""

    def config(stage: str = "WarpingStage", **init_args: Any) -> Path:
        init_args = {"model_dir": str(tmp_path / "model"), "network": network, **init_args}
        return write_fit(tmp_path / f"{stage}.yaml", stage, **init_args)

    return config


def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "model" / "runs" / "block1-warping"


def last(tmp_path: Path) -> Path:
    return run_dir(tmp_path) / "checkpoints" / "last.ckpt"


def test_fit_writes_metrics_checkpoint_configuration_and_model(write: Write, tmp_path: Path) -> None:
    main(["fit", "--config", str(write(learning_rate=1e-2)), "--model.init_args.flow_weight", "0.02"])
    log = run_dir(tmp_path) / "logs" / "version_0"
    with (log / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    train = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(train) == 2
    assert all(np.isfinite(train))
    assert sum(bool(row["val/end_point_error"]) for row in rows) == 1
    for name in ("config.yaml", "hparams.yaml"):
        saved = yaml.safe_load((log / name).read_text())
        assert saved["model"]["class_path"] == "rpf_lightning.stages.WarpingStage"
        assert saved["model"]["init_args"]["flow_weight"] == 0.02
        assert saved["model"]["init_args"]["learning_rate"] == 1e-2
        assert saved["data"]["init_args"]["people"] == 6
        assert saved["trainer"]["limit_train_batches"] == 2
    assert saved["trainer"]["min_epochs"] is None  # also what was not given
    assert [file.name for file in (run_dir(tmp_path) / "panels").iterdir()] == ["epoch0000.png"]
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    assert checkpoint["generator_steps"] == 2
    module = RPFModel.from_pretrained(tmp_path / "model").blocks[0].warping.state_dict()
    for key, value in module.items():
        assert torch.equal(checkpoint["state_dict"][f"model.blocks.0.warping.{key}"], value)


def test_saved_configuration_runs_again(write: Write, tmp_path: Path) -> None:
    main(["fit", "--config", str(write())])
    saved = run_dir(tmp_path) / "logs" / "version_0" / "config.yaml"
    cli = lightning_cli(["fit", "--config", str(saved)])
    assert cli.trainer.current_epoch == 1
    assert (run_dir(tmp_path) / "logs" / "version_1" / "metrics.csv").is_file()


def test_validate_and_test_log_the_same_people(write: Write, tmp_path: Path) -> None:
    config = str(write())
    main(["fit", "--config", config])
    values = []
    for number, command in enumerate(("validate", "test"), start=1):
        main([command, "--config", config, "--trainer.limit_test_batches", "1"])
        path = run_dir(tmp_path) / "logs" / f"version_{number}" / "metrics.csv"
        with path.open() as file:
            prefix = "val" if command == "validate" else "test"
            values.append(float(next(csv.DictReader(file))[f"{prefix}/warping"]))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    with (run_dir(tmp_path) / "logs" / "version_0" / "metrics.csv").open() as file:
        fitted = [float(row["val/warping"]) for row in csv.DictReader(file) if row["val/warping"]]
    assert values[0] == pytest.approx(fitted[-1], rel=1e-4)  # the model was read from the directory


def test_predict_writes_every_validation_photo(write: Write, tmp_path: Path) -> None:
    config = str(write("SynthesisStage"))
    cli = lightning_cli(["predict", "--config", config])
    ids = [name for batch in cli.datamodule.val_dataloader() for name in batch.id]
    folder = tmp_path / "model" / "runs" / "block1-synthesis" / "predictions"
    assert len(ids) >= 4
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in ids}
    assert Image.open(folder / f"{ids[0]}.png").size == (32, 32)


def test_checkpoint_hyperparameters_do_not_win(write: Write, tmp_path: Path) -> None:
    config = str(write(learning_rate=1e-3))
    main(["fit", "--config", config])
    more = ["--trainer.max_epochs", "2", "--model.init_args.learning_rate", "0.5"]
    cli = lightning_cli(["fit", "--config", config, "--ckpt_path", str(last(tmp_path)), *more])
    assert type(cli.model) is WarpingStage
    assert cli.model.learning_rate == 0.5
    assert cli.model.hparams["learning_rate"] == cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    assert cli.model.generator_steps == 4  # and yet it was resumed


def test_last_checkpoint_is_the_last_fits(write: Write, tmp_path: Path) -> None:
    """A second fit from the start in the same folder: `last.ckpt` must not stay the first one's."""
    main(["fit", "--config", str(write(learning_rate=1e-2))])
    main(["fit", "--config", str(write(learning_rate=1e-2))])
    saved = torch.load(last(tmp_path), weights_only=True)["state_dict"]
    module = RPFModel.from_pretrained(tmp_path / "model").blocks[0].warping.state_dict()
    changed = [k for k, v in module.items() if not torch.equal(saved[f"model.blocks.0.warping.{k}"], v)]
    assert changed == []


@pytest.mark.parametrize("own", ["ModelCheckpoint", "LastCheckpoint"])
def test_own_callbacks_win(write: Write, tmp_path: Path, own: str) -> None:
    path = write()
    content = yaml.safe_load(path.read_text())
    places = {
        "ModelCheckpoint": {"dirpath": str(tmp_path / "mine"), "filename": "own"},
        "LastCheckpoint": {"every_n_batches": 1},
        "ImagePanels": {"every_n_epochs": 2},
    }
    for name in (own, "ImagePanels"):
        module = "lightning.pytorch" if name == "ModelCheckpoint" else "rpf_lightning"
        entry = {"class_path": f"{module}.callbacks.{name}", "init_args": places[name]}
        content["trainer"]["callbacks"].append(entry)
    path.write_text(yaml.safe_dump(content))
    cli = lightning_cli(["fit", "--config", str(path), "--trainer.max_epochs", "2"])
    if own == "ModelCheckpoint":
        assert [file.name for file in (tmp_path / "mine").iterdir()] == ["own.ckpt"]
        assert not last(tmp_path).exists()
    else:
        assert [c.every_n_batches for c in cli.trainer.checkpoint_callbacks] == [1]
        assert [file.name for file in last(tmp_path).parent.iterdir()] == ["last.ckpt"]
    assert [c.every_n_epochs for c in cli.trainer.callbacks if isinstance(c, ImagePanels)] == [2]
    assert [file.name for file in (run_dir(tmp_path) / "panels").iterdir()] == ["epoch0001.png"]


def test_no_checkpoints_on_request(write: Write, tmp_path: Path) -> None:
    main(["fit", "--config", str(write()), "--trainer.enable_checkpointing", "false"])
    assert not last(tmp_path).parent.exists()


def test_best_checkpoint_is_the_stages_best_epoch(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warping's monitor is an error: lower is better. A fit that goes on remembers it."""

    def diagnostics(stage: WarpingStage, *args: Any) -> dict[str, torch.Tensor]:
        return {"end_point_error": torch.tensor((3.0, 1.0, 2.0, 1.5)[stage.current_epoch])}

    monkeypatch.setattr(WarpingStage, "metrics", lambda stage: {})
    monkeypatch.setattr(WarpingStage, "diagnostics", diagnostics)
    for more in (["3"], ["4", "--ckpt_path", str(last(tmp_path))]):
        main(["fit", "--config", str(write()), "--trainer.max_epochs", *more])
        assert torch.load(last(tmp_path).with_name("best.ckpt"), weights_only=True)["epoch"] == 1
        assert torch.load(last(tmp_path), weights_only=True)["epoch"] == int(more[0]) - 1
        assert sorted(file.name for file in last(tmp_path).parent.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("batches", ["0", "0.0"])
def test_fit_without_validation(write: Write, tmp_path: Path, batches: str) -> None:
    main(["fit", "--config", str(write()), "--trainer.limit_val_batches", batches])
    assert [file.name for file in last(tmp_path).parent.iterdir()] == ["last.ckpt"]
    assert not (run_dir(tmp_path) / "panels").exists()


class Malicious:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(("command", "switched_off"), [("fit", False), ("fit", True), ("validate", True)])
def test_checkpoint_runs_no_code(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, switched_off: bool
) -> None:
    """Not even where torch's own default was switched off."""
    config = str(write())
    main(["fit", "--config", config, "--trainer.limit_val_batches", "0"])
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    checkpoint["callbacks"]["extra"] = Malicious(tmp_path / "trap")
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    if switched_off:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir"):
        main([command, "--config", config, "--ckpt_path", str(tmp_path / "bad.ckpt")])
    assert not (tmp_path / "trap").exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "trap").is_dir()  # it would have


def test_one_batch_is_one_batch_whatever_was_imported_first(write: Write) -> None:
    """The order of a cached Union decides whether jsonargparse reads 1 as 1 or as 1.0, all batches."""
    script = (
        "import rich.console\n"
        "from rpf_lightning.training import lightning_cli\n"
        f"cli = lightning_cli(['predict', '--config', {str(write('SynthesisStage', block=2))!r},"
        " '--trainer.limit_predict_batches', '1'])\n"
        "print('limit', repr(cli.trainer.limit_predict_batches), cli.trainer.num_predict_batches)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "limit 1 [1]"
