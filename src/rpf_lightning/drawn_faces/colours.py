"""Colours: scales to choose from, as (3,) RGB arrays of 0..255, and log gains for R, G, B."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rpf_lightning.drawn_faces.geometry import Array

SKIN_TONES = np.array(
    [(247.0, 217, 198), (240, 200, 174), (228, 182, 150), (210, 160, 124), (183, 131, 96), (150, 103, 74),
     (112, 75, 54)]
)  # fmt: skip
HAIR_TONES = np.array(
    [
        (34.0, 27, 26),
        (58, 40, 31),
        (92, 62, 42),
        (128, 86, 54),
        (176, 132, 80),
        (214, 178, 122),
        (150, 70, 38),
    ]
)
IRIS_TONES = np.array(
    [(84.0, 52, 32), (112, 74, 42), (134, 108, 58), (96, 124, 82), (92, 136, 170), (120, 140, 150)]
)
FRAME_TONES = np.array([(28.0, 26, 30), (96, 52, 30), (150, 36, 44), (36, 60, 120), (176, 150, 96)])
GREY_HAIR = np.array([196.0, 194, 190])
WHITE = np.full(3, 255.0)

SHADE = np.array([-0.8, -1.0, -1.05])  # log gains: shadows on skin turn red
BROWN = np.array([-0.6, -1.0, -1.2])  # log gains: pigment of freckles and stubble


def mix(first: Array, second: ArrayLike, share: float) -> Array:
    """Colour between two: ``share`` 0 gives the first."""
    return first * (1 - share) + np.asarray(second, dtype=np.float64) * share


def choose(rng: np.random.Generator, scale: Array) -> Array:
    """A random colour between two neighbours of an (n, 3) scale."""
    place = rng.uniform(0, len(scale) - 1)
    low = int(place)
    return mix(scale[low], scale[low + 1], place - low)
