"""Landmark networks made up by the test, whose answers are known, and a real one on real photos."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from rpf_lightning.data.preparation.options import Options
from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces import landmarks as module
from rpf_lightning.faces.detection import Face
from rpf_lightning.faces.landmarks import (
    MIRRORED,
    FaceAlignmentLandmarks,
    OnnxLandmarks,
    landmark_model,
)
from rpf_lightning.faces.turned import points_back
from turned_heads import Heads, photo_of

MakeNetwork = Callable[..., Path]


def spot(width: int, height: int, x: float, y: float, radius: float = 3) -> np.ndarray:
    """A bright spot on black, centred at continuous coordinates."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    bright = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    return np.repeat(bright[..., None], 3, 2).astype(np.uint8)


class Boxes:
    """A detector that finds given boxes."""

    sure_upright = 0.8

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.faces = [Face(np.array(box, float), 0.9, np.zeros((5, 2))) for box in boxes]

    def detect(self, image: np.ndarray) -> list[Face]:
        return self.faces if image.any() else []


@pytest.fixture
def make_network(tmp_path: Path) -> MakeNetwork:
    """Writes a 68-point network: `centroid` of brightness, mean `colour`, or a `constant`."""

    def make(
        kind: str = "centroid",
        side: int = 32,
        points: int = 68,
        batch: str | int = "B",
        shape: np.ndarray = None,
    ) -> Path:
        centres = (np.arange(side) + 0.5) / side
        grid = np.stack([np.tile(centres, side), np.repeat(centres, side)], 1)
        means = np.zeros((3, 2 * points))
        means[:2, 0], means[:, 1::2] = 1, [[1], [0], [0]]  # all y are the mean red
        constants = {
            "grid": np.tile(grid, points).astype(np.float32),
            "flat": np.array([0, -1]),
            "axes": np.array([1]),
            "means": means.astype(np.float32),
            "nothing": np.zeros((3, 2 * points), np.float32),
            "shape": np.ravel(np.zeros((points, 2)) if shape is None else shape).astype(np.float32),
        }
        spatial = [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["colour"]),
        ]
        nodes = {
            "centroid": [
                helper.make_node("ReduceMean", ["input"], ["grey"], axes=[1]),
                helper.make_node("Reshape", ["grey", "flat"], ["pixels"]),
                helper.make_node("MatMul", ["pixels", "grid"], ["weighted"]),
                helper.make_node("ReduceSum", ["pixels", "axes"], ["total"], keepdims=1),
                helper.make_node("Div", ["weighted", "total"], ["output"]),
            ],
            "colour": [*spatial, helper.make_node("MatMul", ["colour", "means"], ["output"])],
            "constant": [*spatial, helper.make_node("Gemm", ["colour", "nothing", "shape"], ["output"])],
        }[kind]
        graph = helper.make_graph(
            nodes,
            kind,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, side, side])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 2 * points])],
            [numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / f"{kind}.onnx")
        return tmp_path / f"{kind}.onnx"

    return make


@pytest.mark.parametrize(
    ("box", "centre"),
    [
        ((40, 30, 100, 120), (75.5, 81.25)),  # inside
        ((100.3, 60.7, 180.1, 130.2), (140.0, 100.0)),  # at fractions of pixels
        ((-30, -20, 60, 50), (20.0, 15.5)),  # beyond the left and the upper edge
        ((120, 90, 230, 200), (170.0, 140.0)),  # beyond the right and the lower edge
    ],
)
@pytest.mark.parametrize("side", [32, 112])
def test_crop_and_coordinates(
    make_network: MakeNetwork, box: tuple, centre: tuple[float, float], side: int
) -> None:
    (found,) = OnnxLandmarks(make_network(side=side), Boxes(box))([spot(200, 160, *centre)])
    assert found.landmarks.shape == (68, 2)
    np.testing.assert_allclose(found.landmarks, np.tile(centre, (68, 1)), atol=0.06)


