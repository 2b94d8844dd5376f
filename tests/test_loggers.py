"""WandbRun and TensorBoardRun: what they wrote, read back with readers of the file formats."""

import json
import os
import struct
import time
from pathlib import Path

import pytest
import wandb
import yaml
from lightning import seed_everything
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from rpf_lightning.cli import main
from rpf_lightning.loggers import TensorBoardRun, WandbRun, run_group
from rpf_lightning.stages import JointStage, SynthesisStage, WarpingStage
from rpf_lightning.training import lightning_cli
from small_fits import write_fit

CONFIGS = Path(__file__).parents[1] / "configs"
NAME = "block2-synthesis"


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    """Offline, with W&B's own folders out of the way, from an empty working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for variable in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RUN_GROUP", "WANDB_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for folder in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / "wandb" / folder))
    yield
    wandb.finish()  # of a test that failed


@pytest.fixture
def config(tmp_path, model_dir):
    """Configuration of a short synthesis fit of block 2."""
    return write_fit(
        tmp_path / "synthesis.yaml", "SynthesisStage", {"max_epochs": 2},
        model_dir=str(model_dir), block=2, learning_rate=0.01,
    )  # fmt: skip


def overlay(name):
    return ["--config", str(CONFIGS / "logger" / f"{name}.yaml")]


def records(path, tries=20):
    """Read a `.wandb` file: LevelDB's log format, blocks of 32 kB, after a header of 7 bytes."""
    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    found, parts, place = [], b"", 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # a block's rest is padding
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + size > len(data) and tries:  # W&B's own process is still writing
            time.sleep(0.5)
            return records(path, tries - 1)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


class Run:
    """What one `.wandb` file says."""

    def __init__(self, path):
        self.config, self.rows, self.artifacts = {}, [], []
        self.folder, self.exit_code = path.parent, None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self._configure(record.run.config)
            elif kind == "config":
                self._configure(record.config)
            elif kind == "history":
                self.rows.append({})
                for item in record.history.item:
                    *outer, key = item.nested_key or [item.key]
                    row = self.rows[-1]
                    for name in outer:
                        row = row.setdefault(name, {})
                    row[key] = json.loads(item.value_json)
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def _configure(self, record):
        self.config |= {item.key: json.loads(item.value_json) for item in record.update if item.key}

    def column(self, name):
        return [row[name] for row in self.rows if name in row]

    def steps(self, name):
        return [row["trainer/global_step"] for row in self.rows if name in row]


def runs(folder):
    """All runs under a folder, oldest first; on a busy machine W&B's process may still be writing the last."""
    paths = sorted(folder.rglob("*.wandb"), key=lambda path: path.parent.name)  # date, time
    deadline = time.monotonic() + 30
    while (found := [Run(path) for path in paths]) and time.monotonic() < deadline:
        if all(run.exit_code is not None for run in found):
            break
        time.sleep(0.2)
    return found


def test_offline_run_of_a_fit(config, model_dir, tmp_path):
    (model_dir / "state.json").write_text('{"finished": {}}')
    untrained = (model_dir / "model.safetensors").read_bytes()
    main(["fit", "--config", str(config), *overlay("wandb")])
    assert wandb.run is None
    (run,) = runs(model_dir / "runs" / NAME)
    group = (model_dir / "runs" / "group.txt").read_text().strip()
    said = run.run
    assert (said.project, said.run_group) == ("rpf-lightning", group)
    assert said.run_id.startswith(f"{group}-{NAME}-")
    assert (model_dir / "runs" / NAME / "wandb_run.txt").read_text().strip() == said.run_id
    assert (said.job_type, said.display_name) == ("synthesis", NAME)
    assert list(said.tags) == ["block2", "side64"]
    assert run.exit_code == 0
    assert list((tmp_path / "cwd").iterdir()) == []
    # the whole configuration
    assert run.config["seed_everything"] == 0
    assert run.config["trainer"]["max_epochs"] == 2
    assert run.config["model"]["class_path"] == "rpf_lightning.stages.SynthesisStage"
    assert run.config["model"]["init_args"]["learning_rate"] == 0.01
    assert run.config["data"]["init_args"]["people"] == 6
    # metrics by their names, on the axis of batches
    assert len(run.column("val/psnr_face")) == 2
    assert run.steps("train/loss") == [0, 1, 2, 3]
    assert run.steps("val/psnr") == run.steps("val/panel") == [1, 3]
    for epoch, panel in enumerate(run.column("val/panel")):
        (name,) = panel["filenames"]
        shown = Image.open(run.folder / "files" / name)
        written = Image.open(model_dir / "runs" / NAME / "panels" / f"epoch{epoch:04d}.png")
        assert shown.tobytes() == written.tobytes()
    # the artifact is the trained model
    (artifact,) = run.artifacts
    assert (artifact.type, artifact.name) == ("model", f"rpf-{group}")
    assert set(artifact.aliases) == {"latest", NAME}
    staged = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert set(staged) == {"config.json", "model.safetensors", "state.json"}
    trained = (model_dir / "model.safetensors").read_bytes()
    assert staged["model.safetensors"].read_bytes() == trained != untrained
    assert not any(
        path.is_relative_to(model_dir) for path in staged.values()
    )  # the next fit changes the files


