"""`rpf curriculum`: the plan, one directory for all fits, and going on after a kill."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rpf_lightning import curriculum
from rpf_lightning.cli import main
from rpf_lightning.curriculum import read_curriculum, run_curriculum
from rpf_lightning.model import RPFModel
from rpf_lightning.stages import WarpingStage

FITS = [
    "block1-refinement", "block2-refinement",
    "block1-warping", "block1-synthesis", "block1-finetune",
    "block2-warping", "block2-synthesis", "block2-finetune",
]  # fmt: skip
NO_FINETUNE = [name for name in FITS if "finetune" not in name]
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
    for stage in stages:
        name, init_args = MODELS[stage]
        content = {
            "seed_everything": 0,
            "trainer": {
                "accelerator": "cpu",
                "max_epochs": 1,
                "limit_train_batches": 1,
                "limit_val_batches": 0,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": [{"class_path": "rpf_lightning.callbacks.FreezeEarlierBlocks"}],
            },
            "model": {
                "class_path": f"rpf_lightning.stages.{name}",
                "init_args": {"model_dir": str(folder / "model"), "learning_rate": 0.001, **init_args},
            },
            "data": {
                "class_path": "rpf_lightning.data.SyntheticFacesDataModule",
                "init_args": {"people": 6, "photos_each": 2, "batch_size": 2, "val_fraction": 0.34},
            },
        }
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(content))
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
        return [f"block{self.value(i, 'block')}-{Path(args[2]).stem}" for i, args in enumerate(self.args)]

    def value(self, fit: int, name: str) -> str:
        args = self.args[fit]
        return args[args.index(f"--model.init_args.{name}") + 1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeFits]:
    def install(*args: Any) -> FakeFits:
        fits = FakeFits(*args)
        monkeypatch.setattr(curriculum, "lightning_cli", fits)
        return fits

    return install


def quiet(line: str) -> None:
    """Take a line and drop it."""


def state(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "state.json").read_text())["finished"]


# The plan


@pytest.mark.parametrize("finetune", [True, False])
def test_dry_run_prints_the_papers_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finetune: bool
) -> None:
    path = write_curriculum(tmp_path, finetune)
    for file in tmp_path.glob("*.yaml"):
        if file != path:
            change(file, "data", "people", -1)  # touching the data would raise
    before = sorted(tmp_path.iterdir())
    main(["curriculum", "--config", str(path), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    names = FITS if finetune else NO_FINETUNE
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        block, stage = name.removeprefix("block").split("-")
        assert line.startswith(f"block {block}  {stage}  side {16 * 2 ** int(block)}  ")
        assert line.endswith("to do")
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_says_what_is_finished(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    path = write_curriculum(tmp_path)
    fake(4)
    with pytest.raises(RuntimeError):
        run_curriculum(path, say=quiet)
    lines: list[str] = []
    run_curriculum(path, dry_run=True, say=lines.append)
    assert [line.split()[-1] for line in lines] == ["finished"] * 3 + ["do"] * 5


def test_dry_run_counts_the_trained_module(tmp_path: Path) -> None:
    lines: list[str] = []
    run_curriculum(write_curriculum(tmp_path), dry_run=True, say=lines.append)
    model = RPFModel(**NETWORK)
    for line, name in zip(lines, FITS, strict=True):
        block, stage = int(name[5]), name[7:]
        module = getattr(model.blocks[block - 1], "refinement" if stage == "finetune" else stage)
        assert f"  {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters" in line


def test_arguments_of_every_fit(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    fits = fake()
    path = write_curriculum(tmp_path)
    run_curriculum(path, ["--trainer.max_epochs", "7"], str(tmp_path / "other"), say=quiet)
    assert fits.names == FITS
    for number, args in enumerate(fits.args):
        assert args[:2] == ["fit", "--config"]
        assert args[args.index("--trainer.max_epochs") + 1] == "7"
        assert fits.value(number, "model_dir") == str(tmp_path / "other")
        assert "--ckpt_path" not in args
    assert not (tmp_path / "model").exists()


def test_command_line_passes_options_on(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    fits = fake()
    path = write_curriculum(tmp_path)
    directory = tmp_path / "named"
    main(["curriculum", "--config", str(path), "--model_dir", str(directory), "--trainer.max_epochs", "7"])
    assert fits.value(0, "model_dir") == str(directory)
    assert fits.args[0][fits.args[0].index("--trainer.max_epochs") + 1] == "7"


def test_seed_makes_the_first_weights(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    fake()
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))
        run_curriculum(write_curriculum(tmp_path / name, seed=seed), say=quiet)
        files.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


# Bad files


def test_missing_curriculum(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_curriculum(tmp_path / "none.yaml")


def test_missing_stage_file(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    (tmp_path / "synthesis.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"synthesis names .*synthesis\.yaml") as caught:
        read_curriculum(path)
    assert str(path) in str(caught.value)


def test_unknown_key(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path, epochs=3)
    with pytest.raises(ValueError, match="epochs") as caught:
        read_curriculum(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["model_dir", "network", "refinement", "warping", "synthesis"])
def test_missing_key(tmp_path: Path, key: str) -> None:
    path = write_curriculum(tmp_path)
    content = yaml.safe_load(path.read_text())
    del content[key]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=key) as caught:
        read_curriculum(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "curriculum.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"curriculum\.yaml: expected the keys"):
        read_curriculum(path)


# Going on


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("stop_at", [1, 4, 8])
def test_killed_in_between_goes_on_with_the_rest(
    tmp_path: Path, fake: Callable[..., FakeFits], stop_at: int, error: type[BaseException]
) -> None:
    path = write_curriculum(tmp_path)
    first = fake(stop_at, error)
    with pytest.raises(error):
        run_curriculum(path, say=quiet)
    assert first.names == FITS[: stop_at - 1]
    second = fake()
    run_curriculum(path, say=quiet)
    assert second.names == FITS[stop_at - 1 :]
    third = fake()
    lines: list[str] = []
    run_curriculum(path, say=lines.append)
    assert third.names == []
    assert all(line.endswith("finished before") for line in lines)
    assert len(lines) == 8


def test_fit_goes_on_from_its_own_last_checkpoint(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    path = write_curriculum(tmp_path)
    fake(4)
    with pytest.raises(RuntimeError):
        run_curriculum(path, say=quiet)
    last = tmp_path / "model" / "runs" / FITS[3] / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    fits = fake()
    run_curriculum(path, say=quiet)
    assert fits.args[0][-2:] == ["--ckpt_path", str(last)]
    assert not any("--ckpt_path" in args for args in fits.args[1:])


@pytest.mark.parametrize("where", ["file", "option"])
def test_changed_settings_of_a_finished_fit(
    tmp_path: Path, fake: Callable[..., FakeFits], where: str
) -> None:
    path = write_curriculum(tmp_path)
    fake(4)
    with pytest.raises(RuntimeError):
        run_curriculum(path, ["--trainer.max_epochs", "1"], say=quiet)
    fits = fake()
    if where == "file":
        change(tmp_path / "warping.yaml", "model", "learning_rate", 0.25)
        expected = r"block1-warping(.|\n)*learning_rate: 0\.001 then, 0\.25 now"
    else:
        expected = r"--trainer\.max_epochs: '1' then, '2' now"
    with pytest.raises(ValueError, match=expected):
        run_curriculum(path, ["--trainer.max_epochs", "1" if where == "file" else "2"], say=quiet)
    assert fits.names == []


def test_changed_settings_of_a_fit_to_come_are_fine(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    path = write_curriculum(tmp_path)
    fake(4)
    with pytest.raises(RuntimeError):
        run_curriculum(path, say=quiet)
    change(tmp_path / "synthesis.yaml", "model", "learning_rate", 0.25)
    fits = fake()
    run_curriculum(path, say=quiet)
    assert fits.names == FITS[3:]


def test_added_and_removed_settings_are_changes(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    path = write_curriculum(tmp_path)
    fake()
    run_curriculum(path, say=quiet)
    change(tmp_path / "warping.yaml", "model", "decay", "cosine")
    with pytest.raises(ValueError, match=r"decay: None then, 'cosine' now"):
        run_curriculum(path, say=quiet)


def test_changed_network(tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    path = write_curriculum(tmp_path)
    fake()
    run_curriculum(path, say=quiet)
    change(path, "network", "channels", 8)
    with pytest.raises(ValueError, match="channels: 4 there, 8 here"):
        run_curriculum(path, say=quiet)


@pytest.mark.parametrize("form", ["two", "one"])
def test_moved_data_is_no_change(tmp_path: Path, fake: Callable[..., FakeFits], form: str) -> None:
    def overrides(root: str) -> list[str]:
        where = ["--data.init_args.root", root] if form == "two" else [f"--data.init_args.root={root}"]
        return [*where, "--trainer.max_epochs", "1"]

    path = write_curriculum(tmp_path)
    fake(4)
    with pytest.raises(RuntimeError):
        run_curriculum(path, overrides("old"), say=quiet)
    fits = fake()
    run_curriculum(path, overrides("new"), say=quiet)
    assert fits.names == FITS[3:]
    assert "old" not in " ".join(fits.args[0])


def test_moved_model_directory_and_preset_are_no_change(
    tmp_path: Path, fake: Callable[..., FakeFits]
) -> None:
    path = write_curriculum(tmp_path / "a")
    fake(4)
    with pytest.raises(RuntimeError):
        run_curriculum(path, model_dir=str(tmp_path / "one"), say=quiet)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.move(tmp_path / "one", tmp_path / "two")
    fits = fake()
    run_curriculum(tmp_path / "b" / "curriculum.yaml", model_dir=str(tmp_path / "two"), say=quiet)
    assert fits.names == FITS[3:]


# Real fits


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a curriculum that ran to its end."""
    folder = tmp_path_factory.mktemp("curriculum")
    run_curriculum(write_curriculum(folder), say=quiet)
    return folder


