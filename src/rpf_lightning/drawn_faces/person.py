"""What is fixed for one identity, what varies from photo to photo, and the random draws of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rpf_lightning.drawn_faces.colours import (
    FRAME_TONES,
    GREY_HAIR,
    HAIR_TONES,
    IRIS_TONES,
    SKIN_TONES,
    choose,
    mix,
)
from rpf_lightning.drawn_faces.geometry import Array

LONG_STYLES = ("bob", "fringe", "long", "wavy", "bun")
SHORT_STYLES = ("short", "side", "curly", "buzz")
# Where a mole or scar may sit, in face coordinates: cheeks, jaw, forehead, nose, over the lip, chin.
MARK_SPOTS = np.array(
    [(-0.17, 0.08), (0.17, 0.08), (-0.14, 0.15), (0.14, 0.15), (-0.19, 0.2), (0.19, 0.2), (-0.07, -0.19),
     (0.09, -0.18), (0.03, 0.05), (-0.07, 0.185), (0.075, 0.19), (-0.05, 0.35), (0.06, 0.345), (0.21, 0.03),
     (-0.21, 0.03), (0.0, -0.1)]
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """An identity. Lengths in sides, colours RGB 0..255 as (3,) arrays."""

    skin: Array
    hair: Array
    iris: Array
    lip: Array
    age: float  # 0..1
    face_width: float  # factor
    jaw: float  # signed widening of the jaw
    chin: float  # signed widening of the chin
    chin_length: float
    hairline: float  # y
    eye_x: float
    eye_width: float  # half width
    eye_open: float  # height of the upper lid
    eye_slant: float
    crease: float  # height of the lid crease over the lid
    lashes: float  # width of the lash line
    brow_y: float
    brow_width: float
    brow_arch: float
    brow_slant: float
    brow_length: float
    brow_gap: float
    brow_colour: Array
    nose_width: float
    nose_length: float
    bridge: float
    nostril: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    bow: float  # depth of the cupid's bow
    ear: float  # factor
    beard: str  # "none", "stubble", "moustache", "goatee" or "full"
    glasses: str  # "none", "round", "square" or "cat"
    frame: Array
    frame_width: float
    folds: float  # strength of the nasolabial folds
    forehead_lines: int
    crow_feet: int
    styles: tuple[str, ...]  # the hair styles worn, keys of hair.HAIR_STYLES
    moles: Array  # (M, 3): x, y, diameter
    mole_tone: Array  # (M,) 0..1, share of the skin's light
    scar: Array  # (S, 2) polyline; S = 0 without a scar
    freckles: Array  # (F, 3): x, y, sigma; F = 0 without freckles
    texture: Array  # (T, 4): x, y, sigma, log weight
    stubble: Array  # (B, 2) places of single hairs of a beard


def sample_person(rng: np.random.Generator) -> Person:
    """A random identity."""

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    age, masculine = u(0, 1) ** 1.5, rng.random() < 0.5
    skin = choose(rng, SKIN_TONES) + rng.normal(0, 3, 3)
    light_skin = skin.mean() > 150
    hair = choose(rng, HAIR_TONES if light_skin else HAIR_TONES[:3])
    brow = hair * u(0.55, 0.85)
    if age > 0.6:
        hair = mix(hair, GREY_HAIR, u(0.3, 0.95))
    beard = str(
        rng.choice(["none", "stubble", "moustache", "goatee", "full"], p=[0.4, 0.2, 0.12, 0.12, 0.16])
    )
    styles = rng.permutation(SHORT_STYLES if masculine else LONG_STYLES)[:3].tolist()
    if masculine and age > 0.35 and rng.random() < 0.3:
        styles = ["bald", "buzz"]
    count = int(rng.integers(2, 7))
    places = MARK_SPOTS[rng.permutation(len(MARK_SPOTS))[: count + 1]] + rng.normal(0, 0.012, (count + 1, 2))
    sizes = rng.uniform(0.015, 0.021, count)
    scar = places[count] + np.array([(-0.5, -0.5), (0.05, 0.0), (0.5, 0.5)]) * rng.normal(0, 1, 2) * 0.05
    lengths = np.linalg.norm(np.diff(scar, axis=0), axis=1).sum()
    scar = places[count] + (scar - places[count]) * (u(0.06, 0.1) / lengths)
    freckled = rng.random() < 0.4 and light_skin
    freckles = np.column_stack(
        [rng.normal(0, 0.12, 90), rng.normal(0.07, 0.05, 90), rng.uniform(0.003, 0.0052, 90)]
    )
    texture = np.column_stack(
        [
            rng.uniform(-0.27, 0.27, 170),
            rng.uniform(-0.33, 0.4, 170),
            rng.uniform(0.004, 0.009, 170),
            np.minimum(rng.normal(-0.01, 0.04, 170), 0.03),
        ]
    )
    angle, reach = rng.uniform(0, np.pi, 420), rng.uniform(0.6, 0.99, 420)
    stubble = np.column_stack([0.26 * np.cos(angle) * reach, 0.17 + 0.235 * np.sin(angle) * reach])
    return Person(
        skin=np.clip(skin, 0, 255),
        hair=hair,
        iris=choose(rng, IRIS_TONES if light_skin else IRIS_TONES[:2]),
        lip=mix(skin * (0.86, 0.66, 0.66), (196, 60, 78), u(0, 0.2) if masculine else u(0.1, 0.55)),
        age=age,
        face_width=u(0.9, 1.03),
        jaw=u(0, 0.1) if masculine else u(-0.12, 0.01),
        chin=u(-0.05, 0.22) if masculine else u(-0.2, 0.1),
        chin_length=u(-0.02, 0.02),
        hairline=u(-0.35, -0.27),
        eye_x=u(0.122, 0.136),
        eye_width=u(0.05, 0.06),
        eye_open=u(0.021, 0.032),
        eye_slant=u(-0.08, 0.16),
        crease=u(0.006, 0.02),
        lashes=u(0.007, 0.011) if masculine else u(0.009, 0.016),
        brow_y=u(-0.098, -0.082),
        brow_width=u(0.026, 0.042) if masculine else u(0.014, 0.03),
        brow_arch=u(0.005, 0.03),
        brow_slant=u(-0.02, 0.02),
        brow_length=u(0.125, 0.155),
        brow_gap=u(0.035, 0.06),
        brow_colour=brow,
        nose_width=u(0.8, 1.25),
        nose_length=u(-0.015, 0.015),
        bridge=u(0.75, 1.3),
        nostril=u(0.7, 1.3),
        mouth_width=u(0.085, 0.11),
        upper_lip=u(0.012, 0.028),
        lower_lip=u(0.02, 0.038),
        bow=u(0.05, 0.4),
        ear=u(0.85, 1.2),
        beard=beard if masculine else "none",
        glasses=str(rng.choice(["round", "square", "cat"])) if rng.random() < 0.25 else "none",
        frame=FRAME_TONES[rng.integers(len(FRAME_TONES))],
        frame_width=u(0.009, 0.018),
        folds=u(0, 0.5) + 0.5 * age,
        forehead_lines=int(rng.integers(0, 2)) + int(age > 0.4) + int(age > 0.7),
        crow_feet=int(3 * age + u(0, 1)),
        styles=tuple(styles),
        moles=np.column_stack([places[:count], sizes]),
        # larger moles are paler, so that a 16x16 pixel averages each away
        mole_tone=0.25 + (sizes - 0.015) * 30,
        scar=scar if rng.random() < 0.4 else np.zeros((0, 2)),
        freckles=freckles if freckled else np.zeros((0, 3)),
        texture=texture,
        stubble=stubble,
    )


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
