"""`rpf fit|validate|test|predict` in this process, on a tiny network and a few drawn faces."""

import csv
import errno
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from rpf_lightning.callbacks import ImagePanels
from rpf_lightning.cli import main
from rpf_lightning.errors import RefusedError
from rpf_lightning.model import RPFConfig, RPFModel
from rpf_lightning.stages import JointStage, SynthesisStage, WarpingStage
from rpf_lightning.stages.sole_fit import sole_fit
from rpf_lightning.training import lightning_cli, read_fit
from small_fits import QUIET, write_fit

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


@pytest.mark.parametrize("how", ["file", "option"])
def test_a_checkpoint_runs_no_code_on_request_either(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    torch.save({"extra": Malicious(tmp_path / "trap")}, tmp_path / "evil.ckpt")
    path, words = write(), []
    if how == "file":
        path.write_text(f"{path.read_text()}weights_only: false\nckpt_path: {tmp_path / 'evil.ckpt'}\n")
    else:
        words = ["--weights_only", "false", "--ckpt_path", str(tmp_path / "evil.ckpt")]
    assert "weights_only: the stages do not heed it; checkpoints are always read as data" in refused(
        capsys, ["fit", "--config", str(path), *words]
    )
    stage, trainer = (
        WarpingStage(str(tmp_path / "model"), 1, RPFConfig(lr_size=16, scale=2)),
        Trainer(**QUIET),
    )
    with pytest.raises(pickle.UnpicklingError):  # from Python
        trainer.validate(stage, DataLoader([0]), ckpt_path=str(tmp_path / "evil.ckpt"), weights_only=False)
    assert not (tmp_path / "trap").exists()


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line in which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return next(line for line in said.splitlines() if line.startswith(f"rpf {words[0]}: error: "))


IGNORED = [
    ("--optimizer SGD --optimizer.lr 0.5", r"optimizer: .*model\.init_args\.learning_rate"),
    ("--lr_scheduler StepLR --lr_scheduler.step_size 3", r"lr_scheduler: .*model\.init_args\.decay"),
    ("--trainer.gradient_clip_val 0.5", r"trainer\.gradient_clip_val: .*model\.init_args\.gradient_clip"),
    (
        "--trainer.gradient_clip_algorithm value",
        r"gradient_clip_algorithm: .*model\.init_args\.gradient_clip",
    ),
    ("--trainer.accumulate_grad_batches 2", r"accumulate_grad_batches: .*model\.init_args\.accumulate"),
    ("--trainer.precision 16-mixed", "precision: expected 32-true or bf16-mixed, got 16-mixed"),
    ("--trainer.precision 16", "precision: expected 32-true or bf16-mixed, got 16"),
    ("--trainer.precision 64", "precision: expected 32-true or bf16-mixed, got 64"),
    ("--trainer.max_steps 3", "expected the fit's length in max_epochs"),
    ("--trainer.max_epochs -1", "expected the fit's length in max_epochs"),
    ("--trainer.min_steps 3", r"trainer\.min_steps: .*trainer\.min_epochs"),
    ("--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs=1e-2", "AveragedWeights"),
    ("--trainer.callbacks+=EMAWeightAveraging", "EMAWeightAveraging: .*AveragedWeights"),
    ("--trainer.callbacks+=LearningRateFinder", r"LearningRateFinder: .*model\.init_args\.learning_rate"),
    (
        '--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling={"0":2}',
        "accumulate",
    ),
]


@pytest.mark.parametrize(("options", "message"), IGNORED)
def test_what_stages_do_not_heed_is_refused(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    words = ["--config", str(write()), *options.split()]
    assert re.search(message, refused(capsys, ["fit", *words]))
    assert not (tmp_path / "model").exists()
    with pytest.raises(RefusedError, match=message):  # what `rpf curriculum --dry-run` asks
        read_fit(words)


@pytest.mark.parametrize("precision", ["32", "32-true", "bf16-mixed", "bf16"])
def test_other_names_of_what_is_heeded_are_taken(write: Write, precision: str) -> None:
    words = [
        "--config",
        str(write()),
        "--trainer.precision",
        precision,
        "--trainer.accumulate_grad_batches",
        "1",
    ]
    assert str(read_fit([*words, "--optimizer", "null"])["trainer"]["precision"]) == precision


def test_environment_variables_set_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_TRAINER__MAX_EPOCHS", "PL_FIT__TRAINER__MAX_EPOCHS"):
        monkeypatch.setenv(name, "7")
    assert read_fit(["--config", str(write())])["trainer"]["max_epochs"] == 1


def test_what_is_refused_writes_no_model(write: Write, tmp_path: Path) -> None:
    network = RPFConfig(lr_size=16, scale=2, channels=4, width=1 / 64)
    folder = str(tmp_path / "model")
    for stage, wrong in (
        (WarpingStage, {"block": 9}),
        (WarpingStage, {"accumulate": 0}),
        (WarpingStage, {"entry_fraction": 2.0}),
        (SynthesisStage, {"critic": "none"}),
        (JointStage, {"first": 2, "block": 1, "perceptual_weight": 0, "identity_weight": 0}),
    ):
        with pytest.raises((ValueError, KeyError)):
            stage(folder, network=network, **{"block": 1, **wrong})
    WarpingStage(folder, network=network)
    assert not (tmp_path / "model").exists()
    main(["fit", "--config", str(write()), "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "model").exists()
    main(["validate", "--config", str(write())])
    assert RPFModel.from_pretrained(tmp_path / "model").config.scale == 4


def test_a_damaged_checkpoint_is_told_in_a_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["fit", "--config", str(write()), "--trainer.max_epochs", "2"]
    main(config)
    content = bytearray(last(tmp_path).read_bytes())
    content[len(content) // 2] ^= 1
    last(tmp_path).write_bytes(content)
    model = (tmp_path / "model" / "model.safetensors").read_bytes()
    said = refused(capsys, [*config, "--ckpt_path", "last"])
    assert said.startswith(f"rpf fit: error: {last(tmp_path)}: damaged, it is not what was written")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_by_name(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Another process wrote them: Lightning knows only those of the same trainer."""
    config = ["--config", str(write())]
    assert f"--ckpt_path {name}: there is no {last(tmp_path).with_name(f'{name}.ckpt')}" in refused(
        capsys, ["validate", *config, "--ckpt_path", name]
    )
    assert not (tmp_path / "model").exists()
    main(["fit", *config])
    cli = lightning_cli(["validate", *config, "--ckpt_path", name])
    assert cli.trainer.ckpt_path == str(last(tmp_path).with_name(f"{name}.ckpt"))
    cli = lightning_cli(["fit", *config, "--ckpt_path", name, "--trainer.max_epochs", "2"])
    assert cli.model.generator_steps == 4


def test_the_same_fit_twice_at_once_is_told(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(write())]
    with sole_fit(run_dir(tmp_path)):
        assert refused(capsys, ["fit", *config]) == (
            f"rpf fit: error: {run_dir(tmp_path)}: another process runs this fit; wait for its end, or take another "
            "model directory"
        )
        assert [file.name for file in run_dir(tmp_path).iterdir()] == [".lock"]
        main(["fit", *config, "--model.init_args.block", "2"])  # another fit
        main(["validate", *config])
    main(["fit", *config])
    main(["fit", *config])


def test_a_full_disk_is_told_in_a_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["fit", "--config", str(write())]
    main(config)
    before = last(tmp_path).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        args[1].write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    said = refused(capsys, config)
    assert re.match(
        r"rpf fit: error: .*best\.ckpt: No space left on device\. Nothing is half-written; make room", said
    )
    assert last(tmp_path).with_stem("last_before").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