def test_square_is_1_1_times_the_longer_side(make_network: MakeNetwork) -> None:
    """A network that always points to the crop's corners tells where the crop is."""
    corners = np.zeros((68, 2))
    corners[[8, 16, 0]] = [[0.5, 0], [1, 1], [0, 1]]  # a shape that is its own mirror image
    corners[[10, 6]] = [[1, 0], [0, 0]]
    model = OnnxLandmarks(make_network("constant", shape=corners), Boxes((50, 40, 70, 140)))
    (found,) = model([np.full((200, 200, 3), 9, np.uint8)])
    np.testing.assert_allclose(found.landmarks[[6, 16]], [[5, 35], [115, 145]], atol=1e-4)


@pytest.mark.parametrize("turns", range(4))
def test_a_face_that_lies_is_turned_for_the_network(make_network: MakeNetwork, turns: int) -> None:
    heads = SimpleNamespace(detect=Heads(0.9, 0.6, 0.55, 0.7), sure_upright=0.8)
    shape = np.random.default_rng(0).random((68, 2))
    model = OnnxLandmarks(make_network("constant", shape=shape), heads)
    upright = photo_of((40, 30, 24, 0))
    (wanted,) = model([upright])
    (found,) = model([np.rot90(upright, turns).copy()])
    np.testing.assert_allclose(
        points_back(found.landmarks, turns, upright.shape), wanted.landmarks, atol=1e-3
    )
    assert np.ptp(wanted.landmarks, axis=0).min() > 5


def test_photo_is_fed_as_rgb_from_0_to_1(make_network: MakeNetwork) -> None:
    photo = np.zeros((100, 100, 3), np.uint8)
    photo[...] = (51, 200, 255)
    (found,) = OnnxLandmarks(make_network("colour"), Boxes((0, 0, 100, 100)))([photo])
    np.testing.assert_allclose(found.landmarks[:, 1], 110 * 51 / 255 - 5, atol=1e-3)


def test_edge_is_repeated(make_network: MakeNetwork) -> None:
    photo = np.full((50, 50, 3), 100, np.uint8)
    (found,) = OnnxLandmarks(make_network("colour"), Boxes((-40, -40, 60, 60)))([photo])
    np.testing.assert_allclose(found.landmarks[:, 1], 110 * 100 / 255 - 45, atol=1e-3)


def test_mean_of_photo_and_mirror_image(make_network: MakeNetwork) -> None:
    shape = np.random.default_rng(0).random((68, 2))
    model = OnnxLandmarks(make_network("constant", shape=shape), Boxes((5, 5, 105, 105)))
    (found,) = model([np.full((110, 110, 3), 9, np.uint8)])
    for left, right in ((36, 45), (48, 54), (0, 16), (60, 64), (31, 35), (17, 26), (41, 46), (8, 8)):
        expected = (shape[left] + (1 - shape[right, 0], shape[right, 1])) / 2
        np.testing.assert_allclose(found.landmarks[left], expected * 110, atol=1e-4)


def test_crop_is_antialiased(make_network: MakeNetwork) -> None:
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[::2] = 200
    (found,) = OnnxLandmarks(make_network("colour", side=8), Boxes((100, 100, 900, 900)))([stripes])
    assert np.abs((found.landmarks[:, 1] - 60) / 880 - 100 / 255).max() < 0.01


def test_photos_of_different_sizes_and_without_a_face(make_network: MakeNetwork) -> None:
    model = OnnxLandmarks(make_network(), Boxes((10, 10, 70, 70), (0, 0, 20, 20)))
    photos = [spot(80, 90, 30, 50), np.zeros((40, 50, 3), np.uint8), spot(120, 100, 50, 30)]
    first, nothing, last = model(photos)
    np.testing.assert_allclose(first.landmarks[0], (30, 50), atol=0.06)
    np.testing.assert_allclose(last.landmarks[0], (50, 30), atol=0.06)
    assert (len(first.faces), len(nothing.faces), len(last.faces)) == (2, 0, 2)
    assert first.faces[0].area == 3600
    assert nothing.landmarks is None
    assert model(photos[1:2])[0].landmarks is None
    assert model([]) == []


