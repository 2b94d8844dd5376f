"""`rpf curriculum`: the plan, one directory for all fits, and going on after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rpf_lightning import curriculum
from rpf_lightning.cli import main
from rpf_lightning.curriculum import run_curriculum
from rpf_lightning.curriculum_file import read_curriculum
from rpf_lightning.fit_settings import settings_of
from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import weights_hash
from rpf_lightning.model.summary import count
from rpf_lightning.stages import WarpingStage
from rpf_lightning.stages.sole_fit import sole_fit
from small_fits import LISTED, entry, write_fit, write_listed

FITS = [
    "block1-refinement", "block2-refinement",
    "block1-warping", "block1-synthesis", "block1-finetune",
    "block2-warping", "block2-synthesis", "block2-finetune",
]  # fmt: skip
NETWORK = {"lr_size": 16, "scale": 4, "channels": 4, "width": 0.015625, "residual": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "refinement": ("RefinementStage", {"input": "lr", "perceptual_weight": 0, "identity_weight": 0}),
    "warping": ("WarpingStage", {"flow_weight": 0.02}),
    "synthesis": ("SynthesisStage", {}),
    "finetune": ("RefinementStage", {"input": "synthesized", "perceptual_weight": 0, "identity_weight": 0}),
}


def write_curriculum(folder: Path, finetune: bool = True, **changes: Any) -> Path:
    """A tiny curriculum of two blocks; the folder also holds its model directory."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = [stage for stage in MODELS if finetune or stage != "finetune"]
    trainer = {"limit_train_batches": 1, "limit_val_batches": 0, "logger": False}
    for stage in stages:
        name, init_args = MODELS[stage]
        init_args = {"model_dir": str(folder / "model"), "learning_rate": 0.001, **init_args}
        write_fit(folder / f"{stage}.yaml", name, trainer, **init_args)
    content = {
        "model_dir": str(folder / "model"),
        "network": NETWORK,
        **{stage: f"{stage}.yaml" for stage in stages},
        **changes,
    }
    (folder / "curriculum.yaml").write_text(yaml.safe_dump(content))
    return folder / "curriculum.yaml"


def change(path: Path, section: str, key: str, value: Any) -> None:
    content = yaml.safe_load(path.read_text())
    (content[section]["init_args"] if "init_args" in content[section] else content[section])[key] = value
    path.write_text(yaml.safe_dump(content))


def on_photos(path: Path) -> Path:
    """Let the fits of a curriculum read a prepared folder."""
    for stage in MODELS:
        content = yaml.safe_load((path.parent / f"{stage}.yaml").read_text())
        content["data"] = {
            "class_path": f"rpf_lightning.data.{'FFHQ' if stage == 'refinement' else 'ReferencePairs'}DataModule",
            "init_args": {"root": "elsewhere", "batch_size": 2, "val_fraction": 0.34},
        }
        (path.parent / f"{stage}.yaml").write_text(yaml.safe_dump(content))
    return path


class FakeFits:
    """Stands in for LightningCLI: keeps the arguments, and stops at the k-th fit."""

    def __init__(self, stop_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.stop_at, self.error = stop_at, error
        self.args: list[list[str]] = []

    def __call__(self, args: list[str]) -> None:
        if len(self.args) + 1 == self.stop_at:
            raise self.error("killed")
        self.args.append(args)

    @property
    def names(self) -> list[str]:
        return [
            f"joint{self.value(i, 'first')}-{self.value(i, 'block')}"
            if "--model.init_args.first" in args
            else f"block{self.value(i, 'block')}-{Path(args[2]).stem}"
            for i, args in enumerate(self.args)
        ]

    def value(self, fit: int, name: str) -> str:
        args = self.args[fit]
        return args[args.index(f"--model.init_args.{name}") + 1]


Fake = Callable[..., FakeFits]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    def install(*args: Any) -> FakeFits:
        fits = FakeFits(*args)
        monkeypatch.setattr(curriculum, "lightning_cli", fits)
        return fits

    return install


run = partial(run_curriculum, say=lambda line: None)


def state(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "state.json").read_text())["finished"]


def stopped(fake: Fake, number: int, *args: Any, **kwargs: Any) -> None:
    """Run a curriculum that is killed when its k-th fit begins."""
    fake(number)
    with pytest.raises(RuntimeError, match="killed"):
        run(*args, **kwargs)


# The plan


def test_dry_run_prints_the_papers_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_curriculum(tmp_path)
    for file in tmp_path.glob("*.yaml"):
        if file != path:
            change(file, "data", "people", -1)  # touching the data would raise
    before = sorted(tmp_path.iterdir())
    main(["curriculum", "--config", str(path), "--dry-run"])
    *lines, total = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"in all  [\d.e-]+ PFLOP", total)
    for line, name in zip(lines, FITS, strict=True):
        block, stage = name.removeprefix("block").split("-")
        assert line.startswith(f"block {block}  {stage}  side {16 * 2 ** int(block)}  ")
        assert line.endswith("to do")
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_one_stage(tmp_path: Path, fake: Fake) -> None:
    fits = fake()
    path = write_curriculum(tmp_path)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {accelerator: cpu}")
    options = [
        "--warping.trainer.max_epochs", "9", "--trainer.max_epochs", "7", "--refinement.data.people=8",
        "--synthesis.trainer.max_epochs", "3", "--warping.trainer.max_steps", "-1", f"-c={overlay}",
    ]  # fmt: skip
    run(path, options, str(tmp_path / "other"))
    assert not (tmp_path / "model").exists()
    assert fits.names == FITS
    last_acts = {"warping": ["7", "9"], "synthesis": ["7", "3"]}
    for number, (args, name) in enumerate(zip(fits.args, FITS, strict=True)):
        assert args[:2] == ["fit", "--config"]
        assert fits.value(number, "model_dir") == str(tmp_path / "other")
        assert "--ckpt_path" not in args
        epochs = [args[i + 1] for i, word in enumerate(args) if word == "--trainer.max_epochs"]
        assert epochs == last_acts.get(name[7:], ["7"])
        assert ("--data.people=8" in args) is (name[7:] == "refinement")
        assert f"-c={overlay}" in args
        assert ("-1" in args) is (name[7:] == "warping")  # a value, no option of all stages
        assert "-1" not in args or args[args.index("-1") - 1] == "--trainer.max_steps"
    kept = state(tmp_path / "other")
    change = ["--warping.trainer.max_epochs", "8", *options[2:]]
    with pytest.raises(ValueError, match=r"block1-warping(.|\n)*trainer\.max_epochs: 9 then, 8 now"):
        run(path, change, str(tmp_path / "other"))
    assert state(tmp_path / "other") == kept
    assert ["9 steps" in line for line in plan(path, options)] == ["warping" in name for name in FITS]


