"""What varies from photo to photo of one person, and its random draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rpf_lightning.drawn_faces.geometry import Array
from rpf_lightning.drawn_faces.person import Person


@dataclass(frozen=True)
class Shot:
    """A photo's pose, light and dress. Angles in radians, colours RGB 0..255 as (3,) arrays."""

    yaw: float  # > 0 turns to the image's right
    pitch: float  # > 0 looks down
    roll: float
    offset: Array  # (2,) error of the crop
    smile: float  # -0.25..1
    mouth_open: float  # 0..1
    brow_raise: float
    squint: float
    gaze: Array  # (2,)
    light: Array  # (2,) direction it comes from: x > 0 right, y > 0 below
    exposure: Array  # (3,) gains of brightness and warmth
    style: str  # of the hair
    parting: float  # -1..1
    strand_seed: int  # places the single hairs
    hat: str  # "none", "beanie", "cap" or "brim"
    hat_colour: Array
    neckline: str  # "crew", "vee", "turtle" or "collar"
    cloth: Array
    necklace: bool
    earrings: bool
    metal: Array
    backdrop: Array  # (2, 3) colours at the top and the bottom
    bokeh: Array  # (K, 7): x, y, sigma x, sigma y, log weights of R, G, B


def sample_shot(rng: np.random.Generator, person: Person) -> Shot:
    """A random photo of one person."""

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    warm = u(-0.06, 0.06)
    mouth_open = u(0.15, 0.9) if rng.random() < 0.35 else 0.0
    grey, hue = u(60, 215), rng.uniform(-45, 45, 3)
    bokeh = np.column_stack(
        [
            rng.uniform(0, 1, (9, 2)),
            rng.uniform(0.04, 0.25, (9, 2)),
            rng.normal(0, 0.14, 9)[:, None] + rng.normal(0, 0.07, (9, 3)),
        ]
    )
    return Shot(
        yaw=math.radians(float(np.clip(rng.normal(0, 15), -30, 30))),
        pitch=math.radians(float(np.clip(rng.normal(0, 6), -12, 12))),
        roll=math.radians(float(np.clip(rng.normal(0, 3), -6, 6))),
        offset=rng.normal(0, 0.006, 2),
        smile=u(-0.25, 1),
        mouth_open=mouth_open,
        brow_raise=u(0, 1) ** 2,
        squint=u(0, 0.8),
        gaze=rng.uniform(-1, 1, 2),
        light=np.array([u(-1, 1), u(-1, 0.1)]),
        exposure=u(0.9, 1.08) * np.array([1 + warm, 1.0, 1 - warm]),
        style=str(person.styles[rng.integers(len(person.styles))]),
        parting=u(-1, 1),
        strand_seed=int(rng.integers(1 << 30)),
        hat=str(rng.choice(["beanie", "cap", "brim"])) if rng.random() < 0.12 else "none",
        hat_colour=rng.uniform(40, 200, 3),
        neckline=str(rng.choice(["crew", "vee", "turtle", "collar"])),
        cloth=rng.uniform(30, 225, 3),
        necklace=rng.random() < 0.25,
        earrings=rng.random() < (0.4 if person.beard == "none" else 0.1),
        metal=np.array([(226.0, 190, 96), (208, 210, 216)])[rng.integers(2)],
        backdrop=np.clip(np.stack([grey + hue, grey * u(0.5, 1.1) + hue]), 20, 245),
        bokeh=bokeh,
    )