def test_mirrored_order_fits_faces() -> None:
    assert sorted(MIRRORED) == list(range(68))
    shape = np.mean([render_photo(i, 0, 256).landmarks / 256 for i in range(12)], 0)
    shape -= shape.mean(0)
    mirrored = (shape * (-1, 1))[list(MIRRORED)]
    assert np.hypot(*(shape - mirrored).T).max() < 0.03  # neighbouring points are about 0.03 apart


def test_wrong_files_are_refused(make_network: MakeNetwork, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx"):
        OnnxLandmarks(tmp_path / "absent.onnx", Boxes())
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.onnx is no ONNX file"):
        OnnxLandmarks(tmp_path / "text.onnx", Boxes())
    with pytest.raises(ValueError, match=r"\(B, 136\)"):
        OnnxLandmarks(make_network(points=98), Boxes())
    with pytest.raises(ValueError, match="free B"):
        OnnxLandmarks(make_network(batch=1), Boxes())


def test_model_by_name(
    make_network: MakeNetwork, make_pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"face-alignment, dlib, onnx:PATH or .* got 'pfld'"):
        landmark_model("pfld")
    monkeypatch.setattr(module, "FaceDetector", lambda pack: pack)
    model = landmark_model(f"onnx:{make_network()}", "cpu", "mine")
    assert isinstance(model, OnnxLandmarks)
    assert model.detector == "mine"


# face-alignment


@pytest.fixture(scope="module")
def fan_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of face-alignment's names and shapes: a random FAN-4, and an S3FD that sees only background."""
    from face_alignment.api import FAN
    from face_alignment.detection.sfd.net_s3fd import s3fd

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), folder / "2DFAN4-11f355bf06.pth.tar")
    state = s3fd().state_dict()
    for key, value in state.items():
        if "mbox" in key:
            value.zero_()
        if key.endswith("mbox_conf.bias"):
            value[0] = 20
    torch.save(state, folder / "s3fd-619a316812.pth")
    return folder


@pytest.fixture(scope="module")
def face_alignment(fan_weights: Path) -> Iterator[FaceAlignmentLandmarks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPF_WEIGHTS_DIR", str(fan_weights))
        yield landmark_model("face-alignment", "cpu")


def test_fan_reads_our_files(fan_weights: Path, face_alignment: FaceAlignmentLandmarks) -> None:
    for network, file in (
        (face_alignment._network.face_alignment_net, "2DFAN4-11f355bf06.pth.tar"),
        (face_alignment._network.face_detector.face_detector, "s3fd-619a316812.pth"),
    ):
        state = torch.load(fan_weights / file)
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert not network.training


def test_fan_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RPF_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"s3fd-619a316812\.pth"):
        FaceAlignmentLandmarks()


def test_fan_finds_no_face(face_alignment: FaceAlignmentLandmarks) -> None:
    (found,) = face_alignment([render_photo(0, 0, 64).image])
    assert found.landmarks is None
    assert found.faces == []


def test_fan_gives_68_points_in_a_box(face_alignment: FaceAlignmentLandmarks) -> None:
    (points,) = face_alignment.landmarks_in(render_photo(0, 0, 64).image, [np.array([10, 10, 50, 55])])
    assert points.shape == (68, 2)
    assert points.dtype == np.float64
    assert points.min() > -20
    assert points.max() < 90


def brightest(crops: torch.Tensor) -> torch.Tensor:
    """Stands for FAN: all 68 heatmaps show the brightness of the crop."""
    grey = torch.nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 4)
    return grey.expand(-1, 68, -1, -1).clone()


