"""Where configurations are found, and what a `base:` line does."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpf_lightning import presets
from rpf_lightning.cli import main
from rpf_lightning.curriculum_file import read_curriculum
from rpf_lightning.training import read_fit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder than the checkout's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["small/curriculum.yaml", "configs/small/curriculum.yaml"])
def test_a_file_here_goes_before_the_preset(tmp_path: Path, name: str) -> None:
    preset = presets.FOLDER / "small" / "curriculum.yaml"
    assert presets.resolve(name) == preset
    (tmp_path / name).parent.mkdir(parents=True)
    shutil.copy(preset, name)
    assert presets.resolve(name) == Path(name)


@pytest.mark.parametrize("name", ["small/nothing.yaml", "configs", "/nothing.yaml"])
def test_what_is_neither(name: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"^{name}: there is no such file, and no preset .*`rpf presets`"
    ):
        presets.resolve(name)


def write(name: str, **content: Any) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(yaml.safe_dump(content))


def test_base(tmp_path: Path) -> None:
    write("first.yaml", a={"x": 1, "y": [1, 2], "z": {"deep": 1}}, b=1)
    write("folder/second.yaml", base="../first.yaml", a={"y": [3]}, c=2)
    write("folder/third.yaml", base="second.yaml", a={"z": {"other": 2}, "x": None}, b={"now": "a mapping"})
    assert presets.read("folder/third.yaml") == {
        "a": {"x": None, "y": [3], "z": {"deep": 1, "other": 2}}, "b": {"now": "a mapping"}, "c": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("base: none.yaml", FileNotFoundError, r"^a\.yaml: base: there is no none\.yaml"),
        ("base: a.yaml", ValueError, r"^a\.yaml: base: a\.yaml builds on this file"),
        ("base: b.yaml", ValueError, r"^b\.yaml: base: a\.yaml builds on this file"),
        ("- a", ValueError, r"^a\.yaml: expected a mapping, got list"),
        ("a: [1", ValueError, r"^a\.yaml: expected YAML"),
    ],
)
def test_wrong_files(text: str, error: type[Exception], message: str) -> None:
    write("b.yaml", base="a.yaml")
    Path("a.yaml").write_text(text)
    with pytest.raises(error, match=message):
        presets.read("a.yaml")


def test_fits_take_presets_from_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    whole = read_fit(["--config", "demo/finetune.yaml"])
    assert whole["model"]["init_args"]["input"] == "synthesized"
    assert whole["trainer"]["num_sanity_val_steps"] == 0
    for words in (["-c", "configs/demo/finetune.yaml"], [f"--config={presets.FOLDER}/demo/finetune.yaml"]):
        assert read_fit(words) == whole
    write("own.yaml", trainer={"max_epochs": 7, "default_root_dir": "https://a.b"})
    assert read_fit(["--config", "demo/finetune.yaml", "-c=own.yaml"])["trainer"]["max_epochs"] == 7
    with pytest.raises(SystemExit):
        main(["fit", "--config", "demo/nothing.yaml"])
    assert "--config: demo/nothing.yaml: there is no such file" in capsys.readouterr().err


def test_curricula_take_presets_from_anywhere() -> None:
    curriculum, plan = read_curriculum("table2/without_progressive.yaml")
    assert curriculum.network == read_curriculum("table2/curriculum.yaml")[0].network | {"progressive": False}
    assert plan[0].config == presets.FOLDER / "table2" / "one_block_refinement.yaml"


def test_evaluations_take_presets_from_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--config", "demo/evaluation.yaml"])
    assert "runs/demo/model" in capsys.readouterr().err  # there is no such model here


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    presets.list_presets()
    lines = capsys.readouterr().out.splitlines()
    files = [presets.resolve(line.split()[0]) for line in lines]
    assert [f.name for f in files].count("curriculum.yaml") == 7
    assert {"table1_x64.yaml", "curriculum_1024.yaml", "without_progressive.yaml"} <= {f.name for f in files}
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def bomb(levels: int) -> str:
    """A few lines that stand for 9 to the power of `levels` values."""
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]" for n in range(levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9), "at most; nested anchors"),
        ("a: &a [*a]", "at most; nested anchors"),
        (f"a: {'[' * 150}{']' * 150}", "100 levels at most"),
        (f"a: {'[' * 50_000}", "expected YAML|nested too deeply|100 levels"),
    ],
)
def test_what_would_fill_the_memory_is_refused(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^a\.yaml: .*({message})"):
        presets.read("a.yaml")
    for words in (["fit", "--config"], ["evaluate", "--config"], ["curriculum", "--config"]):
        with pytest.raises(SystemExit):
            main([*words, "a.yaml"])
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--trainer", "--model", "--data", "--trainer.callbacks"])
def test_files_that_an_option_names_are_bounded_too(option: str) -> None:
    Path("a.yaml").write_text(bomb(9))
    with pytest.raises(ValueError, match=r"a\.yaml|nested anchors|does not"):
        read_fit(["--config", "demo/finetune.yaml", option, "a.yaml"])


def test_anchors_of_the_usual_kind_are_taken() -> None:
    Path("a.yaml").write_text(bomb(3))
    assert len(presets.read("a.yaml")["a2"]) == 9
