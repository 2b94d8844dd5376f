"""Seeded procedural photographs of faces, for tests, demonstrations and training without real photos.

An identity fixes the shapes and colours of a face and its fine marks (moles, freckles, a scar, skin texture);
a photo of it varies pose, expression, gaze, light, hair style, hat, clothes, jewellery and background. The
marks survive at 64 pixels and vanish at 16, so a reference photo holds what the LR lacks.

Run ``python -m rpf_lightning.data.synthetic OUT.png`` for a contact sheet.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.data.face_drawing import (
    GLASSES,
    HAT,
    NECK,
    SKIN,
    Array,
    Canvas,
    Person,
    Shot,
    draw_portrait,
    mix,
)

MIN_SIDE, MAX_SIDE = 32, 1024
LR_SIDE = 16
BARE = set(range(SKIN, NECK + 1)) - {GLASSES}  # what the soft light of the face falls on
# The first word of a seed sequence keeps the draws of identities and photos apart.
IDENTITY_STREAM, PHOTO_STREAM = 1, 2

SKIN_TONES = np.array(
    [
        (247, 217, 198),
        (240, 200, 174),
        (228, 182, 150),
        (210, 160, 124),
        (183, 131, 96),
        (150, 103, 74),
        (112, 75, 54),
    ],
    dtype=np.float64,
)
HAIR_TONES = np.array(
    [(34, 27, 26), (58, 40, 31), (92, 62, 42), (128, 86, 54), (176, 132, 80), (214, 178, 122), (150, 70, 38)],
    dtype=np.float64,
)
IRIS_TONES = np.array(
    [(84, 52, 32), (112, 74, 42), (134, 108, 58), (96, 124, 82), (92, 136, 170), (120, 140, 150)],
    dtype=np.float64,
)
FRAME_TONES = np.array(
    [(28, 26, 30), (96, 52, 30), (150, 36, 44), (36, 60, 120), (176, 150, 96)], dtype=np.float64
)
GREY_HAIR = np.array([196.0, 194, 190])
LONG_STYLES = ("bob", "fringe", "long", "wavy", "bun")
SHORT_STYLES = ("short", "side", "curly", "buzz")
# Where a mole or scar may sit, in face coordinates: cheeks, jaw, forehead, nose, over the lip, chin.
MARK_SPOTS = np.array(
    [(-0.17, 0.08), (0.17, 0.08), (-0.14, 0.15), (0.14, 0.15), (-0.19, 0.2), (0.19, 0.2), (-0.07, -0.19),
     (0.09, -0.18), (0.03, 0.05), (-0.07, 0.185), (0.075, 0.19), (-0.05, 0.35), (0.06, 0.345), (0.21, 0.03),
     (-0.21, 0.03), (0.0, -0.1)]
)  # fmt: skip


@dataclass(frozen=True)
class SyntheticPhoto:
    """One rendered photo with its exact annotations.

    Attributes:
        id: Name of the photo.
        identity: Name of the person.
        image: (side, side, 3) uint8, RGB.
        parsing: (side, side) uint8, BiSeNet labels 0..18; "left" labels (l_brow, l_eye, l_ear) are on the
            image's left (lower x).
        landmarks: (68, 2) float64 in iBUG order, x and y in pixels; continuous coordinates, so that the image
            spans 0..side and pixel ``i`` has its centre at ``i + 0.5``.
    """

    id: str
    identity: str
    image: NDArray[np.uint8]
    parsing: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


def render_photo(identity_seed: int, photo_seed: int, side: int) -> SyntheticPhoto:
    """Renders one photo of one person; the same seeds give the same picture at every side.

    Args:
        identity_seed: The person, >= 0.
        photo_seed: The photo of that person, >= 0.
        side: Side of the picture in pixels, 32..1024.

    Returns:
        The photo with its parsing map and landmarks.

    Raises:
        ValueError: If ``side`` is outside 32..1024.
    """
    return _render(identity_seed, photo_seed, side)


def contact_sheet(path: str | Path, identities: int = 6, photos: int = 5, side: int = 256) -> None:
    """Writes a PNG with one row per identity: the LR of its first photo (nearest), then its photos.

    Args:
        path: The PNG file to write.
        identities: Number of rows.
        photos: Number of photos per row.
        side: Side of each tile, 32..1024.

    Raises:
        ValueError: If ``side`` is outside 32..1024.
    """
    sheet = Image.new("RGB", ((photos + 1) * side, identities * side))
    for row in range(identities):
        tiles = [Image.fromarray(render_photo(row, photo, side).image) for photo in range(photos)]
        lr = tiles[0].resize((LR_SIDE, LR_SIDE), Image.Resampling.BICUBIC)
        for column, tile in enumerate([lr.resize((side, side), Image.Resampling.NEAREST), *tiles]):
            sheet.paste(tile, (column * side, row * side))
    sheet.save(path)


def _render(identity_seed: int, photo_seed: int, side: int, marks: bool = True) -> SyntheticPhoto:
    """Renders with or without the identity's fine marks."""
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"side must be in {MIN_SIDE}..{MAX_SIDE}, got {side}")
    person = _sample_person(np.random.default_rng((IDENTITY_STREAM, identity_seed)))
    shot = _sample_shot(np.random.default_rng((PHOTO_STREAM, identity_seed, photo_seed)), person)
    canvas = Canvas(side)
    landmarks, spots = draw_portrait(person, shot, canvas, marks)
    identity = f"id{identity_seed:05d}"
    return SyntheticPhoto(
        id=f"{identity}_{photo_seed:03d}",
        identity=identity,
        image=_develop(canvas, shot, spots, landmarks, side),
        parsing=np.asarray(canvas.labels)[
            canvas.factor // 2 :: canvas.factor, canvas.factor // 2 :: canvas.factor
        ].copy(),
        landmarks=landmarks * side,
    )


