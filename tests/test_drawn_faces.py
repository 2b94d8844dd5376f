"""Drawn faces: the same seeds give the same face, whose labels and landmarks are exact."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.drawn_faces import photo as drawing
from rpf_lightning.drawn_faces.canvas import Canvas
from rpf_lightning.drawn_faces.photo import contact_sheet, draw_portrait, render_photo
from rpf_lightning.faces.labels import BISENET, facial_mask

LABEL = {name: value for value, name in enumerate(BISENET)}


@cache
def photos():
    """(name, photo) of 15 people, three photos each, at side 256."""
    return [((i, p), render_photo(i, p, 256)) for i in range(15) for p in range(3)]


def lr(image):
    return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC), dtype=float)


def pixels_near(photo, point, radius):
    """Labels of the pixels at most `radius` pixels (each axis) from a landmark."""
    x, y = np.floor(point).astype(int)
    return photo.parsing[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


@pytest.mark.parametrize("side", [32, 45, 1024])
def test_same_seeds_give_the_same_photo(side):
    first, second = render_photo(3, 1, side), render_photo(3, 1, side)
    assert (first.id, first.identity) == ("id00003_001", "id00003")
    for name, shape, kind in (
        ("image", (side, side, 3), np.uint8),
        ("parsing", (side, side), np.uint8),
        ("landmarks", (68, 2), np.float64),
    ):
        array = getattr(first, name)
        assert (array.shape, array.dtype) == (shape, kind)
        np.testing.assert_array_equal(array, getattr(second, name))


@pytest.mark.parametrize(("identity", "photo"), [(2, 1), (8, 2)])
def test_the_picture_does_not_depend_on_the_side(identity, photo):
    small, large = render_photo(identity, photo, 64), render_photo(identity, photo, 256)
    reduced = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    error = np.abs(reduced - small.image)
    assert error.mean() < 1.5
    assert np.percentile(error, 99) < 16
    assert np.allclose(large.landmarks, 4 * small.landmarks)
    assert (large.parsing[2::4, 2::4] == small.parsing).mean() > 0.97


def test_drawing_is_antialiased():
    photo = render_photo(1, 0, 256)
    mouth = np.isin(photo.parsing, [LABEL["u_lip"], LABEL["l_lip"]])
    # between lips and skin lie colours of neither; a drawing without antialiasing has few distinct colours
    box = photo.image[mouth.any(1)][:, mouth.any(0)].reshape(-1, 3)
    assert len(np.unique(box, axis=0)) > 0.3 * len(box)


def test_nothing_of_the_person_is_drawn_on_the_background():
    """The background is smooth; a stray hair over it would be a step."""
    photo = render_photo(25, 1, 256)
    inner = photo.parsing == 0
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            inner &= np.roll(photo.parsing, shift, axis) == 0
    smoothness = np.abs(np.diff(photo.image.astype(int), axis=1)).max(-1)
    assert smoothness[inner[:, 1:] & inner[:, :-1]].max() < 12


def test_labels_are_complete_for_every_face():
    always = {LABEL[n] for n in ("skin", "l_eye", "r_eye", "nose", "u_lip", "l_lip", "neck", "cloth")}
    seen = set()
    for name, photo in photos():
        labels = set(np.unique(photo.parsing).tolist())
        assert always <= labels <= set(range(19)), name
        seen |= labels
    assert {LABEL[n] for n in ("eye_g", "l_ear", "r_ear", "ear_r", "mouth", "neck_l", "hair", "hat")} <= seen


def test_landmarks_lie_on_their_features():
    lips, nose = [LABEL["u_lip"], LABEL["l_lip"]], [LABEL["nose"], LABEL["eye_g"]]
    for name, photo in photos():
        points = photo.landmarks
        assert points.min() > 0
        assert points.max() < 256
        for first, label in ((36, LABEL["l_eye"]), (42, LABEL["r_eye"])):
            for k in range(first, first + 6):  # on the border: the label is close, and so is another
                near = pixels_near(photo, points[k], 3)
                covered = np.isin(near, [LABEL["eye_g"], LABEL["hair"]]).any()
                assert covered or ((near == label).any() and (near != label).any()), (name, k)
        for k in range(48, 68):
            assert np.isin(pixels_near(photo, points[k], 3), lips).any(), (name, k)
        for upper, lower, lip in ((51, 62, "u_lip"), (66, 57, "l_lip")):
            between = pixels_near(photo, (points[upper] + points[lower]) / 2, 1)
            assert (between == LABEL[lip]).any(), (name, lip)
        assert all(np.isin(pixels_near(photo, points[k], 2), nose).any() for k in range(27, 36))


def test_landmarks_follow_the_ibug_order():
    for _, photo in photos():
        points = photo.landmarks
        assert points[0, 0] < points[8, 0] < points[16, 0]
        assert points[:17, 1].argmax() in (7, 8, 9)
        for row in (range(17, 27), (36, 39, 42, 45), range(48, 55), range(60, 65), range(31, 36)):
            assert (np.diff(points[list(row), 0]) > 0).all()
        for upper, lower in ((37, 41), (44, 46), (51, 57)):
            assert points[upper, 1] < points[lower, 1]
        assert (np.diff(points[27:31, 1]) > 0).all()
        assert points[62, 1] <= points[66, 1]


def test_faces_are_framed_like_an_aligned_crop():
    points = np.mean([photo.landmarks / 256 for _, photo in photos()], axis=0)
    assert points[36:42].mean(0) == pytest.approx((0.37, 0.47), abs=0.02)
    assert points[42:48].mean(0) == pytest.approx((0.63, 0.47), abs=0.02)
    assert points[48:60, 1].mean() == pytest.approx(0.73, abs=0.025)
    assert points[8, 1] == pytest.approx(0.92, abs=0.025)


@pytest.mark.parametrize("identity", range(4))
def test_marks_vanish_at_16_and_stay_at_64(identity):
    photo, plain = render_photo(identity, 0, 256), render_photo(identity, 0, 256, marks=False)
    face = facial_mask(photo.parsing, "bisenet").reshape(16, 16, 16, 16).mean((1, 3)) > 0.5
    hidden = np.abs(lr(photo.image) - lr(plain.image))[face]
    assert hidden.mean() < 1.5
    assert hidden.max() < 12
    small, bare = (render_photo(identity, 0, 64, marks).image.astype(float) for marks in (True, False))
    assert np.abs(small - bare).max() > 40


def test_marks_stay_on_the_face_of_their_person():
    """Marks keep their places relative to the landmarks."""
    grids = []
    for number in range(3):
        photo, plain = (render_photo(12, number, 256, marks) for marks in (True, False))
        points = photo.landmarks
        y, x = np.nonzero((plain.image.astype(float) - photo.image).sum(-1) > 90)
        frame = np.column_stack([points[45] - points[36], points[8] - points[27]])
        places = np.linalg.solve(frame, np.column_stack([x, y]).T + 0.5 - points[27][:, None])
        grids.append(np.histogram2d(*places, bins=6, range=[(-1, 1), (-0.6, 1.2)])[0].ravel())
    assert all(grid.sum() > 20 for grid in grids)
    assert np.corrcoef(grids).min() > 0.5


def test_photos_of_one_person_differ_in_pose_and_expression():
    taken = [render_photo(4, number, 64) for number in range(8)]
    shapes = np.array([photo.landmarks / 64 for photo in taken])
    nose_in_face = (shapes[:, 30, 0] - shapes[:, 0, 0]) / (shapes[:, 16, 0] - shapes[:, 0, 0])
    assert nose_in_face.std() > 0.04  # yaw is not a shift of the picture
    assert (shapes[:, 66, 1] - shapes[:, 62, 1]).std() > 0.004  # the mouth opens
    assert len({photo.image[60, ::20].tobytes() for photo in taken[:4]}) == 4


def test_identity_is_the_same_in_every_photo_and_differs_between_people(monkeypatch):
    drawn = []

    def spy(person, shot, *more):
        drawn.append((person, shot))
        return draw_portrait(person, shot, *more)

    monkeypatch.setattr(drawing, "draw_portrait", spy)
    for seeds in ((1, 0), (1, 1), (2, 0)):
        render_photo(*seeds, 32)
    (first, shot), (again, another_shot), (other, _) = drawn
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name)), field.name
    assert shot.yaw != another_shot.yaw
    shapes = [draw_portrait(person, shot, Canvas(64))[0] for person in (first, other)]
    assert np.abs(shapes[0] - shapes[1]).max() > 0.01  # other people differ in shape under the same pose
    assert np.abs(first.skin - other.skin).max() > 5
    assert first.moles.shape != other.moles.shape or np.abs(first.moles - other.moles).max() > 0.02


@pytest.mark.parametrize("side", [31, 1025])
def test_wrong_side_is_refused(side):
    with pytest.raises(ValueError, match=r"side must be in 32\.\.1024"):
        render_photo(0, 0, side)


def test_contact_sheet_shows_the_lr_and_the_photos(tmp_path):
    path = tmp_path / "sheet.png"
    contact_sheet(path, identities=2, photos=3, side=64)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (128, 256, 3)
    blocks = sheet[:64, :64].reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert np.array_equal(sheet[64:, 192:], render_photo(1, 2, 64).image)
