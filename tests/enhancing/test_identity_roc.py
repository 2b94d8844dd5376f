"""The benchmark behind the identity check measures what it says, and the page says what the code does."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.enhancing.aligned_faces import MAX_PIXELS, SMALLEST
from rpf_lightning.enhancing.enhance import MOST_PIXELS
from rpf_lightning.enhancing.identity_check import MEASURED, OTHER, SAME, SMALLEST_SIDE
from rpf_lightning.enhancing.paste import MAX_PIXELS as LARGEST
from rpf_lightning.faces.detection import Face

ROOT = Path(__file__).parents[2]


@pytest.fixture
def roc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import identity_roc

    return identity_roc


def test_row(roc: Any) -> None:
    other = np.linspace(-0.5, 0.5, 100_001)  # 1 % above 0.49
    own = np.array([0.0, 0.495, 0.4995, 0.8])
    assert roc.row(48, own, other, 0.5) == [
        "48", "50.0%", "75.0%", "0.490", "50.0%", "0.499", "25.0%", "55.0%",
    ]  # fmt: skip


def test_a_row_without_pairs_has_dashes(roc: Any) -> None:
    nothing = np.zeros(0)
    assert roc.row(16, nothing, nothing, None) == ["16", *["-"] * 7]
    assert roc.row(16, nothing, np.linspace(-0.5, 0.5, 101), 1.0)[1:4] == ["100.0%", "-", "0.490"]


def test_pairs_are_of_one_person_and_no_near_duplicates(roc: Any) -> None:
    prepared = SimpleNamespace(
        identities=["a", "a", "b", "", "b", "c", "c", "c"], near_duplicates=lambda: [(1, 0), (5, 6)]
    )
    for seed in range(5):
        pairs = roc.drawn_pairs(prepared, 9, seed)
        assert len(pairs) == 2  # both photos of a are one
        assert (2, 4) in pairs
        assert {(5, 7), (6, 7)} & set(pairs)
        assert pairs == roc.drawn_pairs(prepared, 9, seed)
    assert len(roc.drawn_pairs(prepared, 1, 0)) == 1


def test_people_in_folders(
    roc: Any, networks: Any, drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Two people that differ wholly, a photo without a face, and sides at which the detector sees nothing."""
    for person, blue in (("a", 0), ("b", 255)):
        (tmp_path / person).mkdir()
        for number in range(2):
            image = drawn(200, 150, (20 + number, 30, 100, blue))
            Image.fromarray(image).save(tmp_path / person / f"{number}.png")
    Image.fromarray(drawn(200, 150)).save(tmp_path / "a" / "nobody.png")
    networks.arcface = SimpleNamespace(file="arcface.onnx")
    monkeypatch.setattr(roc, "FaceNetworks", lambda pack: networks)
    roc.main(["--folders", str(tmp_path), "--sides", "64"])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "pack squares (arcface.onnx), 2 people" in first
    assert re.sub(r"0\.0\d\d", "0", last) == "| 64 | 100.0% | 100.0% | 0 | 100.0% | 0 | 0.0% | 100.0% |"
    # no photo has a face of 128 pixels
    roc.main(["--folders", str(tmp_path), "--sides", "128"])
    assert capsys.readouterr().out.splitlines()[-1] == "| 128 |" + " - |" * 7


def test_faces_are_found_as_by_the_command(
    roc: Any, networks: Any, drawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In the enlargement too: at 9 pixels the detector itself sees nothing."""
    for person, blue in (("a", 0), ("b", 255)):
        (tmp_path / person).mkdir()
        for number in range(2):
            image = drawn(1500, 1200, (600 + number, 300, 36, blue))
            Image.fromarray(image).save(tmp_path / person / f"{number}.png")
    networks.arcface = SimpleNamespace(file="arcface.onnx")
    monkeypatch.setattr(roc, "FaceNetworks", lambda pack: networks)
    # 375 pixels wide, which the enlargement by 2 makes 750
    roc.main(["--folders", str(tmp_path), "--sides", "9"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 9 | 100.0% |")


def test_prepared_photos(
    roc: Any, networks: Any, face_points: Any, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every photo is its person's face as a whole."""

    def detect(image: Any) -> list[Face]:
        return [Face(np.array([0, 0, *image.shape[1::-1]], float), 1.0, face_points(0, 0, len(image)))]

    networks.detector = SimpleNamespace(pack="whole", detect=detect, sure_upright=0.6)
    networks.arcface = SimpleNamespace(file="arcface.onnx")
    monkeypatch.setattr(roc, "FaceNetworks", lambda pack: networks)
    roc.main(["--data", str(prepared), "--sides", "32", "--people", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert "3 people" in lines[0]
    assert lines[-1].startswith("| 32 | 100.0% |")


def test_the_page_states_the_constants() -> None:
    page = (ROOT / "docs" / "enhance.md").read_text()
    assert f"| {SAME} and more | the same person |" in page
    assert f"| below {OTHER} | refused as clearly another person" in page
    assert f"From {SMALLEST_SIDE} pixels on, face and reference are compared by ArcFace" in page
    assert f"`{MEASURED}`" in page
    itself, twice, four_times = (int(MAX_PIXELS[scale] / 1e6) for scale in (1, 2, 4))
    flat = " ".join(page.split())
    for line in (
        f"| {four_times // 16} million | enlarged by 4 | {SMALLEST // 4} pixels |",
        f"| {twice // 4} million | enlarged by 2 | {SMALLEST // 2} pixels |",
        f"| {itself} million | as it is | {SMALLEST} pixels |",
        f"| {int(MOST_PIXELS / 1e6)} million | reduced by 2 | {2 * SMALLEST} pixels |",
        f"up to {int(LARGEST / 1e6)} million pixels",
    ):
        assert line in flat
