import dataclasses

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.drawn_faces import Canvas, draw_portrait
from rpf_lightning.drawn_faces import photo as synthetic
from rpf_lightning.drawn_faces.photo import _render, contact_sheet, render_photo
from rpf_lightning.faces.labels import BISENET, facial_mask

LABEL = {name: value for value, name in enumerate(BISENET)}
SEEDS = [(identity, photo) for identity in range(15) for photo in range(3)]


def lr(image):
    return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC), dtype=float)


def pixels_near(photo, point, radius):
    """Labels of the pixels at most `radius` pixels (each axis) from a landmark."""
    x, y = np.floor(point).astype(int)
    return photo.parsing[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


@pytest.mark.parametrize("side", [32, 45, 1024])
def test_shapes_and_types(side):
    photo, again = render_photo(3, 1, side), render_photo(3, 1, side)
    assert (photo.id, photo.identity) == ("id00003_001", "id00003")
    for name, shape, dtype in (
        ("image", (side, side, 3), np.uint8), ("parsing", (side, side), np.uint8), ("landmarks", (68, 2), float),
    ):  # fmt: skip
        array = getattr(photo, name)
        assert (array.shape, array.dtype) == (shape, dtype)
        assert np.array_equal(array, getattr(again, name))


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
    seen = set()
    for identity, photo in SEEDS:
        labels = set(np.unique(render_photo(identity, photo, 128).parsing).tolist())
        assert labels <= set(range(19))
        seen |= labels
        always = ("skin", "l_eye", "r_eye", "nose", "u_lip", "l_lip", "neck", "cloth")
        missing = {LABEL[name] for name in always} - labels
        assert not missing, (identity, photo, missing)
    assert {LABEL[n] for n in ("eye_g", "l_ear", "r_ear", "ear_r", "mouth", "neck_l", "hair", "hat")} <= seen


def test_landmarks_lie_on_their_features():
    for identity, number in SEEDS:
        photo = render_photo(identity, number, 256)
        points = photo.landmarks
        assert points.min() > 0
        assert points.max() < 256
        for first, label in ((36, LABEL["l_eye"]), (42, LABEL["r_eye"])):
            for k in range(first, first + 6):  # on the border: the label is close, and so is another
                near = pixels_near(photo, points[k], 3)
                covered = np.isin(near, [LABEL["eye_g"], LABEL["hair"]]).any()
                assert covered or ((near == label).any() and (near != label).any()), (identity, number, k)
        lips = [LABEL["u_lip"], LABEL["l_lip"]]
        for k in range(48, 68):
            near = pixels_near(photo, points[k], 3)
            assert np.isin(near, lips).any(), (identity, number, k)
        for upper, lower, name in ((51, 62, "u_lip"), (66, 57, "l_lip")):
            between = pixels_near(photo, (points[upper] + points[lower]) / 2, 1)
            assert (between == LABEL[name]).any(), (identity, number, name)
        nose = [LABEL["nose"], LABEL["eye_g"]]
        assert all(np.isin(pixels_near(photo, points[k], 2), nose).any() for k in range(27, 36))


def test_landmarks_follow_the_ibug_order():
    for identity, number in SEEDS:
        points = render_photo(identity, number, 64).landmarks
        assert points[0, 0] < points[8, 0] < points[16, 0]
        assert points[:17, 1].argmax() in (7, 8, 9)
        for row in (range(17, 27), (36, 39, 42, 45), range(48, 55), range(60, 65), range(31, 36)):
            assert (np.diff(points[list(row), 0]) > 0).all()
        assert points[37, 1] < points[41, 1]
        assert points[44, 1] < points[46, 1]
        assert (np.diff(points[27:31, 1]) > 0).all()
        assert points[51, 1] < points[57, 1]
        assert points[62, 1] <= points[66, 1]


def test_faces_are_framed_like_an_aligned_crop():
    points = np.mean([render_photo(i, p, 32).landmarks / 32 for i, p in SEEDS], axis=0)
    assert points[36:42].mean(0) == pytest.approx((0.37, 0.47), abs=0.02)
    assert points[42:48].mean(0) == pytest.approx((0.63, 0.47), abs=0.02)
    assert points[48:60, 1].mean() == pytest.approx(0.73, abs=0.025)
    assert points[8, 1] == pytest.approx(0.92, abs=0.025)


@pytest.mark.parametrize("identity", range(4))
def test_marks_vanish_at_16_and_stay_at_64(identity):
    photo, plain = _render(identity, 0, 256), _render(identity, 0, 256, marks=False)
    face = facial_mask(photo.parsing, "bisenet").reshape(16, 16, 16, 16).mean((1, 3)) > 0.5
    hidden = np.abs(lr(photo.image) - lr(plain.image))[face]
    assert hidden.mean() < 1.5
    assert hidden.max() < 12
    small, small_plain = (_render(identity, 0, 64, marks).image.astype(float) for marks in (True, False))
    assert np.abs(small - small_plain).max() > 40


def test_photos_of_one_person_differ_in_pose_and_expression():
    shapes = np.array([render_photo(4, number, 64).landmarks / 64 for number in range(8)])
    nose_in_face = (shapes[:, 30, 0] - shapes[:, 0, 0]) / (shapes[:, 16, 0] - shapes[:, 0, 0])
    assert nose_in_face.std() > 0.04  # yaw is not a shift of the picture
    assert (shapes[:, 66, 1] - shapes[:, 62, 1]).std() > 0.004  # the mouth opens
    colours = [render_photo(4, number, 64).image[60, ::20].tolist() for number in range(4)]
    assert len({str(c) for c in colours}) == 4


def test_identity_is_the_same_in_every_photo_and_differs_between_people(monkeypatch):
    drawn = []

    def spy(person, shot, canvas, marks):
        drawn.append((person, shot))
        return draw_portrait(person, shot, canvas, marks)

    monkeypatch.setattr(synthetic, "draw_portrait", spy)
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


@pytest.mark.parametrize("side", [31, 1025, 0, -64])
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