def test_seed_makes_the_first_weights(tmp_path: Path, fake: Fake) -> None:
    fake()
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))
        run(write_curriculum(tmp_path / name, seed=seed))
        files.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


# Bad files


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": 3}, ValueError, r"expected the keys .*epochs"),
        ({"network": None}, ValueError, r"expected the keys .*'network'"),
        ({"warping": None}, ValueError, r"expected the keys .*'warping'"),
        ({"synthesis": "other.yaml"}, FileNotFoundError, r"synthesis names .*other\.yaml"),
        ({"synthesis": 3}, ValueError, "file: expected a name, got 3"),
        ({"network": {**NETWORK, "depth": 3}}, ValueError, "network: .*unexpected keyword argument 'depth'"),
        ({"network": {**NETWORK, "scale": 3}}, ValueError, "network: scale: expected a power of two"),
        ({"network": 3}, ValueError, "network: expected dict, got 3"),
        ({"model_dir": 3}, ValueError, "model_dir: expected str, got 3"),
        ({"initial": ["a"]}, ValueError, r"initial: expected str \| None, got \['a'\]"),
    ],
)
def test_wrong_files(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    path = write_curriculum(tmp_path, **changes)
    content = {key: value for key, value in yaml.safe_load(path.read_text()).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(error, match=message) as caught:
        read_curriculum(path)
    assert str(path) in str(caught.value)


# Going on


@pytest.mark.parametrize(("stop_at", "error"), [(1, RuntimeError), (4, KeyboardInterrupt)])
def test_killed_in_between_goes_on_with_the_rest(
    tmp_path: Path, fake: Fake, stop_at: int, error: type[BaseException]
) -> None:
    path = write_curriculum(tmp_path)
    first = fake(stop_at, error)
    with pytest.raises(error):
        run(path)
    assert first.names == FITS[: stop_at - 1]
    ends = ["finished"] * (stop_at - 1) + ["do"] * (9 - stop_at)
    assert [line.split()[-1] for line in plan(path)] == ends
    second = fake()
    run(path)
    assert second.names == FITS[stop_at - 1 :]
    third = fake()
    lines: list[str] = []
    run(path, say=lines.append)
    assert third.names == []
    assert all(line.endswith("finished before") for line in lines)
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("file", r"block1-warping(.|\n)*\n  model\.init_args\.learning_rate: 0\.001 then, 0\.25 now\n"),
        ("option", r"\n  trainer\.precision: None then, 'bf16-mixed' now\n"),
        ("network", "holds a model with other arguments .*channels: 4 there, 8 here"),
    ],
)
def test_changed_settings_of_a_finished_fit(tmp_path: Path, fake: Fake, where: str, expected: str) -> None:
    path = write_curriculum(tmp_path)
    stopped(fake, 4, path)
    fits = fake()
    if where == "file":
        change(tmp_path / "warping.yaml", "model", "learning_rate", 0.25)
    elif where == "network":
        change(path, "network", "channels", 8)
    options = ["--trainer.precision", "bf16-mixed"] if where == "option" else []
    before = (tmp_path / "model" / "state.json").read_bytes()
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=expected):
            run(path, options, dry_run=dry_run)
    assert fits.names == []
    assert (tmp_path / "model" / "state.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.init_args.learning_rat", "1"], "learning_rat"),
        (["--trainer.max_epochs", "many"], "Expected a <class 'int'>"),
        (["--config", "none.yaml"], r"none\.yaml: there is no such file, and no preset"),
    ],
)
def test_what_no_fit_takes(tmp_path: Path, fake: Fake, words: list[str], message: str) -> None:
    fits = fake()
    path = write_curriculum(tmp_path)
    for dry_run in (True, False):
        expected = rf"^block1-refinement, {tmp_path}/refinement\.yaml with (.|\n)*{message}"
        with pytest.raises(ValueError, match=expected):
            run(path, words, dry_run=dry_run)
    assert fits.names == []
    assert not (tmp_path / "model").exists()


def test_moved_data_model_directory_and_preset_are_no_change(tmp_path: Path, fake: Fake) -> None:
    path = on_photos(write_curriculum(tmp_path / "a"))
    stopped(fake, 4, path, ["--data.init_args.root", "old"], model_dir=str(tmp_path / "one"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.move(tmp_path / "one", tmp_path / "two")
    fits, path = fake(), tmp_path / "b" / "curriculum.yaml"
    run(path, ["--data.init_args.root=new"], model_dir=str(tmp_path / "two"))
    assert fits.names == FITS[3:]
    assert "old" not in " ".join(fits.args[0])


def test_own_arguments_that_begin_like_what_may_change_are_settings() -> None:
    arguments = {"block": 1, "first": 1, "block_weight": 2, "model_dir": "here"}
    trainer = {"callbacks": None, "enable_progress_bar": True, "logger": {"a": 1}, "max_epochs": 3}
    parsed = {"model": {"init_args": arguments}, "data": {"init_args": {"root": "a"}}, "trainer": trainer}
    names = {"model.init_args.block_weight", "trainer.callbacks", "trainer.max_epochs"}
    assert settings_of(parsed).keys() == names


# Only some of the fits


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("warping", ["block1-warping", "block2-warping"]),
        ("block2-synthesis,block1-warping", ["block1-warping", "block2-synthesis"]),
        (["synthesis", "block1,"], [name for name in FITS if "synthesis" in name or "block1" in name]),
    ],
)
def test_only(tmp_path: Path, fake: Fake, only: Any, names: list[str]) -> None:
    path = write_curriculum(tmp_path)
    fits = fake()
    run(path, only=only)
    assert fits.names == names
    assert list(state(tmp_path / "model")) == names
    again = fake()
    run(path, only=only)
    assert again.names == []
    run(path)
    assert again.names == [name for name in FITS if name not in names]


