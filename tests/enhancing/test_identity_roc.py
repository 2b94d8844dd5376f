"""The benchmark behind the identity check measures what it says, and the page says what the code does."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.enhancing.aligned_faces import MAX_PIXELS
from rpf_lightning.enhancing.identity_check import LIMITS
from rpf_lightning.enhancing.paste import MAX_PIXELS as LARGEST
from rpf_lightning.faces.detection import Face, FaceDetector
from rpf_lightning.faces.dlib_models import DlibDetector
from rpf_lightning.pictures import MOST_PIXELS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def roc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import identity_roc

    return identity_roc


def test_row(roc: Any) -> None:
    other = np.linspace(-0.5, 0.5, 100_001)  # 1 % above 0.49
    own = np.array([0.0, 0.495, 0.4995, 0.8])
    assert roc.row(48, own, other, 0.5, 0.05) == [
        "48", "50.0%", "75.0%", "0.490", "50.0%", "0.499", "25.0%", "55.0%",
    ]  # fmt: skip


def test_a_row_without_pairs_has_dashes(roc: Any) -> None:
    nothing = np.zeros(0)
    assert roc.row(16, nothing, nothing, None, 0.05) == ["16", *["-"] * 7]
    assert roc.row(16, nothing, np.linspace(-0.5, 0.5, 101), 1.0, 0.05)[1:4] == ["100.0%", "-", "0.490"]


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
    networks.models.recogniser = SimpleNamespace(file="arcface.onnx")
    monkeypatch.setattr(roc, "FaceNetworks", lambda pack, models: networks)
    roc.main(["--folders", str(tmp_path), "--sides", "64"])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "insightface's squares (arcface.onnx), 2 people" in first
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
    networks.models.recogniser = SimpleNamespace(file="arcface.onnx")
    monkeypatch.setattr(roc, "FaceNetworks", lambda pack, models: networks)
    # 375 pixels wide, which the enlargement by 2 makes 750
    roc.main(["--folders", str(tmp_path), "--sides", "9"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 9 | 100.0% |")


def test_prepared_photos(
    roc: Any, networks: Any, face_points: Any, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every photo is its person's face as a whole."""

    def detect(image: Any) -> list[Face]:
        return [Face(np.array([0, 0, *image.shape[1::-1]], float), 1.0, face_points(0, 0, len(image)))]

    networks.detector.pack, networks.detector.detect = "whole", detect
    networks.models.recogniser = SimpleNamespace(file="arcface.onnx")
    monkeypatch.setattr(roc, "FaceNetworks", lambda pack, models: networks)
    roc.main(["--data", str(prepared), "--sides", "32", "--people", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert "3 people" in lines[0]
    assert lines[-1].startswith("| 32 | 100.0% |")


def test_the_page_states_the_constants() -> None:
    page = (ROOT / "docs" / "enhance.md").read_text()
    arcface, dlib = LIMITS["insightface"], LIMITS["dlib"]
    assert f"| {arcface.same} and more | {dlib.same} and more | the same person |" in page
    assert f"| below {arcface.other} | below {dlib.other} | refused as clearly another person" in page
    sides = f"From {arcface.smallest_side} pixels on (ArcFace) or {dlib.smallest_side} (dlib)"
    assert f"{sides}, face and reference are compared" in page
    assert f"`{arcface.file}`" in page
    itself, twice, four_times = (int(MAX_PIXELS[scale] / 1e6) for scale in (1, 2, 4))
    flat = " ".join(page.split())
    for pixels, how, scale in (
        (four_times // 16, "enlarged by 4", 4),
        (twice // 4, "enlarged by 2", 2),
        (itself, "as it is", 1),
        (int(MOST_PIXELS / 1e6), "reduced by 2", 0.5),
    ):
        scrfd, dlibs = FaceDetector.smallest_square / scale, DlibDetector.smallest_square / scale / 2
        assert f"| {pixels} million | {how} | {scrfd:.0f} pixels | {dlibs:.0f} pixels |" in flat
    assert f"up to {int(LARGEST / 1e6)} million pixels" in flat