def test_several_loggers_and_their_options(config, model_dir, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    wandb_run = {
        "class_path": "rpf_lightning.loggers.WandbRun",
        "init_args": {"project": "faces", "offline": True, "log_model_dir": False},
        "dict_kwargs": {"notes": "a try", "entity": "lab"},
    }
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(model_dir)}}
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"max_epochs": 1, "logger": [wandb_run, csv]}
    config.write_text(yaml.safe_dump(content))
    try:
        cli = lightning_cli(["fit", "--config", str(config)])
    finally:
        os.environ.pop("WANDB_MODE", None)  # Lightning sets it
    (run,) = runs(model_dir)
    assert (run.run.project, run.run.notes, run.run.entity) == ("faces", "a try", "lab")
    assert run.run.display_name == NAME
    assert run.artifacts == []
    hparams = yaml.safe_load((Path(cli.trainer.loggers[1].log_dir) / "hparams.yaml").read_text())
    assert hparams["trainer"]["max_epochs"] == 1


def test_killed_and_resumed_fit_is_one_run(config, model_dir, monkeypatch):
    start = SynthesisStage.on_train_epoch_start

    def kill(stage):
        start(stage)
        if stage.current_epoch == 1:
            raise RuntimeError("killed")

    args = ["fit", "--config", str(config), *overlay("wandb")]
    with monkeypatch.context() as patch:
        patch.setattr(SynthesisStage, "on_train_epoch_start", kill)
        with pytest.raises(RuntimeError, match="killed"):
            main(args)
    assert wandb.run is None
    last = model_dir / "runs" / NAME / "checkpoints" / "last.ckpt"
    main([*args, "--ckpt_path", str(last)])
    first, second = runs(model_dir)
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.run.run_id == second.run.run_id
    assert first.run.run_group == second.run.run_group
    assert first.artifacts == []
    assert first.steps("train/loss") + second.steps("train/loss") == [0, 1, 2, 3]


