"""The supersampled canvas that colours and labels are drawn on."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from rpf_lightning.drawn_faces.geometry import Array

# BiSeNet's labels; 0 is the background.
SKIN, L_BROW, R_BROW, L_EYE, R_EYE, GLASSES, L_EAR, R_EAR, EARRING, NOSE = range(1, 11)
MOUTH, U_LIP, L_LIP, NECK, NECKLACE, CLOTH, HAIR, HAT = range(11, 19)

MIN_CANVAS = 512  # canvas side of small pictures: polygons have corners on whole pixels, so it must be fine
NORMAL = np.array([-1.0, 1.0])  # turns a swapped tangent (dy, dx) into a normal


@lru_cache(maxsize=256)
def _taper(count: int) -> Array:
    """(count,) 0 at both ends, 1 in the middle."""
    return np.sqrt(np.sin(np.linspace(0, np.pi, count)).clip(0))


class Canvas:
    """Colours and labels drawn with the same polygons at ``factor`` times the side.

    Attributes:
        factor: Supersampling factor, at least 2.
        colours: RGB image of factor * side pixels, black where nothing is drawn.
        labels: BiSeNet label image of the same size.
    """

    def __init__(self, side: int) -> None:
        self.factor = max(2, -(-MIN_CANVAS // side))
        self.size = self.factor * side
        self.colours = Image.new("RGB", (self.size, self.size))
        self.labels = Image.new("L", (self.size, self.size))
        self._draw_colours = ImageDraw.Draw(self.colours)
        self._draw_labels = ImageDraw.Draw(self.labels)

    def fill(self, points: Array, colour: Array, label: int | None = None) -> None:
        """Fills an (n, 2) polygon in sides; the labels stay as they are without ``label``."""
        vertices = np.rint(points * self.size - 0.5).ravel().tolist()
        red, green, blue = (min(max(round(level), 0), 255) for level in colour.tolist())
        self._draw_colours.polygon(vertices, fill=(red, green, blue))
        if label is not None:
            self._draw_labels.polygon(vertices, fill=label)

    def band(self, first: Array, second: Array, colour: Array, label: int | None = None) -> None:
        """Fills between two lines, (n, 2) and (m, 2), that run the same way."""
        self.fill(np.concatenate([first, second[::-1]]), colour, label)

    def stroke(
        self, points: Array, width: float, colour: Array, label: int | None = None, ends: float = 0.1
    ) -> None:
        """A line along (n, 2) points, widest in the middle; ``ends`` is the share of width at its ends."""
        tangent = np.empty_like(points)
        tangent[1:-1] = points[2:] - points[:-2]
        tangent[0], tangent[-1] = points[1] - points[0], points[-1] - points[-2]
        profile = ends + (1 - ends) * _taper(len(points))
        profile *= 0.5 * width / (np.hypot(tangent[:, 0], tangent[:, 1]) + 1e-9)
        offset = tangent[:, ::-1] * NORMAL * profile[:, None]
        self.band(points + offset, points - offset, colour, label)
