"""Finding faces, tiny ones too; crops, masks and features."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rpf_lightning.enhancing import aligned_faces as faces
from rpf_lightning.enhancing.aligned_faces import (
    AlignedFace,
    FaceNetworks,
    RefusedError,
    find_faces,
    search_faces,
)
from rpf_lightning.faces.detection import Face, FaceDetector
from rpf_lightning.faces.dlib_models import DlibDetector
from rpf_lightning.faces.parsing import template_mask

Draw = Callable[..., NDArray[np.uint8]]


def boxes(found: Sequence[Face]) -> list[list[float]]:
    return [np.round(face.box).tolist() for face in found]


def test_tiny_faces_are_found_in_the_enlarged_photo(drawn: Draw, networks: Any) -> None:
    photo = drawn(700, 500, (300, 200, 9, 0), (50, 60, 40, 0))
    assert len(networks.detector.detect(photo)) == 1
    found = find_faces(photo, networks.detector)
    assert boxes(found) == [[50, 60, 90, 100], [300, 200, 309, 209]]  # largest first, each once
    assert AlignedFace.found(photo, found[1]).side == pytest.approx(9, abs=0.6)


def test_four_times_beside_a_large_face(drawn: Draw, networks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a limit, and what that means is said."""
    tiny, large = (401, 303, 5, 0), (50, 60, 40, 0)
    both = search_faces(drawn(700, 500, tiny, large), networks.detector)
    assert len(both.faces) == 2
    assert (both.scales, both.smallest, both.complete, both.hint) == ((2, 4), 5, True, "")
    np.testing.assert_allclose(both.faces[1].box, [401, 303, 406, 308], atol=0.6)
    monkeypatch.setitem(faces.MAX_PIXELS, 4, 16 * 700 * 500 - 1)
    assert find_faces(drawn(700, 500, tiny), networks.detector) == []
    beside = search_faces(drawn(700, 500, tiny, large), networks.detector)
    assert boxes(beside.faces) == [[50, 60, 90, 100]]
    assert (beside.scales, beside.smallest) == ((2,), 10)
    assert beside.hint.startswith("faces below 10 pixels were not sought, since the photo is large: cut it")


