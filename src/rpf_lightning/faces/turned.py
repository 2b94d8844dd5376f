"""Faces that lie or stand on their heads: photos that lost their EXIF, and people who lie.

Detectors are made for upright faces. They miss turned ones, or place their points as if those were upright; in the
right turn they are surer. Every face stands in one of the quarter turns of its photo, to 45 degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.faces.alignment import align_face, alignment_matrix
from rpf_lightning.faces.detection import Face

SAME_FACE = 0.5  # two boxes that share this much of the smaller one are one face, or a face and a part of it
CHECK_SIDE = 256  # of the aligned square in which a face is looked for again
# pixels of the square: of 60 upright faces at 24 one is not found again, at 16 five, at 48 and more none
SMALLEST_CHECKED = 32
MISPLACED = 0.25  # of the side; points of one face found twice differ by less

Find = Callable[[NDArray[np.uint8]], Sequence[Face]]


def find_any_way_up(image: NDArray[np.uint8], find: Find, sure: float) -> list[Face]:
    """Find the faces of a photo, and in its other quarter turns too where none is surely upright.

    The turn of the best score wins, for the whole photo. Beside faces that are surely upright the others are looked
    for again alone, see `best_turn`: of a group, one may lie.

    Args:
        image: (H, W, 3) uint8, RGB.
        find: Finds the faces of a photo.
        sure: Score of a face that is surely upright, `FaceDetector.sure_upright`.

    Returns:
        The faces, largest box first, in pixels of the photo as it is; "left" in their points is the image's left once
        the face stands upright.
    """
    found = list(find(image))
    if any(_score(face) >= sure for face in found):
        found = [face if _score(face) >= sure else best_turn(image, face, find) for face in found]
        return sorted(found, key=lambda face: -face.area)
    best = max(map(_score, found), default=0.0)
    for turns in (1, 2, 3):
        others = _in_turn(image, find, turns)
        score = max((face.score for face in others), default=0.0)
        if score > best:
            found, best = others, score
    return found


def best_turn(image: NDArray[np.uint8], face: Face, find: Find) -> Face:
    """Look for a face again in the quarter turns of its surroundings.

    Returns:
        The find with the best score; the face itself where that is the upright one.
    """
    height, width = image.shape[:2]
    reach = (face.box[2:] - face.box[:2]).max()
    middle = (face.box[:2] + face.box[2:]) / 2
    left, top = np.floor(middle - reach).astype(int).clip(0, (width, height))
    right, bottom = np.ceil(middle + reach).astype(int).clip(0, (width, height))
    if right <= left or bottom <= top:
        return face
    corner = np.array([left, top])
    best, score = face, _score(face)
    for turns in range(4):
        for seen in _in_turn(image[top:bottom, left:right], find, turns):
            other = replace(seen, box=seen.box + np.tile(corner, 2), points=seen.points + corner)
            if other.score > score and other.area > 0 and shared_area(other, face) >= SAME_FACE:
                best, score = other if turns else face, other.score
    return best


def upright_aligned(image: NDArray[np.uint8], face: Face, find: Find) -> Face | None:
    """Check that a face stands upright in the square that its points place, as it is or in its `best_turn`.

    It does where it is found there again, and with a better score than in the turns of the square. Of squares below
    32 pixels, not being found says nothing.

    Args:
        image: (H, W, 3) uint8, RGB.
        face: One of its faces.
        find: Finds the faces of a photo.

    Returns:
        The face, rightly turned; None if neither stands.
    """
    if _is_upright(image, face, find):
        return face
    turned = best_turn(image, face, find)
    return turned if turned is not face and _is_upright(image, turned, find) else None


def _is_upright(image: NDArray[np.uint8], face: Face, find: Find) -> bool:
    try:
        square = align_face(image, face.points, CHECK_SIDE)
    except ValueError:  # all points in one place
        return False
    scores = [0.0] * 4
    for turns in range(4):
        for again in find(np.rot90(square, turns).copy()):
            if is_placed(again.points, CHECK_SIDE):
                scores[turns] = max(scores[turns], again.score)
    small = np.hypot(*alignment_matrix(face.points)[:, 0]) < SMALLEST_CHECKED
    return scores[0] == max(scores) and (scores[0] > 0 or bool(small))


def is_placed(points: NDArray[np.floating], side: float) -> bool:
    """Whether (5, 2) or (68, 2) points found in an aligned square of this side would align it as it is, roughly."""
    try:
        matrix = alignment_matrix(points) / side
    except ValueError:  # no face has its eyes and mouth in one point
        return False
    return bool(np.abs(matrix - np.eye(2, 3)).max() < MISPLACED)


def quarter_turns(points: NDArray[np.floating]) -> int:
    """How many quarters to turn a photo, as `np.rot90` does, so that the face of these points stands in it.

    Args:
        points: (68, 2) or (5, 2), see `alignment_matrix`.

    Returns:
        0 to 3; 0 of points that place no square.
    """
    try:
        x, y = alignment_matrix(points)[:, 0]
    except ValueError:  # eyes and mouth are in one point
        return 0
    return round(float(np.arctan2(y, x)) / (np.pi / 2)) % 4


def points_back(points: NDArray[np.float64], turns: int, shape: Sequence[int]) -> NDArray[np.float64]:
    """Map points (N, 2) of `np.rot90(image, turns)` to pixels of the image, which has (height, width, ...) `shape`."""
    for turn in range(turns, 0, -1):
        width = shape[1] if turn % 2 else shape[0]  # of what this turn was made from
        points = np.stack([width - points[:, 1], points[:, 0]], axis=1)
    return points


def turned_back(face: Face, turns: int, shape: Sequence[int]) -> Face:
    """The same for a face; its points keep their names."""
    corners = points_back(face.box.reshape(2, 2), turns, shape)
    return Face(
        np.concatenate([corners.min(0), corners.max(0)]), face.score, points_back(face.points, turns, shape)
    )


def shared_area(a: Face, b: Face, whole: bool = False) -> float:
    """Area that two boxes share, as a fraction of the smaller one, or of what they cover together."""
    low, high = np.maximum(a.box[:2], b.box[:2]), np.minimum(a.box[2:], b.box[2:])
    shared = float(np.prod((high - low).clip(0)))
    return shared / (a.area + b.area - shared) if whole else shared / min(a.area, b.area)


def _score(face: Face) -> float:
    """The score of a face that stands; 0 of one that lies: another quarter turn shows it better."""
    return 0.0 if quarter_turns(face.points) else face.score


def _in_turn(image: NDArray[np.uint8], find: Find, turns: int) -> list[Face]:
    """Faces that stand in the photo turned by `turns` quarters, in pixels of the photo as it is."""
    found = find(np.rot90(image, turns).copy())
    return [turned_back(face, turns, image.shape) for face in found if _score(face) > 0]