def test_a_fit_from_its_beginning_is_a_new_run(config, model_dir):
    args = ["fit", "--config", str(config), *overlay("wandb"), "--trainer.max_epochs", "1"]
    for _ in range(2):
        main(args)
    main([*args, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    first, second, third = (run.run.run_id for run in runs(model_dir))
    assert first != second == third
    (model_dir / "runs" / NAME / "wandb_run.txt").unlink()  # begun by an older release
    logger = WandbRun()
    logger.describe(SynthesisStage(str(model_dir), 2), {}, resumed=True)
    assert logger._id == f"{run_group(model_dir)}-{NAME}"


def test_fits_of_one_directory_share_a_group(config, model_dir):
    """One after another in one process, as the curriculum does."""
    args = ["fit", "--config", str(config), *overlay("wandb"), "--trainer.max_epochs", "1"]
    main([*args, "--model.init_args.block", "1"])
    main(args)
    first, second = runs(model_dir)
    assert [run.run.display_name for run in (first, second)] == ["block1-synthesis", NAME]
    assert first.run.run_group == second.run.run_group
    assert first.run.run_id != second.run.run_id
    assert [list(run.run.tags) for run in (first, second)] == [["block1", "side32"], ["block2", "side64"]]
    assert first.folder.parents[1] == model_dir / "runs" / "block1-synthesis"
    assert [len(run.column("train/loss")) for run in (first, second)] == [2, 2]
    assert first.artifacts[0].name == second.artifacts[0].name


def test_validating_is_a_run_of_its_own(config, model_dir):
    main(["validate", "--config", str(config), *overlay("wandb")])
    (run,) = runs(model_dir)
    assert run.run.display_name == f"{NAME}-validate"
    assert f"-{NAME}-validate-" in run.run.run_id
    assert run.run.job_type == "validate"
    assert run.artifacts == []
    assert len(run.column("val/psnr")) == 1


def test_group_stays_with_its_directory_and_does_not_follow_the_seed(tmp_path):
    groups = []
    for parent in ("a", "b"):
        (tmp_path / parent / "model").mkdir(parents=True)
        seed_everything(0, verbose=False)
        groups.append(run_group(tmp_path / parent / "model"))
        assert groups[-1].startswith("model-")
    assert groups[0] != groups[1]
    (tmp_path / "a" / "model").rename(tmp_path / "mein Modell #1: ü")
    assert run_group(tmp_path / "mein Modell #1: ü") == groups[0]
    (tmp_path / "mein Modell #1: ü" / "runs" / "group.txt").unlink()
    assert all(c.isalnum() or c in "-._" for c in run_group(tmp_path / "mein Modell #1: ü"))
    assert [path.name for path in (tmp_path / "mein Modell #1: ü" / "runs").iterdir()] == ["group.txt"]


def test_own_names_are_kept(model_dir, tmp_path, monkeypatch):
    logger = WandbRun(name="mine", group="ours", tags=["try"], id="abc", config={"note": 1})
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    logger.describe(WarpingStage(str(model_dir), 1), {"model": {"a": 1}})
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finalize("success")
    (run,) = runs(tmp_path / "elsewhere")
    assert (run.run.display_name, run.run.run_group, run.run.run_id) == ("mine", "ours", "abc")
    assert list(run.run.tags) == ["block1", "side32", "try"]
    assert run.config["model"] == {"a": 1}
    assert run.config["note"] == 1
    assert run.run.job_type == "warping"


def test_joint_fits_that_end_at_one_block_are_runs_of_their_own(model_dir):
    names = []
    for first in (1, 2):
        stage = JointStage(str(model_dir), first=first, block=2, perceptual_weight=0, identity_weight=0)
        logger = WandbRun()
        logger.describe(stage, {})
        names.append((logger._name, logger._id.removeprefix(run_group(model_dir))[:-8]))
    assert names == [("joint1-2", "-joint1-2-"), ("joint2-2", "-joint2-2-")]


def test_somebody_elses_run_is_not_ended(model_dir, tmp_path):
    own = wandb.init(dir=tmp_path)
    logger = WandbRun()
    logger.describe(WarpingStage(str(model_dir), 1), {})
    with pytest.warns(UserWarning, match="already in progress"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finalize("success")
    assert wandb.run is own
    own.finish()


def test_fast_dev_run_begins_nothing(config, model_dir):
    main(["fit", "--config", str(config), *overlay("wandb"), "--trainer.fast_dev_run", "true"])
    assert not (model_dir / "runs").exists()


def events(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    found.Reload()
    return found


def test_tensorboard_goes_on_in_its_folder(config, model_dir, tmp_path):
    pytest.importorskip("tensorboard")
    args, run = ["--config", str(config), *overlay("tensorboard")], model_dir / "runs" / NAME
    main(["fit", *args, "--trainer.max_epochs", "1"])
    main(["fit", *args, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    found = events(run / "tensorboard")
    assert [event.step for event in found.Scalars("train/loss")] == [0, 1, 2, 3]
    assert [event.step for event in found.Scalars("val/psnr")] == [1, 3]
    panels = found.Images("val/panel")
    assert [event.step for event in panels] == [1, 3]
    written = Image.open(run / "panels" / "epoch0001.png")
    assert (panels[1].width, panels[1].height) == written.size
    hparams = yaml.safe_load((run / "tensorboard" / "hparams.yaml").read_text())
    assert hparams["data"]["init_args"]["people"] == 6
    assert list((tmp_path / "cwd").iterdir()) == []
    main(["fit", *args, "--trainer.max_epochs", "1"])  # from its beginning: other curves
    main(["fit", *args, "--ckpt_path", "last"])
    assert [event.step for event in events(run / "tensorboard_2").Scalars("train/loss")] == [0, 1, 2, 3]
    assert [event.step for event in events(run / "tensorboard").Scalars("train/loss")] == [0, 1, 2, 3]
    main(["validate", *args])
    assert events(run / "validate" / "tensorboard").Scalars("val/psnr")


def test_described_folder_given_by_hand_is_kept(model_dir, tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorBoardRun(save_dir=str(tmp_path / "mine"))
    logger.describe(WarpingStage(str(model_dir), 1), {})
    assert Path(logger.log_dir) == tmp_path / "mine" / "tensorboard"
