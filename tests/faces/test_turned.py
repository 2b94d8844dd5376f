"""Faces that lie: found in the turn in which they stand, and brought back into the photo."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.faces.alignment import align_face, alignment_matrix
from rpf_lightning.faces.detection import Face, FaceDetector
from rpf_lightning.faces.turned import (
    best_turn,
    find_any_way_up,
    points_back,
    quarter_turns,
    shared_area,
    turned_back,
    upright_aligned,
)
from turned_heads import UPRIGHT, Heads, Photo, photo_of

SURE = 0.8


@pytest.mark.parametrize("turns", range(4))
def test_points_come_back_into_the_photo(turns: int) -> None:
    image = np.zeros((30, 50, 3), np.uint8)
    image[7, 11] = 255
    y, x = np.argwhere(np.rot90(image, turns)[..., 0])[0] + 0.5
    np.testing.assert_allclose(points_back(np.array([[x, y]]), turns, image.shape), [[11.5, 7.5]])
    face = Face(np.array([x - 2, y - 3, x + 2, y + 3]), 0.7, np.tile([x, y], (5, 1)))
    back = turned_back(face, turns, image.shape)
    wide, high = (3, 2) if turns % 2 else (2, 3)
    np.testing.assert_allclose(back.box, [11.5 - wide, 7.5 - high, 11.5 + wide, 7.5 + high])
    assert (back.score, back.points[2].tolist()) == (0.7, [11.5, 7.5])


@pytest.mark.parametrize(
    ("degrees", "turns"), [(0, 0), (44, 0), (-44, 0), (46, 1), (90, 1), (180, 2), (-91, 3)]
)
def test_every_face_stands_in_one_quarter_turn(degrees: float, turns: int) -> None:
    """The one of `np.rot90`, which turns against the clock."""
    angle = np.radians(degrees)
    turned = UPRIGHT @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    assert quarter_turns(turned) == turns
    assert quarter_turns(np.zeros((5, 2))) == 0


@pytest.mark.parametrize("turns", range(4))
def test_a_photo_that_lies(turns: int) -> None:
    """The face's points are where they belong, although it was seen in the photo as it is as well."""
    image = np.rot90(photo_of((40, 30, 24, 0)), -turns).copy()
    (face,) = find_any_way_up(image, Heads(0.9, 0.6, 0.55, 0.7), SURE)
    (x, y), score = face.box[:2], face.score
    assert image[int(y), int(x), 0] == 255
    assert score == 0.9
    forehead = align_face(image, face.points, 32)
    upright = align_face(photo_of((40, 30, 24, 0)), np.array([52, 42]) + UPRIGHT * 3, 32)
    np.testing.assert_array_equal(forehead, upright)
    assert quarter_turns(face.points) == turns


def test_a_face_that_is_surely_upright_costs_no_search() -> None:
    find = Heads(0.9, 0.6, 0.6, 0.6)
    find_any_way_up(photo_of((40, 30, 24, 0)), find, SURE)
    assert find.seen == [(90, 140)]
    find = Heads(0.7, 0.6, 0.6, 0.6)
    (face,) = find_any_way_up(photo_of((40, 30, 24, 0)), find, SURE)
    assert find.seen == [(90, 140), (140, 90), (90, 140), (140, 90)]
    assert quarter_turns(face.points) == 0


def test_one_lies_in_a_group() -> None:
    """Those who stand stay as they are; the other is looked for alone, in her surroundings."""
    heads = [(10, 10, 20, 0), (50, 40, 16, 0), (100, 50, 24, 1)]
    find = Heads(0.9, 0.6, 0.6, 0.5)
    faces = find_any_way_up(photo_of(*heads), find, SURE)
    assert [face.box[:2].tolist() for face in faces] == [[100, 50], [10, 10], [50, 40]]
    assert [quarter_turns(face.points) for face in faces] == [1, 0, 0]
    np.testing.assert_array_equal(faces[1].points, np.array([20, 20]) + UPRIGHT * 2.5)
    assert find.seen[0] == (90, 140)
    assert all(max(shape) <= 48 for shape in find.seen[1:])


