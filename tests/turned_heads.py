"""Drawn heads that lie, and a detector that sees them as real ones are seen: best if they stand."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rpf_lightning.faces.detection import Face

Photo = NDArray[np.uint8]
UPRIGHT = np.array([[-2, -1], [2, -1], [0.5, 0], [-1, 1.5], [1, 1.5]])  # of a head of side 8, from its middle


def photo_of(*heads: tuple[int, int, int, int], height: int = 90, width: int = 140) -> Photo:
    """Heads (x, y, side, quarter turns): red squares; the quarter where the forehead is has green as well."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, side, turns in heads:
        head = np.zeros((side, side, 3), np.uint8)
        head[..., 0] = 255
        head[: side // 4, :, 1] = 255
        image[y : y + side, x : x + side] = np.rot90(head, -turns)
    return image


class Heads:
    """Sees the heads, best the upright ones, and places the points of all as if they were upright.

    `scores` are those of heads that have to be turned by 0, 1, 2 and 3 quarters to stand; 0: not seen.
    """

    def __init__(self, *scores: float) -> None:
        self.scores = scores
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, image: Photo) -> list[Face]:
        self.seen.append(image.shape[:2])
        found = []
        for rows, columns in ndimage.find_objects(ndimage.label(image[..., 0] > 100)[0]):
            size = np.array([columns.stop - columns.start, rows.stop - rows.start])
            low = np.array([columns.start, rows.start])
            green = np.argwhere(image[rows, columns, 1] > 100).mean(0) / size[::-1] - 0.5
            turns = (0, 2)[int(green[0] > 0)] if abs(green[0]) > abs(green[1]) else (1, 3)[int(green[1] < 0)]
            if score := self.scores[turns]:
                points = low + size / 2 + UPRIGHT * size / 8
                found.append(Face(np.concatenate([low, low + size]).astype(float), score, points))
        return sorted(found, key=lambda face: -face.area)
