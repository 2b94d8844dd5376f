"""Alignment of faces as in FFHQ and CelebA-HQ: an upright square placed by the eyes and the mouth.

Coordinates are continuous: a photo spans 0..W and 0..H, pixel ``i`` has its centre at ``i + 0.5``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)  # of the 68 points; "left" is the image's left
NOSE_TIP, MOUTH_LEFT, MOUTH_RIGHT = 30, 48, 54
MARGIN = 3  # pixels that bicubic interpolation may look at beyond the square


def check_photo(image: NDArray[Any]) -> None:
    """Refuse what is not a photo.

    Raises:
        ValueError: If the image is not (H, W, 3) uint8 with at least one pixel.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected an RGB photo (H, W, 3) of uint8, got {image.shape} of {image.dtype}")


def five_points(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Reduce 68 landmarks to five points: left eye, right eye, nose tip, left and right corner of the mouth.

    Args:
        points: (68, 2) in iBUG order, or (5, 2), which is returned as it is.

    Returns:
        (5, 2) float64; "left" is the image's left.

    Raises:
        ValueError: If the shape is another one or a coordinate is not finite.
    """
    known: NDArray[np.float64] = np.asarray(points, np.float64)
    if known.shape not in ((68, 2), (5, 2)) or not np.isfinite(known).all():
        raise ValueError(f"expected 68 or 5 finite points, got {known.shape}")
    if len(known) == 5:
        return known
    eyes = [known[eye].mean(0) for eye in (LEFT_EYE, RIGHT_EYE)]
    return np.stack([*eyes, known[NOSE_TIP], known[MOUTH_LEFT], known[MOUTH_RIGHT]])


def alignment_matrix(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Place the square of FFHQ's recipe (Karras et al., "A Style-Based Generator Architecture for GANs").

    Its horizontal direction is that of (eye to eye) plus (eyes to mouth turned by 90 degrees); half its side is
    the larger of 2.0 times the eyes' distance and 1.8 times the distance from eyes to mouth; its centre lies a
    tenth of the way from the eyes to the mouth.

    Args:
        points: (68, 2) or (5, 2) in pixels of the photo, see `five_points`.

    Returns:
        (2, 3) float64 M: the point ``(u, v)`` of the aligned picture, as fractions of its side, lies at
        ``M @ (u, v, 1)`` in the photo. Its columns are the square's upper edge, its left edge and its upper left
        corner. Invert it to paste a result back.

    Raises:
        ValueError: If the points are not five or 68 finite ones, or leave the square without a size.
    """
    left_eye, right_eye, _, mouth_left, mouth_right = five_points(points)
    eyes = (left_eye + right_eye) / 2
    across = right_eye - left_eye
    down = (mouth_left + mouth_right) / 2 - eyes
    x = across - _quarter_turn(down)
    length = np.hypot(*x)
    if length == 0:
        raise ValueError("eyes and mouth coincide: they place no square")
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / length
    y = _quarter_turn(x)
    centre = eyes + down * 0.1
    return np.stack([2 * x, 2 * y, centre - x - y], axis=1)


def aligned_points(
    points: NDArray[np.floating], placed_by: NDArray[np.floating], side: float = 1.0
) -> NDArray[np.float64]:
    """Map points of the photo into the aligned picture.

    Args:
        points: (N, 2) in pixels of the photo.
        placed_by: The (68, 2) or (5, 2) points that `align_face` got.
        side: Side of the aligned picture in pixels; 1 gives fractions.

    Returns:
        (N, 2) float64.

    Raises:
        ValueError: As in `alignment_matrix`.
    """
    matrix = alignment_matrix(placed_by)
    return (np.asarray(points, np.float64) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T * side


def align_face(image: NDArray[np.uint8], points: NDArray[np.floating], side: int) -> NDArray[np.uint8]:
    """Cut an aligned face out of a photo, with antialiasing.

    The square is sampled with bicubic interpolation at least as densely as the photo, then reduced. What lies
    outside of the photo is filled by reflection, as in FFHQ, but without its blur.

    Args:
        image: (H, W, 3) uint8.
        points: (68, 2) or (5, 2) in pixels of the photo, see `five_points`.
        side: Side of the result in pixels.

    Returns:
        (side, side, 3) uint8.

    Raises:
        ValueError: If the image is no photo, or as in `alignment_matrix`.
    """
    check_photo(image)
    matrix = alignment_matrix(points)
    corners = matrix @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    start = np.floor(corners.min(1)).astype(int) - MARGIN
    stop = np.ceil(corners.max(1)).astype(int) + MARGIN
    cut = Image.fromarray(_cut(image, start, stop))
    factor = max(1, int(np.ceil(np.hypot(*matrix[:, 0]) / side)))
    matrix = (matrix - [[0, 0, start[0]], [0, 0, start[1]]]) / [side * factor, side * factor, 1]
    square = cut.transform(
        (side * factor,) * 2, Image.Transform.AFFINE, matrix.ravel().tolist(), Image.Resampling.BICUBIC
    )
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def _quarter_turn(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array((-vector[1], vector[0]))


def _cut(image: NDArray[np.uint8], start: NDArray[np.int_], stop: NDArray[np.int_]) -> NDArray[np.uint8]:
    """Cut out columns and rows start..stop; indices outside are reflected, however far."""
    rows, columns = (_reflect(np.arange(start[axis], stop[axis]), image.shape[1 - axis]) for axis in (1, 0))
    return image[rows[:, None], columns]


def _reflect(index: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    index = index % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)