@pytest.mark.parametrize(("start", "first"), [("warping", 2), ("block1-refinement", 0)])
def test_from(tmp_path: Path, fake: Fake, start: str, first: int) -> None:
    fits = fake()
    lines: list[str] = []
    run(write_curriculum(tmp_path), start=start, say=lines.append)
    assert fits.names == FITS[first:]
    missing = [line for line in lines if line.startswith("not finished")]
    assert len(missing) == (1 if first else 0)
    if first:
        assert missing[0].endswith(f"as they are in {tmp_path / 'model'}: {', '.join(FITS[:first])}")
    assert lines[-1].startswith("[8/8] ")  # numbers are those of the whole plan


@pytest.mark.parametrize(
    ("only", "missing"),
    [
        ("block1-warping,block1-synthesis", []),
        ("block2-warping", ["block1-refinement", "block1-warping", "block1-synthesis", "block1-finetune"]),
    ],
)
def test_modules_that_are_read_but_not_finished_are_named(
    tmp_path: Path, fake: Fake, only: str, missing: list[str]
) -> None:
    path = write_curriculum(tmp_path)
    fake()
    lines: list[str] = []
    run(path, only=only, dry_run=True, say=lines.append)
    expected = [
        f"not finished, their modules are taken as they are in {tmp_path / 'model'}: {', '.join(missing)}"
    ]
    *lines, total = lines
    assert total.startswith("in all  ")
    assert [line for line in lines if not line.startswith("block ")] == (expected if missing else [])
    run(path)
    lines.clear()
    run(path, only=only, say=lines.append)
    assert all(line.endswith("finished before") for line in lines)


def test_only_on_the_command_line_among_options_of_the_fits(tmp_path: Path, fake: Fake) -> None:
    path = str(write_curriculum(tmp_path))
    fits = fake()
    words = [
        "--trainer.log_every_n_steps", "7", "--only", "block1-warping", "block2-warping,block2-synthesis"
    ]  # fmt: skip
    main(["curriculum", *words, "--trainer.max_epochs", "3", "--config", path])
    assert fits.names == ["block1-warping", "block2-warping", "block2-synthesis"]
    for args in fits.args:
        assert args[3:7] == ["--trainer.log_every_n_steps", "7", "--trainer.max_epochs", "3"]
        assert "block2-warping,block2-synthesis" not in args
    last = fake()
    main(["curriculum", "--config", path, "--from", "block2-synthesis", "--only=block2", *words[:2],
          "--trainer.max_epochs", "3"])  # fmt: skip
    assert last.names == ["block2-finetune"]


# The plan's costs


def plan(path: Path, overrides: list[str] | None = None, **kwargs: Any) -> list[str]:
    lines: list[str] = []
    run(path, overrides, dry_run=True, say=lines.append, **kwargs)
    assert lines[-1].startswith("in all  ")
    return lines[:-1]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ("--trainer.limit_train_batches 5 --model.accumulate 2 --trainer.max_epochs 3", "9 steps"),
        ("--trainer.limit_train_batches 1.0 --trainer.max_epochs 3", "3 epochs"),
        ("--trainer.limit_train_batches 0.5 --data.limit_train 8", "2 steps"),
        ("--trainer.limit_train_batches null --data.limit_train 8 --data.batch_size 4", "2 steps"),
        ("--trainer.limit_train_batches 3 --data.limit_train 4", "2 steps"),
    ],
)
def test_dry_run_counts_steps_as_far_as_they_are_known(tmp_path: Path, overrides: str, steps: str) -> None:
    for line in plan(write_curriculum(tmp_path), overrides.split(), only="refinement"):
        assert f" M parameters  {steps}  {tmp_path}" in line


def test_dry_run_counts_the_steps_that_a_fit_takes(tmp_path: Path, prepared: Path) -> None:
    path = on_photos(write_curriculum(tmp_path / "c", network={**NETWORK, "scale": 2}))
    for stage in MODELS:
        change(tmp_path / "c" / f"{stage}.yaml", "trainer", "limit_train_batches", None)
        change(tmp_path / "c" / f"{stage}.yaml", "trainer", "max_epochs", 2)
    assert all(" M parameters  2 epochs  " in line for line in plan(path))  # there is no such folder
    root = ["--data.init_args.root", str(prepared), "--model.init_args.accumulate", "4"]
    lines = plan(path, root)
    assert not (prepared / "cache").exists()
    run(path, root)
    for line, name in zip(lines, state(tmp_path / "c" / "model"), strict=True):
        last = checkpoint_of(tmp_path / "c" / "model", name)
        taken = torch.load(last, weights_only=True)["generator_steps"]
        assert f" M parameters  {taken} steps  " in line


# Interrupted fits


def checkpoint_of(directory: Path, name: str) -> Path:
    return directory / "runs" / name / "checkpoints" / "last.ckpt"


def checkpoint(directory: Path, name: str) -> Path:
    file = checkpoint_of(directory, name)
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def interrupted(path: Path, fake: Fake, overrides: list[str] | None = None) -> Path:
    """The model directory of a curriculum whose fourth fit was killed after its first checkpoint."""
    stopped(fake, 4, path, overrides)
    checkpoint(path.parent / "model", FITS[3])
    return path.parent / "model"


