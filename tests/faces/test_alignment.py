"""FFHQ's square: by hand, under similarity transforms, at the photo's edges, and on photos that are aligned already."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces.alignment import align_face, aligned_points, alignment_matrix, five_points

# Eyes 20 apart, mouth 20 below them: half the side is max(2.0 * 20, 1.8 * 20), the centre 2 below the eyes.
UPRIGHT = np.array([[40, 50], [60, 50], [50, 60], [42, 70], [58, 70]], float)
ELSEWHERE = np.array([[0.5, 0.1], [0.2, 0.9], [1.3, -0.4]])


def filling(side: int) -> np.ndarray:
    """Points whose square is the whole photo."""
    return (UPRIGHT - (10, 12)) * side / 80


def similarity(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])


def test_square_by_hand() -> None:
    np.testing.assert_allclose(alignment_matrix(UPRIGHT), [[80, 0, 10], [0, 80, 12]], atol=1e-12)


def test_long_face_is_placed_by_the_distance_to_the_mouth() -> None:
    long = UPRIGHT.copy()
    long[3:, 1] = 90  # 1.8 * 40 = 72 is more than 2.0 * 20
    np.testing.assert_allclose(alignment_matrix(long), [[144, 0, 50 - 72], [0, 144, 54 - 72]], atol=1e-12)


def test_square_turns_with_the_face() -> None:
    move = similarity(0.7, 1.9, (30, -12))
    turned = UPRIGHT @ move[:2, :2].T + move[:2, 2]
    expected = move[:2, :2] @ alignment_matrix(UPRIGHT) + [[0, 0, 30], [0, 0, -12]]
    np.testing.assert_allclose(alignment_matrix(turned), expected, atol=1e-9)


def test_five_of_68_points() -> None:
    landmarks = np.stack([np.arange(68), 100.0 - np.arange(68)], 1)
    expected = [[38.5, 61.5], [44.5, 55.5], [30, 70], [48, 52], [54, 46]]
    np.testing.assert_allclose(five_points(landmarks), expected)
    np.testing.assert_allclose(alignment_matrix(landmarks), alignment_matrix(np.array(expected)))


def test_matrix_and_points_are_inverse() -> None:
    landmarks = render_photo(3, 0, 128).landmarks
    photo = ELSEWHERE @ alignment_matrix(landmarks)[:, :2].T + alignment_matrix(landmarks)[:, 2]
    np.testing.assert_allclose(aligned_points(photo, landmarks), ELSEWHERE, atol=1e-12)
    np.testing.assert_allclose(aligned_points(photo, landmarks, 256), ELSEWHERE * 256, atol=1e-9)


@pytest.mark.parametrize("side", [32, 80])
def test_square_that_is_the_photo_gives_the_photo(side: int) -> None:
    """Half a pixel of difference in the convention would blur it."""
    photo = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert np.array_equal(align_face(photo, filling(side), side), photo)


@pytest.mark.parametrize("points", [5, 68])
def test_turned_scaled_and_shifted_face_comes_back(points: int) -> None:
    face = render_photo(1, 2, 256)
    placed_by = face.landmarks if points == 68 else five_points(face.landmarks)
    move = similarity(np.deg2rad(25), 1.4, (180, 20))
    inverse = np.linalg.inv(move)[:2].ravel().tolist()
    moved = placed_by @ move[:2, :2].T + move[:2, 2]

    def turned(image: np.ndarray) -> np.ndarray:
        photo = Image.fromarray(image).transform(
            (520, 520), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC
        )
        return align_face(np.asarray(photo), moved, 96)

    expected = align_face(face.image, placed_by, 96).astype(float)
    difference = np.abs(turned(face.image) - expected)
    known = turned(np.full_like(face.image, 255)).min(2) == 255  # not beyond the photo's edge
    assert known.mean() > 0.6
    assert difference[known].mean() < 1.5
    assert expected[known].std() > 20


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((480, 480, 3), np.uint8)
    stripes[:, ::3] = 255
    result = align_face(stripes, filling(480), 30).astype(int)
    assert np.abs(result[:, 1:-1] - 85).max() < 4  # a pixel's centre alone would be black or white


def test_outside_of_the_photo_is_reflected() -> None:
    photo = render_photo(5, 0, 64).image
    points = filling(64) * 1.5 - 40  # the square reaches from -40 to 56
    padded = np.pad(photo, ((50, 50), (50, 50), (0, 0)), mode="symmetric")
    assert np.array_equal(align_face(photo, points, 48), align_face(padded, points + 50, 48))


def test_far_outside_of_a_tiny_photo() -> None:
    photo = np.full((3, 2, 3), 90, np.uint8)
    assert np.array_equal(align_face(photo, filling(64) + 100, 16), np.full((16, 16, 3), 90))


def test_bad_input_is_refused() -> None:
    photo = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="68 or 5 finite points"):
        align_face(photo, np.zeros((6, 2)), 8)
    with pytest.raises(ValueError, match="finite"):
        align_face(photo, np.full((5, 2), np.nan), 8)
    with pytest.raises(ValueError, match="coincide"):
        align_face(photo, np.ones((5, 2)), 8)
    with pytest.raises(ValueError, match="uint8"):
        align_face(photo / 255, UPRIGHT, 8)
    with pytest.raises(ValueError, match="RGB photo"):
        align_face(photo[..., 0], UPRIGHT, 8)


@pytest.mark.realdata
def test_aligned_photos_stay_where_they_are(shared: Path) -> None:
    """CelebA-HQ was aligned by five points marked by people, so networks' landmarks differ a little."""
    table = shared / "data" / "celeba_hq_subset" / "landmarks.csv"
    with table.open() as file:
        rows = [row[1:] for row in list(csv.reader(file))[1::20] if row[1]]
    landmarks = np.array(rows, float).reshape(-1, 68, 2)
    offset = np.array([aligned_points(points, points) - points / 512 for points in landmarks])
    assert np.abs(offset.mean((0, 1))).max() < 0.008
    assert np.hypot(*offset.T).mean() < 0.014