@pytest.mark.parametrize("side", [128, 1024])
def test_fan_coordinates(
    face_alignment: FaceAlignmentLandmarks, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """The package gives pixels rounded down; half a pixel more is right on average, in photos of any size."""
    monkeypatch.setattr(face_alignment._network, "face_alignment_net", brightest)
    rng = np.random.default_rng(0)
    offset = []
    for _ in range(24):
        centre, size = rng.uniform(0.4, 0.6, 2), rng.uniform(0.2, 0.4)
        at = (centre + rng.uniform(-0.5, 0.5, 2) * size) * side
        box = np.concatenate([centre - size * 0.5, centre + size * 0.5]) * side
        (points,) = face_alignment.landmarks_in(spot(side, side, *at, radius=side / 170), [box])
        offset.append((points[0] - at) / side * 640)
    assert np.abs(np.mean(offset, 0)).max() < 0.6  # 0.9 to 1 without it
    assert np.abs(offset).max() < 3


def test_fan_faces_in_batches(
    face_alignment: FaceAlignmentLandmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes of the detector come back in pixels of the photo, the largest first, with its landmarks."""
    batches = []

    def detect(batch: torch.Tensor) -> list:
        batches.append(tuple(batch.shape))
        assert batch.dtype == torch.uint8
        small, large = np.array([0, 0, 64, 64, 0.7]), np.array([200, 200, 400, 440, 0.9])
        return [[small, large] if i == 0 else [] for i in range(len(batch))]

    monkeypatch.setattr(face_alignment._network.face_detector, "detect_from_batch", detect)
    monkeypatch.setattr(face_alignment._network, "face_alignment_net", brightest)
    photos = [spot(320, 160, 150, 150), spot(320, 160, 10, 10), spot(64, 64, 5, 5)]
    two, none, other = face_alignment(photos)
    assert batches == [(2, 3, 320, 640), (1, 3, 640, 640)]
    assert (len(two.faces), len(none.faces), len(other.faces)) == (2, 0, 2)
    np.testing.assert_allclose(two.faces[0].box, [100, 100, 200, 220])
    np.testing.assert_allclose(other.faces[0].box, [20, 20, 40, 44])
    np.testing.assert_allclose(two.landmarks, np.tile((150, 150), (68, 1)), atol=2)
    np.testing.assert_allclose(two.faces[0].points, np.tile((150, 150), (5, 1)), atol=2)
    assert two.faces[0].score == 0.9


# real photos


@pytest.mark.realdata
@pytest.mark.weights
def test_real_network_on_real_photos(shared: Path, real_weights: Path) -> None:
    subset = shared / "data" / "celeba_hq_subset"
    with (subset / "landmarks.csv").open() as file:
        rows = [row for row in list(csv.reader(file))[1::120] if row[1]]
    expected = np.array([row[1:] for row in rows], float).reshape(-1, 68, 2)
    photos = [np.asarray(Image.open(subset / "images" / row[0])) for row in rows]
    model = landmark_model(f"onnx:{real_weights / 'pfld.onnx'}")
    landmarks = np.array([found.landmarks for found in model(photos)])
    # the table's points lie 2.1 pixels of 512 too far right (against hand-made parsing maps), as this network's do
    # on the photo alone; with the mirror image they do not
    offset = landmarks - expected
    assert np.median(np.abs(offset).mean((1, 2))) < 2.6
    assert np.median(np.abs(offset - (-2.3, 0)).mean((1, 2))) < 1.8


OWN = """
import numpy as np
from rpf_lightning.faces.landmarks import Found

class Middle:
    def __init__(self, part="0.5"):
        self.part = float(part)

    def __call__(self, images):
        return [Found(np.full((68, 2), image.shape[0] * self.part), []) for image in images]
"""


def test_a_landmark_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_landmarks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    image = np.zeros((8, 8, 3), np.uint8)
    for spec, place in (("my_landmarks.Middle", 4), ("my_landmarks.Middle:0.25", 2)):
        (found,) = landmark_model(spec)([image])
        assert (found.landmarks == place).all()
        assert Options(landmark_model=spec).deciding()["landmark_model"] == spec
    for spec, message in (("my_landmarks.Nothing", "Nothing"), ("no_module.Middle", "No module")):
        with pytest.raises(ValueError, match=message):
            landmark_model(spec)