def _develop(canvas: Canvas, shot: Shot, spots: Array, landmarks: Array, side: int) -> NDArray[np.uint8]:
    """Reduces the flat drawing and lays light, soft spots and the background over it."""
    # hairs and lashes that stick out over the background would be added to it
    canvas.colours.paste((0, 0, 0), mask=canvas.labels.point([255] + [0] * 255))
    colours = np.asarray(canvas.colours.reduce(canvas.factor), dtype=np.float32)
    facial = _coverage(canvas, BARE)
    drawn = _coverage(canvas, range(SKIN, HAT + 1))
    centre = (np.arange(side, dtype=np.float32) + 0.5) / side
    middle = landmarks[[36, 45, 48, 54]].mean(0)
    u = np.clip((centre - middle[0]) / 0.3, -1.3, 1.3)
    v = np.clip((centre - middle[1]) / 0.5, -1.2, 1.2)
    light = (0.16 * shot.light[0] * u - 0.07 * u**2) + (0.16 * shot.light[1] * v - 0.03 * v**2)[:, None]
    image = colours * np.exp(light[..., None] + facial * _splat(spots, side))
    blend = centre[:, None, None]
    backdrop = (shot.backdrop[0] * (1 - blend) + shot.backdrop[1] * blend) * np.exp(_splat(shot.bokeh, side))
    image = (image + (1 - drawn) * backdrop) * shot.exposure
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _coverage(canvas: Canvas, labels: Iterable[int]) -> NDArray[np.float32]:
    """(side, side, 1) share of each pixel that carries one of the labels."""
    table = [0] * 256
    for label in labels:
        table[label] = 255
    reduced = canvas.labels.point(table).reduce(canvas.factor)
    return np.asarray(reduced, dtype=np.float32)[..., None] / np.float32(255)


_CDF_X = np.linspace(-4, 4, 401)
_CDF = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in _CDF_X])


def _splat(spots: Array, side: int) -> NDArray[np.float32]:
    """(side, side, 3) sum of Gaussians, each averaged over the pixel so that every side shows the same.

    Args:
        spots: (n, 7): x, y, sigma x, sigma y in sides, weights of R, G, B in the middle.
        side: Side of the picture.
    """
    edges = np.arange(side + 1) / side

    def profile(centre: Array, sigma: Array) -> NDArray[np.float32]:
        cdf = np.interp((edges - centre[:, None]) / sigma[:, None], _CDF_X, _CDF)
        return (np.diff(cdf, axis=1) * side * sigma[:, None] * math.sqrt(2 * math.pi)).astype(np.float32)

    across, down = profile(spots[:, 0], spots[:, 2]), profile(spots[:, 1], spots[:, 3])
    weights = spots[:, 4:].astype(np.float32)
    return np.stack([down.T @ (across * weights[:, c : c + 1]) for c in range(3)], axis=-1)


def _pick(rng: np.random.Generator, tones: Array) -> Array:
    """A colour between two neighbours of a scale."""
    place = rng.uniform(0, len(tones) - 1)
    low = int(place)
    return mix(tones[low], tones[low + 1], place - low)


def _sample_person(rng: np.random.Generator) -> Person:
    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    age, masculine = u(0, 1) ** 1.5, rng.random() < 0.5
    skin = _pick(rng, SKIN_TONES) + rng.normal(0, 3, 3)
    light_skin = skin.mean() > 150
    hair = _pick(rng, HAIR_TONES if light_skin else HAIR_TONES[:3])
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
        iris=_pick(rng, IRIS_TONES if light_skin else IRIS_TONES[:2]),
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


def _sample_shot(rng: np.random.Generator, person: Person) -> Shot:
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


if __name__ == "__main__":
    contact_sheet(sys.argv[1])
