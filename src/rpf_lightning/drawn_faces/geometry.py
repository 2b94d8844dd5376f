"""Points and curves: (n, 2) or (n, 3) arrays of float64."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SAMPLES = 8  # points per Catmull-Rom segment


def xy(x: Array, y: Array | float) -> Array:
    """(n,) and (n,) coordinates -> (n, 2) points."""
    points = np.empty((len(x), 2))
    points[:, 0] = x
    points[:, 1] = y
    return points


def mirror(points: ArrayLike, sign: float) -> Array:
    """(n, 2) points of the right side, put to the side of ``sign``."""
    return np.asarray(points, dtype=np.float64) * (sign, 1.0)


def both_sides(half: Array) -> Array:
    """(n, 2) points of the right side up to the middle -> (2n - 1, 2) from the left side to the right."""
    return np.concatenate([mirror(half, -1.0), half[-2::-1]])


@lru_cache(maxsize=64)
def _unit_circle(count: int) -> tuple[Array, Array]:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.cos(angle), np.sin(angle)


def circle(x: float, y: float, rx: float, ry: float, count: int = 28) -> Array:
    """(count, 2) points of an axis-aligned ellipse."""
    cos, sin = _unit_circle(count)
    return xy(x + rx * cos, y + ry * sin)


@lru_cache(maxsize=64)
def _spline_basis(count: int, closed: bool) -> Array:
    """(samples, count) Catmull-Rom weights of ``count`` control points."""
    segments = count if closed else count - 1
    t = np.arange(SAMPLES) / SAMPLES
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )
    basis = np.zeros((segments * SAMPLES + (not closed), count))
    for segment in range(segments):
        for j in range(4):
            index = segment - 1 + j
            index = index % count if closed else min(max(index, 0), count - 1)
            basis[segment * SAMPLES : (segment + 1) * SAMPLES, index] += weights[:, j]
    if not closed:
        basis[-1, -1] = 1.0
    return basis


def smooth(points: ArrayLike, closed: bool = False) -> Array:
    """(n, d) control points -> (m, d) points of the Catmull-Rom curve through them."""
    control = np.asarray(points, dtype=np.float64)
    return _spline_basis(len(control), closed) @ control


def resample(curve: Array, count: int) -> Array:
    """(n, 2) points -> (count, 2) points along the same line."""
    place, known = np.linspace(0, 1, count), np.linspace(0, 1, len(curve))
    return xy(np.interp(place, known, curve[:, 0]), np.interp(place, known, curve[:, 1]))
