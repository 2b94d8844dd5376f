"""Pasting: the face sits exactly, fades out smoothly, and the rest stays what it was."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.enhancing.paste import corrected, enlarge, enlargement, paste, paste_weights
from rpf_lightning.faces.alignment import align_face, alignment_matrix
from rpf_lightning.faces.parsing import template_mask


def textured(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth noise of about ten pixels, so that half a pixel of displacement is seen."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def turned(degrees: float, side: float, x: float, y: float) -> NDArray[np.float64]:
    """Five points of a face turned in the picture plane."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    upright = np.array([[-0.125, 0], [0.125, 0], [0, 0.12], [-0.08, 0.25], [0.08, 0.25]]) * side
    return upright @ np.array([[c, s], [-s, c]]) + (x, y)


@pytest.mark.parametrize("degrees", [0, 17, -60])
def test_the_true_face_restores_the_photo(degrees: float) -> None:
    photo = textured(300, 260)
    points = turned(degrees, 90, 151.3, 118.8)
    matrix = alignment_matrix(points)
    face = align_face(photo, points, 256)  # denser than the photo
    # in a photo that has lost its detail, the pasted face brings it back
    grey = np.full_like(photo, 128)
    pasted = paste(grey, face, matrix)
    weights = paste(np.zeros_like(photo), np.full_like(face, 255), matrix)[..., 0]
    inside, outside = weights == 255, weights == 0
    assert inside.sum() > 1000
    assert np.abs(pasted[inside].astype(float) - photo[inside]).mean() < 1.5
    np.testing.assert_array_equal(pasted[outside], grey[outside])
    for shift in ((0, 1), (1, 0)):
        moved = np.roll(photo, shift, (0, 1))
        assert np.abs(pasted[inside].astype(float) - moved[inside]).mean() > 4


def test_an_equal_face_changes_nothing_visible() -> None:
    photo = textured(200, 200)
    points = turned(10, 80, 100, 90)
    pasted = paste(photo, align_face(photo, points, 256), alignment_matrix(points))
    assert np.abs(pasted.astype(int) - photo).max() <= 6


def test_weights() -> None:
    weights = paste_weights(256)
    assert weights.min() == 0
    assert weights.max() == 1
    assert weights[template_mask(256) == 1][:-1].min() > 0.9
    assert max(weights[0].max(), weights[-1].max(), weights[:, 0].max(), weights[:, -1].max()) == 0
    steps = max(np.abs(np.diff(weights, axis=axis)).max() for axis in (0, 1))
    assert steps < 0.15  # no seam


def test_squares_that_leave_the_photo() -> None:
    photo = textured(100, 80)
    face = np.full((64, 64, 3), 255, np.uint8)
    cut = paste(photo, face, np.array([[60, 0, 70], [0, 60, 50]], np.float64))
    assert (cut[60:, 90:] == 255).any()
    np.testing.assert_array_equal(cut[:50], photo[:50])
    np.testing.assert_array_equal(paste(photo, face, np.array([[60, 0, 200], [0, 60, 0]], np.float64)), photo)


def test_a_denser_face_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    pasted = paste(np.zeros((80, 80, 3), np.uint8), stripes, np.array([[64, 0, 8], [0, 64, 8]], np.float64))
    assert np.abs(pasted[36:44, 36:44].astype(int) - 127).max() <= 3


def test_enlarging_keeps_colours_and_places() -> None:
    photo = textured(60, 40)
    large = enlarge(photo, 3)
    assert large.shape == (120, 180, 3)
    back = np.asarray(Image.fromarray(large).resize((60, 40), Image.Resampling.BOX))
    assert np.abs(back.astype(int) - photo).mean() < 3


def test_factors() -> None:
    photo = np.zeros((600, 800, 3), np.uint8)
    assert enlargement(photo, 20.0, 128) == (7, False)
    assert enlargement(photo, 127.9, 128) == (2, False)
    assert enlargement(photo, 4.0, 128) == (14, True)  # 14.4^2 * 800 * 600 = 100 million
    assert enlargement(np.zeros((9000, 12000, 1), np.uint8), 20.0, 128) == (1, True)


def smooth_noise(width: int, height: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(40, 216, (height // 4, width // 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("at", [(11.0, 7.5), (-9.0, -4.0), (70.0, 50.0)])
def test_corrected_agrees_with_the_photo_and_keeps_finer_details(at: tuple[float, float]) -> None:
    photo = smooth_noise(80, 60)
    matrix = 4 * np.array([[24.0, 3.0, at[0]], [-3.0, 24.0, at[1]]])
    before = enlarge(photo, 4)
    stripes = np.full((128, 128, 3), 80, np.uint8)
    stripes[:, ::2] = 176
    pasted = paste(before, stripes, matrix)
    image = corrected(pasted, photo, matrix)
    white, black = (paste(before, np.full_like(stripes, value), matrix) for value in (255, 0))
    untouched = (white == black).all(2)
    np.testing.assert_array_equal(image[untouched], before[untouched])
    size = photo.shape[1], photo.shape[0]
    reduced, wrong = (
        np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)).astype(int)
        for picture in (image, pasted)
    )
    # where the face fades out, so does the correction
    assert np.abs(reduced - photo).mean() < 0.5 * np.abs(wrong - photo).mean()
    inside = (np.abs(pasted.astype(int) - before).max(2) > 30)[:, 1:]
    assert inside.any()
    # the stripes are finer than the photo's pixels
    kept, given = (
        np.abs(np.diff(picture.astype(int), axis=1)).max(2)[inside].mean() for picture in (image, pasted)
    )
    assert kept > 0.8 * given


def test_corrected_without_a_place_is_for_the_whole() -> None:
    photo = smooth_noise(24, 24)
    image = corrected(np.full((64, 64, 3), 128, np.uint8), photo)
    reduced = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(reduced - photo).mean() < 1


def test_corrected_changes_nothing_where_the_face_is_not() -> None:
    photo = np.random.default_rng(2).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    image = np.zeros((40, 40, 3), np.uint8)
    np.testing.assert_array_equal(corrected(image, photo, np.array([[8.0, 0, 90], [0, 8.0, 90]])), image)
