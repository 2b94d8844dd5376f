"""What docs/reliability.md names exists; damage and mix-ups that other files do not try."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning import Callback, Trainer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn
from torch.utils.data import DataLoader

from rpf_lightning.cli import main
from rpf_lightning.data.preparation.prepared_folder import SUMMARY, verify
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.errors import DamagedError
from rpf_lightning.export import export_model
from rpf_lightning.loggers import WandbRun
from rpf_lightning.model import RPFConfig, RPFModel, storage
from rpf_lightning.stages import WarpingStage
from rpf_lightning.stages.sole_fit import sole_fit
from rpf_lightning.training import read_fit
from small_fits import QUIET, write_fit

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
NETWORK = RPFConfig(lr_size=16, scale=2, channels=4, width=1 / 64)


def test_every_test_of_the_page_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text())
    assert len(named) > 40
    missing = []
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if not name.startswith("test_") or name not in functions:
            missing.append(f"{file}::{name}")
    assert missing == []


def test_every_row_of_the_page_names_a_test() -> None:
    tried = PAGE.read_text().partition("## Kills and memory")[0]
    rows = [line for line in tried.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) >= 40
    assert [row for row in rows if "::test_" not in row] == []


# Weights


def test_flipped_bits_of_weights_are_noticed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    RPFModel(NETWORK).save_pretrained(tmp_path)
    file = tmp_path / storage.WEIGHTS_FILE
    whole = file.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    for place in range(head, len(whole), len(whole) // 40):
        content = bytearray(whole)
        content[place] ^= 1  # the last bit of a number: it stays finite
        file.write_bytes(content)
        with pytest.raises(
            DamagedError, match=rf"{file}: damaged, its weights are not those that were saved"
        ):
            RPFModel.from_pretrained(tmp_path)
    file.write_bytes(whole)
    RPFModel.from_pretrained(tmp_path)


def test_weights_without_a_checksum_are_read(tmp_path: Path) -> None:
    """Those of older releases, and of other programs."""
    RPFModel(NETWORK).save_pretrained(tmp_path)
    file = tmp_path / storage.WEIGHTS_FILE
    state = safetensors.torch.load_file(file)
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file(state, file, metadata)
        RPFModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_what_a_stage_refuses_is_told_in_a_line(
    command: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """jsonargparse puts a page around it."""
    file = model_dir / storage.WEIGHTS_FILE
    state = safetensors.torch.load_file(file)
    state[next(iter(state))].view(-1)[0] = float("nan")
    safetensors.torch.save_file(state, file)
    config = str(write_fit(tmp_path / "w.yaml", "WarpingStage", model_dir=str(model_dir)))
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", config])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(rf"^rpf {command}: error: {file}: .* holds NaN or infinite values", said, re.MULTILINE)


# Prepared folders


def test_another_list_of_near_duplicates_is_noticed(prepared: Path) -> None:
    assert PreparedPhotos(prepared).near_duplicates() == []
    assert verify(prepared) == []
    file = prepared / "duplicates.csv"
    names = PreparedPhotos(prepared).ids[:2]
    file.write_text(f"file,other,people\n{names[0]},{names[1]},one\n")
    with pytest.raises(DamagedError, match=rf"{file}: is not the list that was prepared"):
        PreparedPhotos(prepared).near_duplicates()
    assert [problem for problem in verify(prepared) if str(file) in problem]
    summary = json.loads((prepared / SUMMARY).read_text())
    del summary["duplicates_sha256"]  # a folder of an older release
    (prepared / SUMMARY).write_text(json.dumps(summary))
    assert PreparedPhotos(prepared).near_duplicates() == [(0, 1)]
    assert verify(prepared) == []


# Fits from Python


class Stopping(Callback):
    """Ends a fit in its middle, as an error would."""

    def on_train_batch_start(self, *_: Any) -> None:
        raise KeyError("its own")


def test_a_fit_from_python_keeps_others_out(tmp_path: Path, batch_of: Any) -> None:
    stage = WarpingStage(str(tmp_path / "model"), network=NETWORK)
    data = DataLoader([batch_of(1)], batch_size=None)

    def fit(**more: Any) -> None:
        Trainer(max_epochs=1, **QUIET, **more).fit(stage, data)

    class Other(Callback):
        def on_train_start(self, *_: Any) -> None:
            with (
                pytest.raises(FileExistsError, match="another process runs this fit"),
                sole_fit(stage.run_dir),
            ):
                pass
            seen.append(True)

    seen: list[bool] = []
    fit(callbacks=[Other()])
    assert seen == [True]
    with pytest.raises(KeyError):
        fit(callbacks=[Stopping()])
    fit()  # neither end left a lock
    with sole_fit(stage.run_dir):
        with pytest.raises(FileExistsError, match="another process runs this fit"):
            fit()
        fit(fast_dev_run=True)  # writes nothing


def test_the_precision_that_acts_is_said(
    tmp_path: Path, batch_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 16-mixed on a CPU Lightning makes bf16-mixed, with a warning, before a stage can see it."""
    stage = WarpingStage(str(tmp_path), network=NETWORK)
    with pytest.warns(UserWarning, match="bf16-mixed"):
        trainer = Trainer(max_epochs=1, precision="16-mixed", **QUIET)
    with caplog.at_level("INFO"):
        trainer.fit(stage, DataLoader([batch_of(1)], batch_size=None))
    assert "M trained parameters, bf16-mixed" in caplog.text