class Reducing:
    """Sees photos at up to 1920 pixels only, as the real detector; boxes and points are as coarse."""

    smallest_face, smallest_square, input_side = 20, 20, 640

    def __init__(self, detector: Any, longest: int = 1920) -> None:
        self.detector = detector
        self.sure_upright = detector.sure_upright
        self.longest = self.max_input_side = longest
        self.largest = 0

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        step = -(-max(image.shape) // self.longest)
        self.largest = max(self.largest, image.size if step == 1 else 0)
        return [
            replace(face, box=face.box * step, points=face.points * step)
            for face in self.detector.detect(image[::step, ::step])
        ]


def test_large_photos_are_searched_at_their_own_size(
    drawn: Draw, networks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the enlargement by 2 is beyond its limit. Faces of 20 pixels have 10 in the reduced photo: too few."""
    monkeypatch.setitem(faces.MAX_PIXELS, 2, 4 * 2400 * 1500 - 1)
    detector = Reducing(networks.detector)
    photo = drawn(2400, 1500, (2003, 1001, 21, 0), (17, 1470, 19, 0), (501, 503, 151, 0))
    assert len(detector.detect(photo)) == 1
    search = search_faces(photo, detector)
    assert boxes(search.faces) == [
        [501, 503, 652, 654], [2003, 1001, 2024, 1022], [17, 1470, 36, 1489],
    ]  # fmt: skip
    assert (search.scales, search.smallest) == ((1,), 20)
    assert search.hint.startswith("faces below 20 pixels were not sought, since the photo is large: cut it")
    assert detector.largest <= 3 * 640 * 640  # one tile, or one cut, at a time


def test_photos_beyond_every_limit_are_searched_reduced(
    drawn: Draw, networks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found there is found again in the photo itself, so that its points are exact."""
    monkeypatch.setattr(faces, "MAX_PIXELS", dict.fromkeys((0.5, 1, 2, 4), 1))
    detector = Reducing(networks.detector)
    photo = drawn(3000, 2000, (1001, 1003, 151, 0), (2500, 100, 20, 0))
    search = search_faces(photo, detector)
    assert [face.box.tolist() for face in search.faces] == [[1001, 1003, 1152, 1154]]
    assert AlignedFace.found(photo, search.faces[0]).side == pytest.approx(151)
    assert (search.scales, search.smallest) == ((), 32)
    # what is not found again stays as it was
    monkeypatch.setattr(faces, "CUT", 10**5)
    (coarse,) = search_faces(photo, detector).faces
    np.testing.assert_allclose(coarse.box, [1001, 1003, 1152, 1154], atol=2)


def test_the_largest_photos_are_searched_at_half_their_size(
    drawn: Draw, networks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faces of 40 pixels, not of 20; and their places are exact."""
    monkeypatch.setattr(faces, "MAX_PIXELS", {0.5: 2e6, 1: 3e6, 2: 3e6, 4: 3e6})
    detector = Reducing(networks.detector, 800)
    squares = [(1501, 1003, 31, 0), (2000, 100, 20, 0), (2366, 1467, 33, 0)]
    search = search_faces(drawn(2400, 1500, *squares), detector)
    assert (search.scales, search.smallest, search.complete) == ((0.5,), 40, False)
    np.testing.assert_array_equal(
        [face.box for face in search.faces], [[2366, 1467, 2399, 1500], [1501, 1003, 1532, 1034]]
    )


@pytest.mark.parametrize(
    ("width", "height", "smallest", "dlibs"),
    [
        (20, 20, 5, 24), (160, 100, 5, 24), (1000, 900, 5, 24), (2000, 1500, 10, 48), (3400, 2500, 20, 96),
        (4000, 3000, 20, 96), (8000, 6000, 40, 192),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [FaceDetector, DlibDetector])
def test_how_small_faces_are_sought(
    width: int, height: int, smallest: int, dlibs: int, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the photo and the detector decide, and with it the time: 24 million pixels are searched at most."""
    searched = []

    class Nothing(kind):
        def __init__(self) -> None:
            pass

        def detect(self, image: NDArray[np.uint8]) -> list[Face]:
            searched.append(image.shape[0] * image.shape[1])
            return []

    monkeypatch.setattr(faces.Image.Image, "resize", lambda image, size, _: faces.Image.new("RGB", size))
    search = search_faces(np.zeros((height, width, 3), np.uint8), Nothing())
    assert search.smallest == (smallest if kind is FaceDetector else dlibs)
    assert search.complete is (width < 2000)
    assert sum(searched[1:]) <= 4 * 2 * 40e6  # in four turns; tiles overlap, and there may be two scales


def test_panoramas_are_searched_at_their_own_size_too(drawn: Draw, networks: Any) -> None:
    """A face too large for the overlap of the enlargement's tiles is tiny in the reduced photo."""
    detector = Reducing(networks.detector, 640)
    # tiles of the enlargement reach from 0 to 320 and from 240 to 560; an eighth of 82 is too few
    photo = drawn(4600, 200, (239, 100, 82, 0))
    assert detector.detect(photo) == []
    (face,) = find_faces(photo, detector)
    assert np.round(face.box).tolist() == [239, 100, 321, 182]


@pytest.mark.parametrize("seed", range(3))
def test_tiles_lose_nothing_and_cut_nothing(drawn: Draw, networks: Any, seed: int) -> None:
    """Wherever tiles end, every face is found whole and once."""
    rng = np.random.default_rng(seed)
    squares = [
        (int(x * 90 + rng.integers(45)), int(y * 90 + rng.integers(45)), int(rng.integers(8, 44)), 0)
        for x in range(9)
        for y in range(7)
    ]
    kept = find_faces(drawn(810, 631, *squares), networks.detector)
    found = sorted((*map(round, face.box[:2]), round(face.box[2] - face.box[0])) for face in kept)
    np.testing.assert_allclose(found, sorted(square[:3] for square in squares), atol=1)


@pytest.mark.parametrize("left", [228, 300])  # tiles reach from 0 to 320 and from 240 to 560
def test_cut_faces_do_not_count_however_sure_the_detector_is(drawn: Draw, networks: Any, left: int) -> None:
    class SureOfParts(type(networks.detector)):
        def detect(self, image: NDArray[np.uint8]) -> list[Face]:
            return [
                replace(face, score=1 - face.box[2:].max() / 1e4 + (face.box[0] <= 0) + (face.area < 3000))
                for face in super().detect(image)
            ]

    assert boxes(find_faces(drawn(810, 300, (left, 80, 30, 0)), SureOfParts())) == [
        [left, 80, left + 30, 110]
    ]


def test_small_and_huge_photos_are_not_enlarged(
    drawn: Draw, networks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    class Nothing(type(networks.detector)):
        def detect(self, image: NDArray[np.uint8]) -> list[Face]:
            shapes.append(image.shape[:2])
            return []

    assert find_faces(drawn(160, 100), Nothing()) == []
    assert shapes == 2 * [
        (100, 160),
        (160, 100),
    ]  # in four turns; the detector's own input is four times as large
    monkeypatch.setattr(faces, "MAX_PIXELS", {0.5: 1e6, 1: 1e6, 2: 4 * 700 * 500, 4: 1e6})
    find_faces(drawn(700, 500), Nothing())
    assert len(shapes) == 4 + 4 * (1 + 3 * 2)  # twice, in 3 x 2 tiles; not four times


def test_no_photo_is_refused(networks: Any) -> None:
    with pytest.raises(ValueError, match="expected an RGB photo"):
        find_faces(np.zeros((8, 8), np.uint8), networks.detector)


def test_crops_of_found_and_of_aligned_faces(drawn: Draw, networks: Any) -> None:
    photo = drawn(200, 160, (60, 40, 64, 255))
    (face,) = find_faces(photo, networks.detector)
    found = AlignedFace.found(photo, face)
    np.testing.assert_allclose(found.matrix, [[64, 0, 60], [0, 64, 40]], atol=1e-9)
    assert found.side == pytest.approx(64)
    whole = AlignedFace.whole(photo[40:104, 60:124], "crop.png")
    assert whole.side == 64
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(found.crop(64)[inner], whole.crop(64)[inner], atol=1)
    assert found.crop(16).shape == whole.crop(16).shape == (16, 16, 3)
    np.testing.assert_allclose(found.own_points()[:2, 0], [0.375, 0.625])
    with pytest.raises(ValueError, match="no points"):
        whole.own_points()
    with pytest.raises(RefusedError, match=r"tall\.png: expected a square, aligned photo, got 20 x 30"):
        AlignedFace.whole(np.zeros((30, 20, 3), np.uint8), "tall.png")


def test_features_are_those_of_arcface_and_computed_once(
    make_pack: Callable[..., Any], drawn: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pack()
    networks = FaceNetworks()
    assert networks.models.kind == "insightface"
    face = AlignedFace.whole(drawn(40, 40, (5, 5, 20, 99)), "")
    features = networks.features(face)
    pixels = torch.tensor(face.image).permute(2, 0, 1)[None] / 255
    wanted = torch.nn.functional.normalize(networks.recogniser(pixels)[0], dim=0)
    torch.testing.assert_close(features, wanted)
    monkeypatch.setattr(networks, "_compute", None)
    assert networks.features(face) is features


def test_masks(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    face = np.zeros((64, 64, 3), np.uint8)
    np.testing.assert_array_equal(FaceNetworks(mask_model="template").mask(face), template_mask(64))
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"parsing_bisenet\.pth.*--mask-model hull.*template"):
        FaceNetworks(mask_model="bisenet").mask(face)
    with pytest.raises(
        FileNotFoundError, match=r"s3fd.*--landmark-model dlib or onnx.*--mask-model template"
    ):
        FaceNetworks(mask_model="hull", landmarks="face-alignment").mask(face)
    with pytest.raises(
        ValueError, match="mask_model: expected auto or bisenet or hull or template, got 'oval'"
    ):
        FaceNetworks(mask_model="oval")


def test_masks_of_networks() -> None:
    """BiSeNet's 512 pixels are brought to the face's side with nearest; the hull is that of the landmarks."""
    face = np.zeros((64, 64, 3), np.uint8)
    half = np.zeros((512, 512), np.uint8)
    half[:, 200:] = 1
    networks = FaceNetworks(mask_model="bisenet")
    networks.__dict__["_parser"] = lambda images: [half for _ in images]  # a cached property
    np.testing.assert_array_equal(networks.mask(face), np.repeat(half[:1, 4::8], 64, 0))
    half[:] = 0
    with pytest.raises(ValueError, match=r"finds no face.*template"):
        networks.mask(face)

    found = SimpleNamespace(landmarks=None)
    hull = FaceNetworks(mask_model="hull")
    hull.__dict__["_find_landmarks"] = lambda images: [found]
    with pytest.raises(ValueError, match=r"no landmarks found.*template"):
        hull.mask(face)
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    found.landmarks = np.stack([32 + 20 * np.cos(angles), 40 + 20 * np.sin(angles)], axis=1)
    mask = hull.mask(face)
    assert mask.shape == (64, 64)
    assert mask[40, 32] == 1
    assert mask[:4].max() == mask[:, :4].max() == 0