def test_all_fits_run_on_one_directory(finished: Path) -> None:
    directory = finished / "model"
    assert list(state(directory)) == FITS
    assert sorted(p.name for p in (directory / "runs").iterdir()) == sorted(FITS)
    assert not list(directory.rglob("*.tmp"))
    # what the last fit of every module left behind is what the directory holds
    model = RPFModel.from_pretrained(directory).state_dict()
    for name in FITS:
        stage = name[7:]
        if stage == "refinement":
            continue  # fine-tuned later
        last = torch.load(directory / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for key, value in last["state_dict"].items():
            if key.startswith("model."):
                assert torch.equal(model[key.removeprefix("model.")], value)


def test_every_fit_changed_its_module(finished: Path, tmp_path: Path, fake: Callable[..., FakeFits]) -> None:
    fake()
    run_curriculum(write_curriculum(tmp_path), say=quiet)  # no fit: the weights of the start
    start = RPFModel.from_pretrained(tmp_path / "model")
    model = RPFModel.from_pretrained(finished / "model")
    for a, b in zip(start.blocks, model.blocks, strict=True):
        for name in ("warping", "synthesis", "refinement"):
            pairs = zip(getattr(a, name).parameters(), getattr(b, name).parameters(), strict=True)
            assert any(not torch.equal(x, y) for x, y in pairs)


def test_second_run_trains_nothing(finished: Path) -> None:
    file = finished / "model" / "model.safetensors"
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    lines: list[str] = []
    run_curriculum(finished / "curriculum.yaml", say=lines.append)
    assert [line.split(": ")[1] for line in lines] == ["finished before"] * 8
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


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
    run_curriculum(finished / "curriculum.yaml", model_dir=str(directory), say=lines.append)
    assert ["finished before" in line for line in lines] == [True] * 7 + [False]
    assert "--ckpt_path" in lines[-1]
    assert state(directory)[FITS[-1]] == noted
    assert (directory / "model.safetensors").read_bytes() == before  # nothing was left to train


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_killed_within_a_fit_trains_the_rest_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = write_curriculum(tmp_path, finetune=False, network={**NETWORK, "scale": 2})
    change(tmp_path / "warping.yaml", "trainer", "max_epochs", 3)
    step, handler = WarpingStage.training_step, signal.getsignal(signal.SIGINT)
    epochs: list[int] = []

    def training_step(self: WarpingStage, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == 2 and len(epochs) == 2:
            raise error("killed")
        epochs.append(self.current_epoch)
        step(self, batch, batch_idx)

    monkeypatch.setattr(WarpingStage, "training_step", training_step)
    try:
        # Lightning turns an interrupt from the keyboard into an exit
        with pytest.raises((error, SystemExit)):
            run_curriculum(path, say=quiet)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert list(state(tmp_path / "model")) == ["block1-refinement"]
    epochs.append(-1)
    run_curriculum(path, say=quiet)
    assert epochs == [0, 1, -1, 2]
    assert list(state(tmp_path / "model")) == ["block1-refinement", "block1-warping", "block1-synthesis"]
    folder = tmp_path / "model" / "runs" / "block1-warping" / "checkpoints"
    assert torch.load(folder / "last.ckpt", weights_only=True)["generator_steps"] == 3