def test_a_new_fit_sets_the_checkpoints_of_the_one_before_aside(
    tmp_path: Path,
    network: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(
        write_fit(tmp_path / "w.yaml", "WarpingStage", model_dir=str(tmp_path / "m"), network=network)
    )
    main(["fit", "--config", config])
    folder = tmp_path / "m" / "runs" / "block1-warping" / "checkpoints"
    before = (folder / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(WarpingStage, "training_step", lambda *_: (_ for _ in ()).throw(KeyError("killed")))
        with pytest.raises(KeyError):
            main(["fit", "--config", config])
    assert sorted(file.name for file in folder.iterdir()) == ["best_before.ckpt", "last_before.ckpt"]
    assert (folder / "last_before.ckpt").read_bytes() == before
    with pytest.raises(SystemExit):  # rather than going on with the earlier fit
        main(["fit", "--config", config, "--ckpt_path", "last"])
    assert "--ckpt_path last: there is no" in capsys.readouterr().err
    main(
        [
            "fit",
            "--config",
            config,
            "--ckpt_path",
            str(folder / "last_before.ckpt"),
            "--trainer.max_epochs",
            "2",
        ]
    )
    assert torch.load(folder / "last.ckpt", weights_only=True)["generator_steps"] == 4


# Stops


def test_a_stop_within_exec_has_its_exit_code(tmp_path: Path) -> None:
    """As in the making of a dataclass, in the middle of an import; of `python -m`, where it was -2, SIGINT's."""
    text = (
        "import os, signal\n"
        "from rpf_lightning.stopping import stoppable\n"
        "with stoppable('rpf x'):\n"
        "    exec('os.kill(os.getpid(), signal.SIGTERM)')\n"
    )
    (tmp_path / "stopped.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (143, "rpf x: stopped by SIGTERM\n")


def test_what_a_kill_of_an_export_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".m.pt2.x1y2.exporting"
    left.mkdir()
    (left / "m.pt2").write_text("half")
    others = tmp_path / ".m.pt2.backup"
    others.mkdir()
    torch.manual_seed(0)
    export_model(RPFModel(NETWORK), tmp_path / "m.pt2", "torch", tolerance=1)
    assert {path.name for path in tmp_path.iterdir()} == {"m.pt2", others.name}


# Habits of the ecosystem


def test_overlays_of_callbacks_add_to_those_of_the_fit() -> None:
    words = ["--config", "small/warping.yaml", "--model.init_args.model_dir", "here"]
    for overlay in ("averaged", "learning_rate"):
        words += ["--config", f"callbacks/{overlay}.yaml"]
    paths = [callback["class_path"] for callback in read_fit(words)["trainer"]["callbacks"]]
    names = [path.rpartition(".")[2] for path in paths]
    assert names[-2:] == ["AveragedWeights", "LearningRateMonitor"]


def test_the_rate_that_acts_is_logged(tmp_path: Path, network: dict[str, Any]) -> None:
    """The stages set it by themselves, without a scheduler; it is noted when the next batch begins."""
    path = write_fit(
        tmp_path / "w.yaml", "WarpingStage", {"max_epochs": 2}, model_dir=str(tmp_path / "m"), network=network,
        learning_rate=0.5, decay="cosine",
    )  # fmt: skip
    main(["fit", "--config", str(path), "--config", "callbacks/learning_rate.yaml"])
    (file,) = (tmp_path / "m").rglob("metrics.csv")
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    column = next(i for i, name in enumerate(header) if name.startswith("lr-"))
    rates = [float(row[column]) for row in rows if row[column]]
    assert rates[0] == 0.5
    assert rates[-1] == pytest.approx(0.25)  # of the third of four steps


def test_wandb_watches_what_is_trained(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[Any] = []
    monkeypatch.setattr(WandbRun, "watch", lambda self, *given, **how: watched.append((given, how)))
    stage = WarpingStage(str(model_dir))
    for logger in (WandbRun(), WandbRun(watch="gradients")):
        logger.describe(stage, {})
        logger.log_graph(stage)
    ((module, what), _) = watched[0]
    assert (module, what, len(watched)) == (stage.trained_module, "gradients", 1)
    assert isinstance(module, nn.Module)


# Supply chain


def test_constraints_are_what_the_package_allows() -> None:
    """Every direct dependency has one release in it, within its bounds."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [needed for extra in project["optional-dependencies"].values() for needed in extra]
    asked = [Requirement(text) for text in [*project["dependencies"], *extras]]
    own = {"rpf-lightning", "dlib"}  # dlib stands in for dlib-bin where that has no wheel
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name in own or pinned[name] in requirement.specifier, requirement
