import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from rpf_lightning.model.rpf import RPFModel

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    notebook = copy.deepcopy(notebook)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()


def execute_here(cells: list[NotebookNode], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run cells that need no kernel, whose start takes longer than they do."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    exec("\n".join(cell.source for cell in cells), {})


def code_of(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def results(notebook: NotebookNode) -> tuple[str, int]:
    """What an executed notebook has printed, and how many pictures it shows."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    streams = [output for output in outputs if output.output_type == "stream"]
    text = "".join(output.text for output in streams if output.name == "stdout")
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks() -> None:
    assert [path.stem[3:] for path in NOTEBOOKS] == [
        "super_resolve", "train_and_inspect", "tables_and_figures",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_outputs(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_super_resolve_runs_on_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RPFModel(lr_size=16, scale=2, channels=8, width=1 / 64).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("RPF_MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv(
        "RPF_WEIGHTS_DIR", str(tmp_path)
    )  # no detector: its faces are too large for this model
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path))
    text, pictures = results(execute(read(NOTEBOOKS[0]), tmp_path))
    assert "16 -> 32 pixels" in text
    for method in ("bicubic", "without reference", "with reference"):
        assert re.search(rf"^{method} +PSNR \d+\.\d\d dB, inside the face \d+\.\d\d dB$", text, re.MULTILINE)
    assert pictures == 4  # the result, one block, the flow, the enhanced crop
    assert "too few to tell people apart" in text
    assert "\n16 -> 32 pixels" in text


def test_super_resolve_runs_in_a_fresh_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a model of one's own and without weights of others it is the packaged model that runs."""
    monkeypatch.delenv("RPF_MODEL_DIR", raising=False)
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path))
    text, pictures = results(execute(read(NOTEBOOKS[0]), tmp_path))
    assert text.startswith("celeba-hq-16to128: 16 -> 128 pixels, 3 blocks\n")
    faces = dict(re.findall(r"^(.*?) +PSNR .* inside the face (\d+\.\d\d) dB$", text, re.MULTILINE))
    assert float(faces["with reference"]) > float(faces["bicubic"])
    assert pictures == 6  # the result, three blocks, the flow, the enhanced crop
    assert text.rstrip().splitlines()[-1].startswith("no insightface pack here")


@pytest.mark.weights
def test_super_resolve_finds_a_face_in_the_group_photo(
    tmp_path: Path, real_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RPF_MODEL_DIR", raising=False)
    code = code_of(NOTEBOOKS[0])
    execute_here([*code[:4], *code[-2:]], tmp_path, monkeypatch)
    assert re.search(r"^face \d of the group: 5\d -> 128 pixels$", capsys.readouterr().out, re.MULTILINE)


def test_tables_and_figures_takes_names_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RPF_MODEL_DIR", "celeba-hq-16to128")
    cells = code_of(NOTEBOOKS[2])[:2]
    cells[-1].source += "\nprint(model)"
    execute_here(cells, tmp_path, monkeypatch)
    assert capsys.readouterr().out == "celeba-hq-16to128\n"


def test_train_and_inspect_removes_nothing_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be a user's, with other files: only an older model and older logs go."""
    monkeypatch.setenv("RPF_NOTEBOOK_DIR", "out")
    for name in ("mine.txt", "model/old.txt", "warping/version_0/metrics.csv", "synthesis/a", "other/a"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("kept")
    execute_here(code_of(NOTEBOOKS[1])[:2], tmp_path, monkeypatch)
    left = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert left == ["mine.txt", "model/config.json", "model/model.safetensors"]
    assert (tmp_path / "out" / "other" / "a").is_file()
    assert not any((tmp_path / "out" / name).exists() for name in ("warping", "synthesis"))


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_train_and_inspect_trains(
    real: bool, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RPF_EPOCHS": "2", "RPF_PEOPLE": "10", "RPF_NOTEBOOK_DIR": "out"}.items():
        monkeypatch.setenv(name, value)
    if real:
        monkeypatch.setenv("RPF_DATA", str(prepared))
    path = NOTEBOOKS[1]
    notebook = read(path)
    if real:  # the made-up folder has few people
        for cell in notebook.cells:
            cell.source = cell.source.replace("batch_size=8", "batch_size=2, val_fraction=0.34")
    text, pictures = results(execute(notebook, tmp_path))
    error, unwarped = re.search(r"end-point error (\d\.\d+) pixels, without a warp (\d\.\d+)", text).groups()
    assert error != unwarped  # it was trained
    assert re.search(r"PSNR inside the face \d+\.\d\d dB", text)
    assert pictures == 8  # curves and two samples, of two stages: 1 + 2 * 2, and 1 + 2
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert len(list((tmp_path / "out").glob("*/version_0/metrics.csv"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_tables_and_figures_of_any_model(
    real: bool, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RPFModel(lr_size=16, scale=4, channels=4, width=1 / 64).save_pretrained(tmp_path / "model")
    settings = {"RPF_MODEL_DIR": str(tmp_path / "model"), "RPF_NOTEBOOK_DIR": "out", "RPF_PAIRS": "4"}
    for name, value in (settings | ({"RPF_DATA": str(prepared)} if real else {})).items():
        monkeypatch.setenv(name, value)
    notebook = read(NOTEBOOKS[2])
    for cell in notebook.cells:  # few people are drawn, and in the made-up folder are few
        cell.source = cell.source.replace(
            "people=200, photos_each=5", "people=12, photos_each=5, val_fraction=0.34"
        )
        cell.source = cell.source.replace("root=root,", "root=root, val_fraction=0.34,")
        cell.source = cell.source.replace("rows = 3", "rows = 2")
    executed = execute(notebook, tmp_path)
    text, pictures = results(executed)
    figures = ("comparison", "intermediates", "thin_plate", "references", "mask", "degradations")
    assert pictures == 3 + len(figures)
    for figure in figures:
        assert re.search(rf"^{figure}: [2-9] lines of pictures", text, re.MULTILINE)
        assert (tmp_path / "out" / f"{figure}.png").is_file()
    assert re.search(r"own minus other person's reference: [+-]\d+\.\d\d dB \[", text)
    (table,) = (
        output.data["text/markdown"]
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    )
    for row in ("bicubic", "refinement alone", "RPF", "RPF other person", "RPF GT as reference"):
        assert f"| {row} |" in table
