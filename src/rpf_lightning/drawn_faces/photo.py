"""Seeded procedural photographs of faces, for tests, demonstrations and training without real photos.

An identity fixes the shapes and colours of a face and its fine marks (moles, freckles, a scar, skin texture);
a photo of it varies pose, expression, gaze, light, hair style, hat, clothes, jewellery and background. The
marks survive at 64 pixels and vanish at 16, so a reference photo holds what the LR lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from rpf_lightning.drawn_faces import accessories, features, hair, skin
from rpf_lightning.drawn_faces.canvas import GLASSES, HAT, NECK, SKIN, Canvas
from rpf_lightning.drawn_faces.geometry import Array
from rpf_lightning.drawn_faces.head import Head
from rpf_lightning.drawn_faces.person import Person, Shot, sample_person, sample_shot

MIN_SIDE, MAX_SIDE = 32, 1024
LR_SIDE = 16
BARE = set(range(SKIN, NECK + 1)) - {GLASSES}  # what the soft light of the face falls on
# The first word of a seed sequence keeps the draws of identities and photos apart.
IDENTITY_STREAM, PHOTO_STREAM = 1, 2


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


def render_photo(identity_seed: int, photo_seed: int, side: int, marks: bool = True) -> SyntheticPhoto:
    """Renders one photo of one person; the same seeds give the same picture at every side.

    Args:
        identity_seed: The person, >= 0.
        photo_seed: The photo of that person, >= 0.
        side: Side of the picture in pixels, 32..1024.
        marks: Whether to draw the identity's fine marks.

    Returns:
        The photo with its parsing map and landmarks.

    Raises:
        ValueError: If ``side`` is outside 32..1024.
    """
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"side must be in {MIN_SIDE}..{MAX_SIDE}, got {side}")
    person = sample_person(np.random.default_rng((IDENTITY_STREAM, identity_seed)))
    shot = sample_shot(np.random.default_rng((PHOTO_STREAM, identity_seed, photo_seed)), person)
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


def draw_portrait(person: Person, shot: Shot, canvas: Canvas, marks: bool = True) -> tuple[Array, Array]:
    """Draws one photo.

    Args:
        person: The identity.
        shot: The photo.
        canvas: Receives colours and labels; the background stays label 0.
        marks: Whether to draw moles, freckles, scar and the skin's texture.

    Returns:
        (68, 2) landmarks in sides and (n, 7) soft spots to be laid over the facial labels: x, y, sigma x,
        sigma y in sides, log weights of R, G, B.
    """
    head = Head(person, shot)
    rng = np.random.default_rng(shot.strand_seed)
    hair.back_hair(person, shot, canvas, head, rng)
    neck = skin.neck(person, canvas, head)
    if shot.necklace and shot.neckline != "turtle":
        accessories.necklace(shot, canvas, neck)
    accessories.clothes(shot, canvas, neck)
    skin.ears(person, canvas, head)
    if shot.earrings:
        accessories.earrings(person, shot, canvas, head)
    jaw = skin.skull(person, canvas, head)
    skin.relief(person, shot, head)
    nose = features.nose(person, canvas, head)
    if marks:
        skin.texture(person, head)
    hair.beard(person, shot, canvas, head)
    mouth = features.mouth(person, shot, canvas, head)
    eyes = [features.eye(person, shot, canvas, head, sign) for sign in (-1.0, 1.0)]
    brows = [features.brow(person, shot, canvas, head, sign) for sign in (-1.0, 1.0)]
    skin.wrinkles(person, shot, canvas, head)
    if marks:
        skin.marks(person, canvas, head)
    if person.glasses != "none":
        accessories.glasses(person, canvas, head)
    hair.front_hair(person, shot, canvas, head, rng)
    if shot.hat != "none":
        accessories.hat(shot, canvas, head)
    return np.concatenate([jaw, *brows, nose, *eyes, mouth]), head.soft_light()


def _develop(canvas: Canvas, shot: Shot, spots: Array, landmarks: Array, side: int) -> NDArray[np.uint8]:
    """Reduces the flat drawing and lays light, soft spots and the background over it."""
    person = _mask(canvas, range(SKIN, HAT + 1))
    # hairs and lashes that stick out over the background would be added to it
    inside = ImageChops.darker(canvas.colours, person.convert("RGB"))
    colours = np.asarray(inside.reduce(canvas.factor), dtype=np.float32)
    facial, drawn = _coverage(_mask(canvas, BARE), canvas.factor), _coverage(person, canvas.factor)
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


def _mask(canvas: Canvas, labels: Iterable[int]) -> Image.Image:
    """255 where the canvas carries one of the labels, else 0."""
    table = [0] * 256
    for label in labels:
        table[label] = 255
    return canvas.labels.point(table)


def _coverage(mask: Image.Image, factor: int) -> NDArray[np.float32]:
    """(side, side, 1) share of each pixel that a supersampled mask covers."""
    return np.asarray(mask.reduce(factor), dtype=np.float32)[..., None] / np.float32(255)


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
