"""SCRFD: a made-up detector that sees red squares, and the real one on real photos."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from rpf_lightning.faces import detection
from rpf_lightning.faces.alignment import five_points
from rpf_lightning.faces.detection import FaceDetector

STRIDES = (8, 16, 32)
POINTS = np.array([-0.5, -0.25, 0.5, -0.25, 0, 0, -0.25, 0.5, 0.25, 0.5])  # in strides, from the anchor


@pytest.fixture
def red_pack(make_pack: Callable[..., Path]) -> Path:
    """A pack whose detector, shaped as SCRFD, sees a face in every cell of stride 32 that is red.

    The box reaches one stride around the anchor.
    """
    folder = make_pack().parent
    nodes, constants = [], {"scores_shape": np.array([-1, 1]), "boxes_shape": np.array([-1, 4])}
    constants["points_shape"] = np.array([-1, 10])
    outputs: dict[str, list[str]] = {"scores": [], "boxes": [], "points": []}
    for stride in STRIDES:
        kernel = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes.append(helper.make_node("AveragePool", ["input"], [f"cells{stride}"], **kernel))
        sees = np.array([[5, -5, 0]] if stride == 32 else [[0, 0, 0]])  # red minus green, in -1..1
        heads = {
            "scores": (np.repeat(sees, 2, 0), [-5, -20]),  # the second anchor of each cell sees nothing
            "boxes": (np.zeros((8, 3)), np.ones(8)),
            "points": (np.zeros((20, 3)), np.tile(POINTS, 2)),
        }
        for name, (weight, bias) in heads.items():
            key = f"{name}{stride}"
            constants[f"{key}_weight"] = np.asarray(weight, np.float32)[..., None, None]
            constants[f"{key}_bias"] = np.asarray(bias, np.float32)
            inputs = [f"cells{stride}", f"{key}_weight", f"{key}_bias"]
            nodes.append(helper.make_node("Conv", inputs, [f"{key}_map"]))
            source = f"{key}_map"
            if name == "scores":
                nodes.append(helper.make_node("Sigmoid", [source], [f"{key}_sigmoid"]))
                source = f"{key}_sigmoid"
            nodes.append(helper.make_node("Transpose", [source], [f"{key}_last"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"{key}_last", f"{name}_shape"], [key]))
            outputs[name].append(key)
    widths = {"scores": 1, "boxes": 4, "points": 10}
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "H", "W"])],
        [
            helper.make_tensor_value_info(key, TensorProto.FLOAT, [None, widths[name]])
            for name, keys in outputs.items()
            for key in keys
        ],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "z_detector.onnx")
    return folder


def picture(width: int, height: int, *squares: tuple[int, int, int], colour: int = 0) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, side in squares:
        image[y : y + side, x : x + side, colour] = 255
    return image


@pytest.fixture
def only_320(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "INPUT_SIDES", (320,))


def test_coordinates_and_channels(red_pack: Path, only_320: None) -> None:
    detector = FaceDetector()
    assert detector.pack == "tiny"
    (face,) = detector.detect(picture(320, 320, (96, 160, 32)))
    # stride 32 at input 320: cell (3, 5), whose anchor is its corner (96, 160)
    np.testing.assert_allclose(face.box, [64, 128, 128, 192], atol=1e-3)
    np.testing.assert_allclose(face.points[:, 0] - 96, 32 * POINTS[::2], atol=1e-3)
    np.testing.assert_allclose(face.points[:, 1] - 160, 32 * POINTS[1::2], atol=1e-3)
    assert 0.98 < face.score <= 1
    assert face.area == pytest.approx(64 * 64, rel=1e-4)
    assert detector.detect(picture(320, 320, (96, 160, 32), colour=2)) == []  # blue


def test_coordinates_are_the_photos_not_the_networks(red_pack: Path, only_320: None) -> None:
    (face,) = FaceDetector().detect(picture(80, 60, (24, 40, 8)))  # 4 times smaller
    np.testing.assert_allclose(face.box, [16, 32, 32, 48], atol=1e-3)


def test_input_sizes() -> None:
    assert detection._input_sides(64) == [320, 640]
    assert detection._input_sides(641) == [320, 640, 672]
    assert detection._input_sides(6000) == [320, 640, 1920]


def test_small_faces_of_large_photos(red_pack: Path) -> None:
    """A face of 32 pixels in a photo of 1280 is half a cell at 640."""
    (face,) = FaceDetector().detect(picture(1280, 960, (320, 256, 32)))
    np.testing.assert_allclose(face.box, [288, 224, 352, 288], atol=1e-2)


@pytest.mark.parametrize(("width", "height"), [(1001, 667), (667, 1001), (6400, 403)])
def test_sides_whose_ratio_is_not_whole(
    red_pack: Path, monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    """A square that the resizing puts exactly onto cells: both coordinates are brought back with their own ratio."""
    monkeypatch.setattr(detection, "INPUT_SIDES", (640,))
    monkeypatch.setattr(detection, "MAX_INPUT_SIDE", 640)
    detector = FaceDetector()
    ratio = max(width, height) / 640
    x, y, side = (round(v * ratio) for v in ((512, 0, 32) if width > height else (0, 512, 32)))
    (face,) = detector.detect(picture(width, height, (x, y, side)))
    np.testing.assert_allclose(face.box[[0, 2]], [x - side, x + side], atol=ratio)
    np.testing.assert_allclose(face.box[[1, 3]], [y - side, y + side], atol=ratio)
    np.testing.assert_allclose(face.points[:, 0] - x, side * POINTS[::2], atol=ratio)


def test_largest_first(red_pack: Path, only_320: None, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FaceDetector()
    boxes = np.array([[0, 0, 10, 10, 0.9], [20, 20, 50, 40, 0.6], [55, 5, 70, 30, 0.7]], np.float32)
    found = (boxes, np.arange(30, dtype=np.float32).reshape(3, 5, 2))
    monkeypatch.setattr(detector._network, "detect", lambda *args, **kwargs: found)
    faces = detector.detect(picture(320, 320))
    assert [face.area for face in faces] == [600, 375, 100]
    assert [face.points[0, 0] for face in faces] == [10, 20, 0]
    assert faces[0].points.dtype == faces[0].box.dtype == np.float64


def test_quiet(red_pack: Path, capfd: pytest.CaptureFixture[str]) -> None:
    FaceDetector().detect(picture(64, 64))
    out, err = capfd.readouterr()
    assert out == err == ""


def test_pack_without_a_detector(make_pack: Callable[..., Path]) -> None:
    folder = make_pack().parent
    with pytest.raises(FileNotFoundError, match="face detector") as caught:
        FaceDetector()
    assert str(folder) in str(caught.value)


def test_bad_input_is_refused(red_pack: Path) -> None:
    detector = FaceDetector()
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))):
        with pytest.raises(ValueError, match="RGB photo"):
            detector.detect(wrong)


def read(path: Path, side: int | None = None) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC) if side else image)


@pytest.mark.realdata
@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
@pytest.mark.parametrize("side", [None, 64])
def test_close_portraits(shared: Path, side: int | None) -> None:
    subset = shared / "data" / "celeba_hq_subset"
    with (subset / "landmarks.csv").open() as file:
        rows = [row for row in list(csv.reader(file))[1::150] if row[1]]
    assert len(rows) > 15
    detector = FaceDetector("mbf")
    for name, *values in rows:
        faces = detector.detect(read(subset / "images" / name, side))
        assert len(faces) >= 1, name
        expected = five_points(np.array(values, float).reshape(68, 2)) / 512
        found = faces[0].points / (side or 512)
        assert np.abs(found - expected)[[0, 1, 3, 4]].max() < 0.04, name


@pytest.mark.realdata
@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
def test_photos_of_all_kinds(shared: Path) -> None:
    detector = FaceDetector("mbf")
    paths = sorted((shared / "data" / "wild_photos").glob("*/*.jpg"))[::2]
    assert len(paths) > 30
    for path in paths:
        assert len(detector.detect(read(path))) == 1, path.name


@pytest.mark.realdata
@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
def test_mirror_images_agree_on_the_convention(shared: Path) -> None:
    """x of a point and x of its mirror image add up to W: continuous coordinates; to W - 1 with indices."""
    detector = FaceDetector("mbf")
    excess = []
    for path in sorted((shared / "data" / "celeba_hq_subset" / "images").glob("*.jpg"))[::200]:
        image = read(path, 64)
        here, there = (detector.detect(np.ascontiguousarray(i))[0] for i in (image, image[:, ::-1]))
        excess.append(here.points[:, 0] + there.points[[1, 0, 2, 4, 3], 0] - 64)
    assert abs(np.mean(excess)) < 0.25


@pytest.mark.realdata
@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
@pytest.mark.parametrize("shape", [(4, 3000), (3000, 4), (16, 20000), (1, 1), (3, 640)])
def test_slivers_hold_no_face(shape: tuple[int, int]) -> None:
    """The detector shrinks photos to 320 pixels: nothing may be left of the shorter side."""
    assert FaceDetector("mbf").detect(np.full((*shape, 3), 128, np.uint8)) == []
