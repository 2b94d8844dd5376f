import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
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


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_outputs(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_super_resolve_runs_on_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RPFModel(lr_size=16, scale=2, channels=8, width=1 / 64).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("RPF_MODEL_DIR", str(tmp_path / "model"))
    notebook = execute(read(NOTEBOOKS[0]), tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
    )
    assert "16 -> 32 pixels" in text
    for method in ("bicubic", "without reference", "with reference"):
        assert re.search(rf"^{method} +PSNR \d+\.\d\d dB, inside the face \d+\.\d\d dB$", text, re.MULTILINE)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # the result, one block, the flow


def test_super_resolve_says_what_to_do_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPF_MODEL_DIR", str(tmp_path / "missing"))
    with pytest.raises(CellExecutionError, match="run `make demo` first"):
        execute(read(NOTEBOOKS[0]), tmp_path)