def test_what_is_found_in_a_worse_turn_is_not_taken() -> None:
    """An ear that looks like a face once the photo is turned makes no second face, and nothing is no face."""
    image = photo_of((40, 30, 24, 0), (100, 10, 20, 1))
    (face,) = find_any_way_up(image, Heads(0.7, 0.0, 0.0, 0.0), 0.99)
    assert face.box.tolist() == [40, 30, 64, 54]
    assert find_any_way_up(photo_of(), Heads(0.9, 0.9, 0.9, 0.9), SURE) == []


def test_faces_whose_points_lie_are_no_better_than_none() -> None:
    """A detector that sees a lying face and places its points right, but roughly: the right turn is taken."""

    def find(image: Photo) -> Sequence[Face]:
        (face,) = Heads(0.8, 0.81, 0.81, 0.81)(image)
        turns = 0 if face.score == 0.8 else 1
        points = face.points.mean(0) + UPRIGHT[:, ::-1] * (-3, 3) if turns else face.points
        return [Face(face.box, face.score, points)]

    image = photo_of((40, 30, 24, 3))
    (face,) = find_any_way_up(image, find, 0.9)
    assert face.score == 0.8
    assert quarter_turns(face.points) == 3


def test_the_aligned_face_is_looked_at_again() -> None:
    image = photo_of((40, 30, 48, 2))
    wrong = Face(np.array([40.0, 30, 88, 78]), 0.85, np.array([64, 54]) + UPRIGHT * 6)
    find = Heads(0.9, 0.0, 0.8, 0.0)
    right = upright_aligned(image, wrong, find)
    assert right is not None
    assert quarter_turns(right.points) == 2
    assert right is not wrong
    assert upright_aligned(image, right, find) is right
    # found nowhere: nothing that stands, unless it is too small to tell
    nothing = Heads(0.0, 0.0, 0.0, 0.0)
    assert upright_aligned(image, wrong, nothing) is None
    small = photo_of((40, 30, 10, 0))
    tiny = Face(np.array([40.0, 30, 50, 40]), 0.6, np.array([45, 35]) + UPRIGHT * 1.25)
    assert np.hypot(*alignment_matrix(tiny.points)[:, 0]) < 32
    assert upright_aligned(small, tiny, nothing) is tiny
    assert upright_aligned(image, Face(wrong.box, 0.9, np.zeros((5, 2))), find) is None


def test_places_beyond_the_photo_are_not_searched() -> None:
    outside = Face(np.array([200.0, 200, 220, 220]), 0.6, np.array([210, 210]) + UPRIGHT)
    find = Heads(0.9, 0.9, 0.9, 0.9)
    assert best_turn(photo_of((40, 30, 24, 0)), outside, find) is outside
    assert find.seen == []


def test_shared_area() -> None:
    points = np.zeros((5, 2))
    large, small = (Face(np.array(box, float), 1.0, points) for box in ((0, 0, 10, 10), (5, 0, 15, 8)))
    assert shared_area(large, small) == pytest.approx(40 / 80)
    assert shared_area(large, small, whole=True) == pytest.approx(40 / 140)


@pytest.mark.realdata
@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
def test_real_photos_in_every_turn(shared: Path) -> None:
    """The same face, to a few pixels, and hardly any upright photo is searched in its other turns."""
    subset = shared / "data" / "celeba_hq_subset"
    with (subset / "landmarks.csv").open() as file:
        names = [row[0] for row in list(csv.reader(file))[1::400] if row[1]]
    detector = FaceDetector("mbf")
    unsure = 0
    for name in names:
        image = np.asarray(Image.open(subset / "images" / name).resize((128, 128), Image.Resampling.BICUBIC))
        upright = detector.detect(image)[0]
        unsure += upright.score < detector.sure_upright
        for turns in (1, 2, 3):
            turned = np.rot90(image, turns).copy()
            face = find_any_way_up(turned, detector.detect, detector.sure_upright)[0]
            assert quarter_turns(face.points) == -turns % 4, (name, turns)
            np.testing.assert_allclose(points_back(face.points, turns, image.shape), upright.points, atol=3)
            assert upright_aligned(turned, face, detector.detect) is face
    assert unsure <= len(names) / 3
