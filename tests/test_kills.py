"""benchmarks/kills.py and benchmarks/memory.py print what docs/reliability.md shows."""

import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill -9 and /proc"),
]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def cells(text: str, command: str) -> list[str]:
    row = next(line for line in text.splitlines() if line.startswith(f"| `{command}"))
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_a_killed_list_equals_an_undisturbed_one(capsys: pytest.CaptureFixture[str]) -> None:
    import kills

    kills.main(["--kills", "2", "--only", "enhance --aligned --csv"])
    _, number, ends, files, differing, left = cells(capsys.readouterr().out, "rpf enhance --aligned")
    assert int(number) >= 2
    assert int(ends) >= 1
    assert (files, differing, left) == ("24", "0", "0")


def test_a_file_that_differs_is_counted(tmp_path: Path) -> None:
    import kills

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a")
    before, times = kills.results(tmp_path / "out"), kills.written(tmp_path / "out")
    (tmp_path / "out" / "a").write_text("b")
    (tmp_path / "out" / ".c.tmp").write_text("half")
    assert kills.results(tmp_path / "out")["a"] != before["a"]
    assert kills.written(tmp_path / "out") != times
    assert {path.name for path in kills.temporary(tmp_path / "out")} == {".c.tmp"}


def test_memory_is_sampled_beside_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    import memory

    memory.main(["--pairs", "12", "--only", "enhance --aligned --csv"])
    pairs, first, last, most = cells(capsys.readouterr().out, "rpf enhance --aligned")
    assert pairs == "12"
    assert 50 < int(first) <= int(most)
    assert 50 < int(last) <= int(most)
    assert re.fullmatch(r"\d+", most)