@pytest.mark.parametrize("where", ["file", "overlay"])
def test_changed_settings_of_an_interrupted_fit(
    tmp_path: Path, fake: Fake, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_curriculum(tmp_path)
    directory = interrupted(path, fake)
    overrides = []
    if where == "file":
        change(tmp_path / "synthesis.yaml", "model", "learning_rate", 0.25)
    else:
        overlay = tmp_path / "overlay.yml"
        overlay.write_text("model: {init_args: {learning_rate: 0.25}}")
        overrides = ["--only", FITS[3], "--config", str(overlay)]
    fits = fake()
    expected = rf"{FITS[3]} in (.|\n)*interrupted(.|\n)*\n  model\.init_args\.learning_rate: 0\.001 then, 0\.25 now\n"
    with pytest.raises(SystemExit):
        main(["curriculum", "--config", str(path), *overrides, "--from", FITS[3]])
    said = capsys.readouterr().err
    assert re.search(expected, said)
    assert f"Delete {directory / 'runs' / FITS[3]}" in said
    assert fits.names == []
    if where == "file":
        shutil.rmtree(directory / "runs" / FITS[3])  # as the message says
        run(path)
        assert fits.names == FITS[3:]
        assert "--ckpt_path" not in fits.args[0]


def test_fit_without_a_checkpoint_starts_anew_with_any_settings(tmp_path: Path, fake: Fake) -> None:
    path = write_curriculum(tmp_path)
    directory = interrupted(path, fake)
    checkpoint_of(directory, FITS[3]).unlink()
    change(tmp_path / "synthesis.yaml", "data", "batch_size", 1)  # it did not fit into memory, say
    fits = fake()
    run(path)
    assert fits.names == FITS[3:]


def test_interrupted_fit_is_noted_and_goes_on(tmp_path: Path, fake: Fake) -> None:
    path = write_curriculum(tmp_path)
    directory = interrupted(path, fake, ["--trainer.max_epochs", "1"])
    noted = json.loads((directory / "state.json").read_text())
    assert list(noted["finished"]) == FITS[:3]
    assert list(noted["started"]) == FITS[3:4]
    last = checkpoint_of(directory, FITS[3])
    # the same, said otherwise, and on another machine
    moved = [
        "--trainer.max_epochs=1", "--trainer.accelerator", "gpu", "--trainer.devices=1",
        "--data.num_workers", "3"
    ]  # fmt: skip
    fits = fake()
    run(path, moved)
    assert fits.names == FITS[3:]
    assert fits.args[0][-2:] == ["--ckpt_path", str(last)]
    assert not any("--ckpt_path" in args for args in fits.args[1:])
    assert json.loads((directory / "state.json").read_text())["started"] == {}


TEXT = """{"data.class_path": "rpf_lightning.data.SyntheticFacesDataModule", "data.init_args.batch_size": 2,
"data.init_args.people": 6, "data.init_args.photos_each": 2, "data.init_args.val_fraction": 0.34,
"model.class_path": "rpf_lightning.stages.WarpingStage", "model.init_args.flow_weight": 0.02,
"model.init_args.learning_rate": 0.001, "model.init_args.model_dir": "elsewhere", "seed_everything": 0,
"trainer.accelerator": "cpu", "trainer.callbacks": [{"class_path": "rpf_lightning.callbacks.FreezeEarlierBlocks"}],
"trainer.enable_model_summary": false, "trainer.enable_progress_bar": false, "trainer.limit_train_batches": 1,
"trainer.devices": 1, "trainer.log_every_n_steps": 1, "trainer.num_sanity_val_steps": 0, "trainer.logger": false,
"trainer.max_epochs": 1, "--trainer.max_epochs": "3", "trainer.limit_val_batches": 0,
"--data.init_args.num_workers": "0", "--model.learning_rate": "1e-3"}"""


def test_state_file_of_an_older_release(tmp_path: Path, fake: Fake) -> None:
    """It holds what files and options said, in the order in which it acted, and no defaults."""
    path = write_curriculum(tmp_path)
    content = yaml.safe_load((tmp_path / "warping.yaml").read_text())
    del content["trainer"]["callbacks"]  # the stage brings it
    (tmp_path / "warping.yaml").write_text(yaml.safe_dump(content))
    fits = fake()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "state.json").write_text(f'{{"finished": {{"block1-warping": {TEXT}}}}}')
    run(path, ["--trainer.max_epochs", "3"], only="block1")
    assert fits.names == ["block1-refinement", "block1-synthesis", "block1-finetune"]
    for words, expected in (
        (["--trainer.max_epochs", "4"], r"trainer\.max_epochs: 3 then, 4 now"),
        (["--trainer.max_epochs", "3", "--model.decay", "cosine"], r"decay: 'none' then, 'cosine' now"),
    ):
        with pytest.raises(
            ValueError, match=rf"finished with other settings:\n  [\w.]*{expected}\nUse another"
        ):
            run(path, words, only="block1-warping")


def test_a_changed_default_and_a_setting_that_is_no_more_are_changes(tmp_path: Path, fake: Fake) -> None:
    path = write_curriculum(tmp_path)
    directory = interrupted(path, fake)
    text = (directory / "state.json").read_text()
    for name, now in (("accumulate", 1), ("gone", None)):
        noted = json.loads(text)
        settings = noted["finished"]["block1-warping"]
        assert settings["model.class_path"] == "rpf_lightning.WarpingStage"
        settings[f"model.init_args.{name}"] = 2  # what it was by default, say
        if name == "accumulate":
            del settings["trainer.max_time"]  # a later release's argument, by default
        (directory / "state.json").write_text(json.dumps(noted))
        with pytest.raises(
            ValueError, match=rf"settings:\n  model\.init_args\.{name}: 2 then, {now} now\nUse"
        ):
            run(path)


@pytest.mark.parametrize("text", ["", "{}", '{"finished": {"a": 1}}', "\xff"])
def test_broken_state_file(tmp_path: Path, fake: Fake, text: str) -> None:
    path = write_curriculum(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "state.json").write_bytes(text.encode("latin-1"))
    fits = fake()
    for dry_run in (True, False):
        with pytest.raises(
            ValueError, match=re.escape(str(tmp_path / "model" / "state.json")) + ": expected"
        ):
            run(path, dry_run=dry_run)
    assert fits.names == []


def test_options_count_by_what_they_mean(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("over.yml").write_text("trainer: {max_epochs: 2}")
    path = write_curriculum(tmp_path)
    fake()
    run(path, only="block1-warping")
    for words in (
        "--model.learning_rate 1e-3 --trainer.deterministic null --model.init_args.accumulate 1",  # as they are
        "--model WarpingStage --data.class_path SyntheticFacesDataModule",
        "--model rpf_lightning.stages.warping_stage.WarpingStage",
        "--trainer.max_epochs 2 --trainer.max_epochs 1",  # the last one acts
        "--trainer.max_epochs 1 --config over.yml --trainer.max_epochs=1",
    ):
        run(path, words.split(), only="block1-warping")
    for words, value in (
        ("--trainer.limit_train_batches 1.0", 1.0),  # all of them; 1 is one
        ("--trainer.deterministic true", True),
        ("--trainer.max_epochs 1 --config over.yml", 2),
    ):
        with pytest.raises(ValueError, match=rf" then, {value} now"):
            run(path, words.split(), only="block1-warping")


# Overlays


def test_overlay_counts_by_its_contents(tmp_path: Path, fake: Fake) -> None:
    path = write_curriculum(tmp_path)
    overlay, moved = tmp_path / "over.yml", tmp_path / "moved.yml"
    overlay.write_text("trainer: {max_epochs: 4}")
    interrupted(path, fake, ["--config", str(overlay)])
    overlay.rename(moved)
    fits = fake(2)
    with pytest.raises(RuntimeError):
        run(path, [f"--config={moved}"])
    assert fits.names == FITS[3:4]
    run(path, ["--trainer.max_epochs", "4"], only=FITS[3])  # the same again
    with pytest.raises(ValueError, match=r"max_epochs: 4 then, 1 now"):
        run(path)
    assert " M parameters  4 steps  " in plan(path, ["--config", str(moved)])[0]


# Other data


def test_other_data_under_the_same_options_is_a_change(
    tmp_path: Path, prepare: Callable[..., dict[str, Any]], fake: Fake
) -> None:
    path = on_photos(write_curriculum(tmp_path / "c"))
    sha256 = prepare()["sha256"]
    root = ["--data.init_args.root", str(tmp_path / "prepared")]
    interrupted(path, fake, root)
    noted = json.loads((tmp_path / "c" / "model" / "state.json").read_text())
    assert {s["data.sha256"] for fits in noted.values() for s in fits.values()} == {sha256}
    (tmp_path / "prepared").rename(tmp_path / "moved")
    fits = fake()
    run(path, [f"--data.root={tmp_path / 'moved'}"], only=FITS[3])  # no change
    assert fits.names == FITS[3:4]
    other = prepare("prepared", seed=1, val_fraction=0.34)["sha256"]
    assert other != sha256
    with pytest.raises(ValueError, match=rf"data\.sha256: '{sha256}' then, '{other}' now"):
        run(path, root)


def test_data_that_the_first_fit_prepares_are_noted_then(
    tmp_path: Path, prepare: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = on_photos(write_curriculum(tmp_path / "c"))
    root = ["--data.init_args.root", str(tmp_path / "prepared")]
    calls: list[list[str]] = []

    def fit(args: list[str]) -> None:
        calls.append(args)
        if len(calls) == 1:
            prepare()

    monkeypatch.setattr(curriculum, "lightning_cli", fit)
    run(path, root, only="block1-refinement")
    (settings,) = state(tmp_path / "c" / "model").values()
    assert "data.sha256" in settings
    run(path, root)
    assert len(calls) == 8


# Listed fits


def test_listed_fits_and_their_arguments(tmp_path: Path, fake: Fake) -> None:
    listed = [entry(name) for name in LISTED]
    listed[2]["options"] = {"trainer.max_epochs": 5, "trainer.precision": "bf16-mixed"}
    path = write_listed(tmp_path, listed)
    fits, lines = fake(), []
    words = [
        "--trainer.max_epochs", "7", "--joint.model.init_args.learning_rate", "0.1",
        "--warping.model.decay", "cosine"
    ]  # fmt: skip
    run(path, words, say=lines.append)
    assert fits.names == LISTED == list(state(tmp_path / "model"))
    assert [line.partition(":")[0] for line in lines[:3]] == [
        "[1/6] block 1  warping", "[2/6] block 2  synthesis", "[3/6] blocks 1-2  joint",
    ]  # fmt: skip
    own = ["--trainer.max_epochs", "5", "--trainer.precision", "bf16-mixed"]
    rate = ["--trainer.max_epochs", "7", "--model.init_args.learning_rate", "0.1"]
    where = ["--model.init_args.model_dir", str(tmp_path / "model")]
    first, block = "--model.init_args.first", "--model.init_args.block"
    assert fits.args[2][3:] == [*own, *rate, *where, first, "1", block, "2"]
    assert fits.args[4][3:] == [*rate, *where, first, "1", block, "3"]
    assert fits.args[0][3:] == [*words[:2], "--model.decay", "cosine", *where, block, "1"]
    listed[2]["options"]["trainer.precision"] = "32-true"
    with pytest.raises(
        ValueError, match=r"joint1-2 in .*\n  trainer\.precision: 'bf16-mixed' then, '32-true' now\n"
    ):
        run(write_listed(tmp_path, listed), words)


def forget(directory: Path, *names: str) -> None:
    """Remove fits from the state file, as if they had not been finished."""
    content = json.loads((directory / "state.json").read_text())
    for name in names:
        del content["finished"][name]
    (directory / "state.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "later", "how"),
    [
        ("joint1-2", ["joint1-3", "joint3-3"], "all"),
        ("block1-warping", ["block2-synthesis", "joint1-2", "joint1-3", "joint3-3"], "only"),
        ("joint3-3", [], "all"),
    ],
)
def test_a_fit_on_which_finished_ones_rest_is_not_repeated(
    tmp_path: Path, fake: Fake, name: str, later: list[str], how: str
) -> None:
    path, directory = write_listed(tmp_path), tmp_path / "model"
    fake()
    run(path)
    forget(directory, name)
    fits, which = fake(), {} if how == "all" else {how: name}
    if later:
        with pytest.raises(
            ValueError, match=rf"^{name} is not finished in .*: {', '.join(later)}\. "
        ) as caught:
            run(path, dry_run=how == "only", **which)
        assert f"delete their folders in {directory / 'runs'} and their entries in {directory}" in str(
            caught.value
        )
        assert fits.names == []
        forget(directory, *later)
    run(path, **which)
    assert fits.names[0] == name
    if how != "only":
        assert fits.names == [name, *later]


def test_what_has_begun_on_a_fit_counts_like_what_is_finished(tmp_path: Path, fake: Fake) -> None:
    path, directory = write_listed(tmp_path), tmp_path / "model"
    stopped(fake, 5, path)
    last = checkpoint(directory, "joint1-3")
    forget(directory, "joint1-2")
    fits = fake()
    with pytest.raises(ValueError, match=r"finished or has begun there: joint1-3\. "):
        run(path)
    last.unlink()  # it would start anew
    run(path)
    assert fits.names == ["joint1-2", "joint1-3", "joint3-3"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a listed curriculum that ran to its end, on the network that joint fits are for."""
    folder = tmp_path_factory.mktemp("listed")
    network = {
        **NETWORK, "scale": 8, "channels": [4, 4, 2], "width": [1 / 64] * 3, "synthesis_residual": True,
        "refinement_mean": False, "synthesis_copy": True, "flow_from": "previous",
    }  # fmt: skip
    run(write_listed(folder, network=network))
    return folder


def test_listed_fits_run_on_one_directory(listed: Path) -> None:
    directory = listed / "model"
    assert list(state(directory)) == LISTED
    assert sorted(p.name for p in (directory / "runs").iterdir()) == sorted(LISTED)
    assert not list(directory.rglob("*.tmp"))
    model = RPFModel.from_pretrained(directory)
    for name, blocks in (("joint1-3", (0, 1)), ("joint3-3", (2,))):  # the last to train each of them
        last = torch.load(checkpoint_of(directory, name), weights_only=True)["state_dict"]
        for n in blocks:
            for key, value in model.blocks[n].state_dict().items():
                assert torch.equal(value, last[f"model.blocks.{n}.{key}"])
    lines: list[str] = []
    run(listed / "curriculum.yaml", say=lines.append)
    assert [line.split(": ")[1] for line in lines] == ["finished before"] * 6


def test_dry_run_of_joint_fits(listed: Path) -> None:
    network = yaml.safe_load((listed / "curriculum.yaml").read_text())["network"]
    rows = count(RPFModel(**network))
    macs = [sum(row.macs for row in rows if row.block == n) for n in (1, 2, 3)]
    words = ["--joint.data.init_args.batch_size", "3"]
    lines: list[str] = []
    run(listed / "curriculum.yaml", words, dry_run=True, say=lines.append, only="joint", model_dir="none")
    assert lines[1].startswith("blocks 1-2  joint  side 64  ")
    assert lines[3].startswith("block 3  joint  side 128  ")
    expected = [3 * sum(macs[:2]), 3 * sum(macs), sum(macs[:2]) + 3 * macs[2]]
    for line, each in zip(lines[1:-1], expected, strict=True):
        assert f" M parameters  2 steps  {listed}" in line
        sample, total = operations(line)
        assert sample == pytest.approx(2e-9 * each, rel=5e-3)
        assert total == pytest.approx(2e-15 * each * 2 * 3, rel=5e-3)
    several = [
        *words, "--joint.data.init_args.references", "all", "--joint.data.init_args.max_references", "3"
    ]  # fmt: skip
    lines.clear()
    run(
        listed / "curriculum.yaml", [*several, "--joint.data.init_args.several_fraction", "0.5"],
        dry_run=True, say=lines.append, only="joint1-2", model_dir="none",
    )  # fmt: skip
    per_reference = sum(row.macs for row in rows if row.block < 3 and row.module != "refinement")
    sample, total = operations(lines[-2])  # 1, 2 or 3 of them: 1.75 on average
    assert sample == pytest.approx(2e-9 * expected[0], rel=5e-3)
    assert total == pytest.approx(2e-15 * 6 * (expected[0] + 3 * 0.75 * per_reference), rel=5e-3)


# Where the weights come from


def start_of(directory: Path) -> dict[str, str]:
    return json.loads((directory / "state.json").read_text())["initial"]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A model to start from."""
    torch.manual_seed(5)
    RPFModel(**NETWORK).save_pretrained(tmp_path / "first")
    return tmp_path / "first"


def test_initial_weights(tmp_path: Path, first: Path, fake: Fake) -> None:
    path, directory = write_curriculum(tmp_path, initial=str(first)), tmp_path / "model"
    stopped(fake, 2, path)
    weights = RPFModel.from_pretrained(first).state_dict()
    assert start_of(directory) == {"name": str(first), "sha256": weights_hash(weights)}
    assert weights_hash(RPFModel.from_pretrained(directory).state_dict()) == start_of(directory)["sha256"]
    shutil.rmtree(first)  # not read again
    fits = fake()
    run(path)
    assert fits.names == FITS[1:]
    assert start_of(directory)["name"] == str(first)
    assert list(state(directory)) == FITS


def test_blocks_that_the_network_adds_start_anew(tmp_path: Path, first: Path, fake: Fake) -> None:
    fake()
    path = write_curriculum(tmp_path, initial=str(first), network={**NETWORK, "scale": 8})
    run(path)
    model, before = RPFModel.from_pretrained(tmp_path / "model"), RPFModel.from_pretrained(first)
    assert len(model.blocks) == 3
    for own, given in zip(model.blocks, before.blocks, strict=False):
        assert weights_hash(own.state_dict()) == weights_hash(given.state_dict())


@pytest.mark.parametrize("now", ["other", None])
def test_another_start_of_a_directory_is_refused(
    tmp_path: Path, first: Path, fake: Fake, now: str | None
) -> None:
    fits = fake()
    run(write_curriculum(tmp_path, initial=str(first)), only="refinement")
    before = (tmp_path / "model" / "state.json").read_bytes()
    path = write_curriculum(tmp_path, **({} if now is None else {"initial": now}))
    for dry_run in (True, False):
        with pytest.raises(
            ValueError, match=rf"a model that was started from {first}, .*initial is {now or 'not given'}\. "
        ):
            run(path, dry_run=dry_run)
    assert len(fits.args) == 2
    assert (tmp_path / "model" / "state.json").read_bytes() == before
    if now is None:  # nor does a directory that started from nothing take one
        run(path, only="refinement", model_dir=str(tmp_path / "fresh"))
        path = write_curriculum(tmp_path, initial=str(first), model_dir=str(tmp_path / "fresh"))
        with pytest.raises(
            ValueError, match=rf"started from nothing, and the curriculum's initial is {first}"
        ):
            run(path)


def test_killed_before_the_model_was_written(tmp_path: Path, first: Path, fake: Fake) -> None:
    fake()
    (tmp_path / "model").mkdir()
    noted = {"finished": {}, "started": {}, "initial": {"name": "another", "sha256": "0"}}
    (tmp_path / "model" / "state.json").write_text(json.dumps(noted))
    run(write_curriculum(tmp_path, initial=str(first)))
    assert start_of(tmp_path / "model")["name"] == str(first)


def test_arguments_of_the_initial_model_must_be_named(tmp_path: Path, first: Path, fake: Fake) -> None:
    fake()
    network = {key: value for key, value in NETWORK.items() if key != "residual"}
    path = write_curriculum(tmp_path, initial=str(first), network=network)
    expected = rf"initial: {first} has arguments that network lacks \({{'residual': True}}\)"
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=expected):
            run(path, dry_run=dry_run)
    assert not (tmp_path / "model" / "config.json").exists()


# Operations


def operations(line: str) -> tuple[float, float | None]:
    """GFLOP per sample and PFLOP in all of a plan's line."""
    found = re.search(r"  ([\d.e+-]+) GFLOP a sample  ([\d.e-]+|-) PFLOP  to do$", line)
    assert found is not None
    return float(found[1]), None if found[2] == "-" else float(found[2])


def test_dry_run_counts_operations(tmp_path: Path) -> None:
    network = {**NETWORK, "channels": 8}
    macs = {(row.block, row.module): row.macs for row in count(RPFModel(**network))}
    w, s, r = ([macs[n, module] for n in (1, 2)] for module in ("warping", "synthesis", "refinement"))
    before = w[0] + s[0] + r[0]
    passes = [
        3 * r[0], 3 * r[1], 3 * w[0], w[0] + 3 * s[0], w[0] + s[0] + 3 * r[0],
        before + 3 * w[1], before + w[1] + 3 * s[1], before + w[1] + s[1] + 3 * r[1],
    ]  # fmt: skip
    path = write_curriculum(tmp_path, network=network)
    words = [
        "--trainer.max_epochs", "5", "--trainer.limit_train_batches", "3", "--model.init_args.accumulate",
        "3"
    ]  # fmt: skip
    for line, expected in zip(plan(path, words), passes, strict=True):
        each, total = operations(line)
        assert each == pytest.approx(2e-9 * expected, rel=5e-3)
        assert total == pytest.approx(2e-15 * expected * 5 * 3 * 2, rel=5e-3)  # batches of two
    lines: list[str] = []
    run(path, words, dry_run=True, say=lines.append)
    sums = [operations(line)[1] for line in lines[:-1]]
    assert float(lines[-1].split()[2]) == pytest.approx(sum(sums), rel=5e-3)


def test_dry_run_says_what_it_cannot_count(tmp_path: Path) -> None:
    lines: list[str] = []
    words = ["--warping.trainer.limit_train_batches", "null"]
    run(write_curriculum(tmp_path), words, dry_run=True, say=lines.append)
    assert [operations(line)[1] is None for line in lines[:-1]] == ["warping" in name for name in FITS]
    assert lines[-1].endswith(" PFLOP, and 2 fits whose number of samples is not known")


# Real fits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a curriculum that ran to its end."""
    folder = tmp_path_factory.mktemp("curriculum")
    run(write_curriculum(folder))
    return folder


def test_all_fits_run_on_one_directory(finished: Path) -> None:
    directory = finished / "model"
    assert list(state(directory)) == FITS
    assert sorted(p.name for p in (directory / "runs").iterdir()) == sorted(FITS)
    assert not list(directory.rglob("*.tmp"))
    # every fit changed its module, and what the last one left behind is what the directory holds
    model = RPFModel.from_pretrained(directory).state_dict()
    torch.manual_seed(0)
    start = RPFModel(**NETWORK).state_dict()
    for module in (f"blocks.{n}.{name}." for n in (0, 1) for name in ("warping", "synthesis", "refinement")):
        assert any(not torch.equal(start[name], model[name]) for name in model if name.startswith(module))
    for name in FITS:
        stage = name[7:]
        if stage == "refinement":
            continue  # fine-tuned later
        last = torch.load(checkpoint_of(directory, name), weights_only=True)
        for key, value in last["state_dict"].items():
            if key.startswith("model."):
                assert torch.equal(model[key.removeprefix("model.")], value)


def test_a_try_finishes_nothing(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path, finetune=False)
    run(path, ["--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "model" / "runs").exists()
    assert json.loads((tmp_path / "model" / "state.json").read_text()) == {"finished": {}, "started": {}}
    run(path, only="block1-refinement")
    assert list(state(tmp_path / "model")) == ["block1-refinement"]


def test_two_commands_at_once_keep_each_others_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_curriculum(tmp_path)

    def during(args: list[str]) -> None:  # another command finishes a fit while this one trains
        monkeypatch.setattr(curriculum, "lightning_cli", lambda args: None)
        run(path, only="block2-refinement")

    monkeypatch.setattr(curriculum, "lightning_cli", during)
    run(path, only="block1-refinement")
    assert sorted(state(tmp_path / "model")) == ["block1-refinement", "block2-refinement"]


def test_a_curriculum_twice_at_once_is_told(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    path, directory = write_curriculum(tmp_path), tmp_path / "model"
    stopped(fake, 4, path)
    half = directory / "runs" / FITS[3] / "checkpoints" / ".last.ckpt.1.tmp"
    half.parent.mkdir()
    before = (directory / "state.json").read_bytes()
    fits = fake()
    with sole_fit(directory / "runs" / FITS[3]):
        half.touch()  # the other is writing it
        with pytest.raises(SystemExit):
            main(["curriculum", "--config", str(path)])
    assert f"{directory / 'runs' / FITS[3]}: another process runs this fit; wait" in capsys.readouterr().err
    assert fits.names == []
    assert half.exists()
    assert (directory / "state.json").read_bytes() == before
    with sole_fit(directory / "runs" / FITS[3]):  # fits side by side
        run(path, only=FITS[4])
    assert fits.names == FITS[4:5]


def test_what_a_kill_left_is_removed_of_the_fits_own_folder_only(tmp_path: Path, fake: Fake) -> None:
    path = write_curriculum(tmp_path)
    fake()
    names = ("block1-warping", "block2-warping")
    folders = [checkpoint_of(tmp_path / "model", name).parent for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / ".last.ckpt.tmp").touch()
    run(path, only="block1-warping")
    assert [(folder / ".last.ckpt.tmp").exists() for folder in folders] == [False, True]


def test_a_state_file_deleted_meanwhile_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_curriculum(tmp_path)
    file = tmp_path / "model" / "state.json"
    monkeypatch.setattr(curriculum, "lightning_cli", lambda args: file.unlink())
    run(path, only="refinement")
    assert list(state(tmp_path / "model")) == ["block1-refinement", "block2-refinement"]


def test_kept_prefixes_are_removed_at_the_end(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    run(path, start=None, only="block1,block2-refinement,block2-warping")
    assert list((tmp_path / "model" / "cache").glob("x2-*.npy"))
    run(path)
    assert not (tmp_path / "model" / "cache").exists()


def test_killed_after_the_last_fit_was_trained_but_before_it_was_noted(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    directory = tmp_path / "copy" / "model"
    before = (directory / "model.safetensors").read_bytes()
    done = state(directory)
    noted = done.pop(FITS[-1])
    (directory / "state.json").write_text(json.dumps({"finished": done}))
    lines: list[str] = []
    run(finished / "curriculum.yaml", model_dir=str(directory), say=lines.append)
    assert ["finished before" in line for line in lines] == [True] * 7 + [False]
    assert "--ckpt_path" in lines[-1]
    assert state(directory)[FITS[-1]] == noted
    assert (directory / "model.safetensors").read_bytes() == before  # nothing was left to train


def test_killed_within_a_fit_trains_the_rest_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_curriculum(tmp_path, finetune=False, network={**NETWORK, "scale": 2})
    change(tmp_path / "warping.yaml", "trainer", "max_epochs", 3)
    step, handler = WarpingStage.training_step, signal.getsignal(signal.SIGINT)
    epochs: list[int] = []

    def training_step(self: WarpingStage, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == 2 and len(epochs) == 2:
            raise KeyboardInterrupt("killed")
        epochs.append(self.current_epoch)
        step(self, batch, batch_idx)

    monkeypatch.setattr(WarpingStage, "training_step", training_step)
    try:
        # Lightning turns an interrupt from the keyboard into an exit
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert list(state(tmp_path / "model")) == ["block1-refinement"]
    epochs.append(-1)
    run(path)
    assert epochs == [0, 1, -1, 2]
    assert list(state(tmp_path / "model")) == ["block1-refinement", "block1-warping", "block1-synthesis"]
    last = checkpoint_of(tmp_path / "model", "block1-warping")
    assert torch.load(last, weights_only=True)["generator_steps"] == 3


# kill -9


def started(path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "rpf_lightning", "curriculum", "--config", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_kill_9_at_any_moment_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path, finetune=False, network={**NETWORK, "scale": 2})
    names = ["block1-refinement", "block1-warping", "block1-synthesis"]
    epochs = {"refinement": 10, "warping": 10, "synthesis": 20}  # long enough to be killed within
    for stage, number in epochs.items():
        change(tmp_path / f"{stage}.yaml", "trainer", "max_epochs", number)
    directory = tmp_path / "model"

    last = partial(checkpoint_of, directory)

    def finished() -> list[str]:
        file = directory / "state.json"
        return list(state(directory)) if file.is_file() else []

    moments: list[Callable[[], bool]] = [
        lambda: (directory / "model.safetensors").exists(),  # perhaps before its config.json
        lambda: names[0] in finished(),  # between two fits
        lambda: last(names[2]).exists(),
    ]
    done: list[str] = []
    for moment in moments:
        process = started(path)
        deadline = time.monotonic() + 60
        while not moment():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        said = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL
        assert [name for name in names if f"{name[7:]}: finished before" in said] == done[
            : said.count("before")
        ]
        assert done == finished()[: len(done)]  # nothing is forgotten
        done = finished()
        assert len(done) < 3
    (directory / ".state.json.1.tmp").write_text("{")  # a kill in the middle of a write
    (directory / ".model.safetensors.1.tmp").write_text("half")
    last(names[2]).with_name(".last.ckpt.tmp").write_text("half")
    process = started(path)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert said.count("finished before") == len(done) >= 1
    content = json.loads((directory / "state.json").read_text())
    assert list(content["finished"]) == names
    assert content["started"] == {}
    assert not list(directory.rglob("*.tmp"))
    model = RPFModel.from_pretrained(directory).state_dict()
    for name in names:
        checkpoint = torch.load(last(name), weights_only=True)
        assert checkpoint["generator_steps"] == epochs[name[7:]]  # no epoch twice
        for key, value in checkpoint["state_dict"].items():
            if key.startswith("model."):
                assert torch.equal(model[key.removeprefix("model.")], value)


@pytest.mark.slow
def test_two_processes_run_a_curriculum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every fit once, every line once, one state file; the documented options of several GPUs."""
    path = write_curriculum(tmp_path, finetune=False, network={**NETWORK, "scale": 2})
    command = [sys.executable, "-m", "rpf_lightning", "curriculum", "--config", str(path)]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["block1-refinement", "block1-warping", "block1-synthesis"]
    assert list(state(tmp_path / "model")) == names
    for number in range(1, 4):
        assert done.stdout.count(f"[{number}/3] block 1") == 1
    main(command[3:])
    assert capsys.readouterr().out.count("finished before") == 3
