"""A vector face: geometry in three dimensions, a supersampled canvas and the parts of a portrait.

Face coordinates are in units of the picture's side, seen from the front: x to the right, y down, z towards
the camera, the origin in the middle of the head. The head is a stack of half ellipses, so every point (x, y)
of the face has a depth, and a turned head moves its features as a real one does. Label names follow BiSeNet;
"left" is always the image's left (lower x).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float64]

SKIN, L_BROW, R_BROW, L_EYE, R_EYE, GLASSES, L_EAR, R_EAR, EARRING, NOSE = range(1, 11)
MOUTH, U_LIP, L_LIP, NECK, NECKLACE, CLOTH, HAIR, HAT = range(11, 19)

MIN_CANVAS = 512  # supersampled canvas of small pictures: PIL draws on whole pixels, so it must be fine
SAMPLES = 8  # points per Catmull-Rom segment

# Right half of the frontal outline: chin, jaw up to the ear (landmarks 8..16), then over the skull.
OUTLINE = np.array(
    [(0, 0.42), (0.056, 0.411), (0.110, 0.384), (0.160, 0.340), (0.206, 0.282), (0.242, 0.21), (0.265, 0.135),
     (0.279, 0.06), (0.286, -0.02), (0.29, -0.10), (0.286, -0.19), (0.262, -0.28), (0.208, -0.36),
     (0.115, -0.42), (0, -0.44)]
)  # fmt: skip
EAR = 8  # index of the ear in OUTLINE
JAW_WEIGHT = np.array([0, 0.2, 0.6, 1, 1, 0.8, 0.4, 0.1, 0, 0, 0, 0, 0, 0, 0])
CHIN_WEIGHT = np.array([0, 1, 0.7, 0.3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
DROP_WEIGHT = np.array([1, 0.96, 0.8, 0.55, 0.3, 0.12, 0.03, 0, 0, 0, 0, 0, 0, 0, 0])
# Depth of the outline and of the midline by height.
RIM_Y, RIM_Z = (
    [-0.44, -0.28, -0.1, -0.02, 0.135, 0.21, 0.28, 0.336, 0.381, 0.411, 0.42],
    [-0.05, -0.03, -0.01, 0.0, 0.03, 0.06, 0.1, 0.14, 0.185, 0.225, 0.245],
)
MID_Y, MID_Z = (
    [-0.44, -0.36, -0.28, -0.1, -0.03, 0.12, 0.23, 0.34, 0.42],
    [0.03, 0.14, 0.2, 0.26, 0.255, 0.27, 0.275, 0.265, 0.25],
)
ALIGNED_POINT = np.array([0.0, 0.10, 0.25])  # between eyes and mouth: the crop keeps it in place


@dataclass(frozen=True)
class Person:
    """What is fixed for one identity. Lengths in sides, colours RGB 0..255 as (3,) arrays."""

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
    styles: tuple[str, ...]  # hair styles this person wears
    moles: Array  # (M, 3): x, y, diameter
    mole_tone: Array  # (M,) 0..1, share of the skin's light
    scar: Array  # (S, 2) polyline; S = 0 without a scar
    freckles: Array  # (F, 3): x, y, sigma
    texture: Array  # (T, 4): x, y, sigma, log weight
    stubble: Array  # (B, 2)


@dataclass(frozen=True)
class Shot:
    """What varies from photo to photo. Angles in radians, colours RGB 0..255 as (3,) arrays."""

    yaw: float  # > 0 turns to the image's right
    pitch: float  # > 0 looks down
    roll: float
    offset: Array  # (2,) error of the crop
    smile: float  # -0.3..1
    mouth_open: float  # 0..1
    brow_raise: float
    squint: float
    gaze: Array  # (2,)
    light: Array  # (2,) direction it comes from: x > 0 right, y > 0 below
    exposure: Array  # (3,) gains of brightness and warmth
    style: str
    parting: float  # -1..1
    strand_seed: int
    hat: str  # "none", "beanie", "cap" or "brim"
    hat_colour: Array
    neckline: str  # "crew", "vee", "turtle" or "collar"
    cloth: Array
    necklace: bool
    earrings: bool
    metal: Array
    backdrop: Array  # (2, 3) colours at the top and the bottom
    bokeh: Array  # (K, 7): x, y, sigma x, sigma y, log weights of R, G, B


def mix(first: Array, second: ArrayLike, share: float) -> Array:
    """Colour between two: ``share`` 0 gives the first."""
    return first * (1 - share) + np.asarray(second, dtype=np.float64) * share


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


@lru_cache(maxsize=256)
def _taper(count: int) -> Array:
    """(count,) 0 at both ends, 1 in the middle."""
    return np.sqrt(np.sin(np.linspace(0, np.pi, count)).clip(0))


def smooth(points: ArrayLike, closed: bool = False) -> Array:
    """(n, d) control points -> (m, d) points of the Catmull-Rom curve through them."""
    control = np.asarray(points, dtype=np.float64)
    return _spline_basis(len(control), closed) @ control


def mirror(points: ArrayLike, sign: float) -> Array:
    """(n, 2) points of the right side, put to the side of ``sign``."""
    return np.asarray(points, dtype=np.float64) * (sign, 1.0)


def circle(x: float, y: float, rx: float, ry: float, count: int = 28) -> Array:
    """(count, 2) points of an axis-aligned ellipse."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


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
        red, green, blue = np.clip(np.rint(colour), 0, 255).astype(int).tolist()
        self._draw_colours.polygon(vertices, fill=(red, green, blue))
        if label is not None:
            self._draw_labels.polygon(vertices, fill=label)

    def stroke(
        self, points: Array, width: float, colour: Array, label: int | None = None, ends: float = 0.1
    ) -> None:
        """A line along (n, 2) points, widest in the middle; ``ends`` is the share of width at its ends."""
        tangent = np.empty_like(points)
        tangent[1:-1] = points[2:] - points[:-2]
        tangent[0], tangent[-1] = points[1] - points[0], points[-1] - points[-2]
        profile = ends + (1 - ends) * _taper(len(points))
        profile *= 0.5 * width / (np.hypot(tangent[:, 0], tangent[:, 1]) + 1e-9)
        offset = tangent[:, ::-1] * (-1, 1) * profile[:, None]
        self.fill(np.concatenate([points + offset, (points - offset)[::-1]]), colour, label)


class Head:
    """The head's surface, its pose and the soft light on it.

    Attributes:
        outline: (15, 2) right half of the frontal outline, see OUTLINE.
        blobs: List of (n, 7) soft spots in the picture: x, y, sigma x, sigma y, log weights of R, G, B.
    """

    def __init__(self, person: Person, shot: Shot) -> None:
        outline = OUTLINE.copy()
        outline[:, 0] *= person.face_width * (1 + person.jaw * JAW_WEIGHT + person.chin * CHIN_WEIGHT)
        outline[:, 1] += (person.chin_length + 0.035 * shot.mouth_open) * DROP_WEIGHT
        self.outline = outline
        self.blobs: list[Array] = []
        self._offset = shot.offset + 0.5
        self._sin_yaw, self._cos_yaw = np.sin(shot.yaw), np.cos(shot.yaw)
        self._sin_pitch, self._cos_pitch = np.sin(shot.pitch), np.cos(shot.pitch)
        sin, cos = np.sin(shot.roll), np.cos(shot.roll)
        self._roll = np.array([[cos, sin], [-sin, cos]])
        self._shift = self._rotate(ALIGNED_POINT[None])[0, :2] - ALIGNED_POINT[:2]

    def _rotate(self, points: Array) -> Array:
        x, y, z = points.T
        x, z = x * self._cos_yaw + z * self._sin_yaw, z * self._cos_yaw - x * self._sin_yaw
        return np.stack([x, y * self._cos_pitch + z * self._sin_pitch], axis=1)

    def project(self, points: Array) -> Array:
        """(n, 3) face coordinates -> (n, 2) picture coordinates, 0..1."""
        return (self._rotate(points) - self._shift) @ self._roll + self._offset

    def _section(self, y: Array) -> tuple[Array, Array, Array]:
        """Half width, depth of the rim and depth range of the head's section at height y."""
        half = self.outline[::-1]
        width = np.maximum(np.interp(y, half[:, 1], half[:, 0]), 0.03)
        rim = np.interp(y, RIM_Y, RIM_Z)
        return width, rim, np.interp(y, MID_Y, MID_Z) - rim

    def put(self, points: ArrayLike, rise: ArrayLike = 0.0) -> Array:
        """(n, 2) points on the face, ``rise`` above its surface -> (n, 2) in the picture.

        What the turned head hides is moved to the visible rim.
        """
        x, y = np.asarray(points, dtype=np.float64).T
        width, rim, depth = self._section(y)
        limit = width**2 * self._cos_yaw / np.hypot(width * self._cos_yaw, depth * self._sin_yaw)
        x = np.where(x * self._sin_yaw > 0, np.clip(x, -limit, limit), np.clip(x, -width, width))
        z = rim + depth * np.sqrt(np.maximum(1 - (x / width) ** 2, 0)) + rise
        return self.project(np.stack([x, y, z], axis=1))

    def rim(self, points: ArrayLike, back: float = 0.0) -> Array:
        """(n, 2) points of a frontal outline -> (n, 2) its silhouette, turned; back: depth behind it."""
        x, y = np.asarray(points, dtype=np.float64).T
        _, rim, depth = self._section(y)
        run = np.hypot(x * self._cos_yaw, depth * self._sin_yaw) + 1e-9
        far = x * self._sin_yaw > 0
        side = np.where(far, x * np.abs(x) * self._cos_yaw / run, x)
        z = rim + np.where(far, depth**2 * abs(self._sin_yaw) / run, -back)
        return self.project(np.stack([side, y, z], axis=1))

    def facing(self, points: Array) -> Array:
        """(n, 2) points on the face -> (n,) 0 on the hidden side .. 1 towards the camera."""
        x, y = points.T
        width, _, depth = self._section(y)
        u = np.clip(x / width, -1, 1)
        normal_x, normal_z = u / width, np.sqrt(1 - u**2) / depth
        toward = normal_z * self._cos_yaw - normal_x * self._sin_yaw
        return np.clip(3 * toward / np.hypot(normal_x, normal_z), 0, 1)

    def spots(self, points: ArrayLike, sigma: ArrayLike, weight: ArrayLike, rise: ArrayLike = 0.0) -> None:
        """Adds soft spots on the face.

        Args:
            points: (n, 2) face coordinates.
            sigma: Broadcastable to (n, 2), in sides.
            weight: Broadcastable to (n, 3), log gain in the middle; below 0 darkens.
            rise: Broadcastable to (n,), height above the surface.
        """
        where = np.asarray(points, dtype=np.float64)
        scale = np.broadcast_to(np.asarray(sigma, dtype=np.float64), (len(where), 2))
        gain = np.broadcast_to(np.asarray(weight, dtype=np.float64), (len(where), 3))
        gain = gain * self.facing(where)[:, None]
        self.blobs.append(np.concatenate([self.put(where, rise), scale, gain], axis=1))


SHADE = np.array([-0.8, -1.0, -1.05])  # shadows on skin turn red
BROWN = np.array([-0.6, -1.0, -1.2])  # pigment of freckles and stubble
PIGMENT = np.array([1.0, 0.85, 0.8])  # a mole's colour, as a share of the skin's
HALO = 0.03  # sigma of the lighter skin around marks: half a pixel of the LR
WHITE = np.full(3, 255.0)


def draw_portrait(person: Person, shot: Shot, canvas: Canvas, marks: bool = True) -> tuple[Array, Array]:
    """Draws one photo.

    Args:
        person: The identity.
        shot: The photo.
        canvas: Receives colours and labels; the background stays label 0.
        marks: Whether to draw moles, freckles, scar and the skin's texture.

    Returns:
        (68, 2) landmarks in sides and (n, 7) soft spots to be laid over the facial labels.
    """
    head = Head(person, shot)
    rng = np.random.default_rng(shot.strand_seed)
    _back_hair(person, shot, canvas, head, rng)
    _body(person, shot, canvas, head)
    _ears(person, shot, canvas, head)
    jaw = _skull(person, canvas, head)
    _relief(person, shot, head)
    nose = _nose(person, canvas, head)
    if marks:
        _texture(person, head)
    _beard(person, shot, canvas, head)
    mouth = _mouth(person, shot, canvas, head)
    sides = [_eye(person, shot, canvas, head, sign) for sign in (-1.0, 1.0)]
    brows = [_brow(person, shot, canvas, head, sign) for sign in (-1.0, 1.0)]
    _wrinkles(person, shot, canvas, head)
    if marks:
        _marks(person, canvas, head)
    if person.glasses != "none":
        _glasses(person, canvas, head)
    _front_hair(person, shot, canvas, head, rng)
    if shot.hat != "none":
        _hat(shot, canvas, head)
    landmarks = np.concatenate([jaw, *brows, nose, *sides, mouth])
    return landmarks, np.concatenate(head.blobs)


def _upper_rim(head: Head, grow: float, low: float = 1.0) -> Array:
    """(n, 2) frontal outline over the skull from the left ear to the right, ``grow`` larger."""
    half = head.outline[EAR:] * (1 + grow, 1 + grow)
    half[0, 1] = 0.06 * low
    return np.concatenate([mirror(half, -1.0), half[-2::-1]])


def _strands(
    canvas: Canvas, first: Array, second: Array, count: int, colour: Array, rng: np.random.Generator
) -> None:
    """Fine hairs between two curves of equal length."""
    for share in np.sort(rng.uniform(0.04, 0.96, count)):
        curve = first + (second - first) * share
        start, stop = sorted(rng.integers(0, len(curve), 2).tolist())
        if stop - start > 6:
            tone = (
                colour * rng.uniform(0.72, 1.0)
                if rng.random() < 0.6
                else mix(colour, WHITE, rng.uniform(0, 0.2))
            )
            canvas.stroke(curve[start:stop], rng.uniform(0.004, 0.01), tone)


def _back_hair(person: Person, shot: Shot, canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    volume, length, _, wave = _hair_style(shot)
    dark = person.hair * 0.7
    if shot.style == "bald":
        return
    if shot.style == "bun" and shot.hat == "none":
        knot = head.rim(circle(0.0, -0.45, 0.13, 0.10), back=0.1)
        canvas.fill(knot, person.hair * 0.85, HAIR)
    half = head.outline[EAR:] * (1.005 + volume)
    width = half[0, 0]
    drop = [(width * 0.95, 0.10), (width * 0.72, 0.16)] if length < 0.25 else []
    for y in np.arange(0.1, length, 0.09):
        drop.insert(0, (width * (1.04 + wave * rng.uniform(-1, 1)) + 0.02 * y, float(y)))
    if length >= 0.25:
        drop.insert(0, (width * 0.9, length))
    right = np.concatenate([np.array(drop)[::-1] if length < 0.25 else np.array(drop), half])
    outline = np.concatenate([right, mirror(right[-2::-1], -1.0)])
    canvas.fill(smooth(head.rim(outline, back=0.09), closed=True), dark, HAIR)


def _body(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    base = head.project(np.array([[0.0, 0.3, 0.02]]))[0]
    x, wide = base[0], 0.185 * person.face_width + 0.05 * person.jaw
    left, right = x - wide, x + wide
    flare = np.array([(left, 0.6), (left, 0.86), (left - 0.03, 0.95), (left - 0.12, 1.02)])
    neck = np.concatenate([smooth(flare), smooth(flare * (-1, 1) + (2 * x, 0))[::-1]])
    canvas.fill(neck, person.skin * 0.86, NECK)
    shadow = head.rim(np.concatenate([mirror(head.outline[6::-1], -1.0), head.outline[1:7]]))
    canvas.fill(smooth(shadow + np.array([0, 0.045])), person.skin * 0.66, NECK)
    top = {"crew": 0.97, "vee": 1.06, "turtle": 0.9, "collar": 0.99}[shot.neckline]
    if shot.necklace and shot.neckline != "turtle":
        chain = smooth(
            [(left - 0.02, 0.915), (x - 0.1, 0.965), (x, 0.982), (x + 0.1, 0.965), (right + 0.02, 0.915)]
        )
        canvas.stroke(chain, 0.013, shot.metal * 0.7, NECKLACE, ends=0.8)
        canvas.stroke(chain, 0.007, shot.metal, NECKLACE, ends=0.8)
    edge = 0.88 if shot.neckline != "turtle" else 0.86
    shoulders = [
        (-0.6, 1.03),
        (left - 0.2, 0.955),
        (left - 0.02, edge),
        (x - 0.11, (edge + top) / 2),
        (x, top),
    ]
    mirrored = [(2 * x - px, py) for px, py in shoulders[-2::-1]]
    curve = smooth(shoulders + mirrored)
    canvas.fill(np.concatenate([curve, [(2.0, 1.1), (-1.0, 1.1)]]), shot.cloth, CLOTH)
    canvas.stroke(curve, 0.02, shot.cloth * 0.8, CLOTH, ends=1.0)
    if shot.neckline == "collar":
        for sign in (-1.0, 1.0):
            flap = np.array([(wide + 0.02, 0.87), (wide + 0.07, 0.93), (0.06, 1.03), (0.02, 0.98)]) * (
                sign,
                1,
            ) + (x, 0)
            canvas.fill(flap, mix(shot.cloth, WHITE, 0.35), CLOTH)


def _ears(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    shape = [(0.262, -0.03, -0.01), (0.295, -0.07, -0.05), (0.322, -0.055, -0.09), (0.322, 0.0, -0.09)]
    shape += [(0.306, 0.055, -0.06), (0.292, 0.095, -0.03), (0.268, 0.09, 0.0)]
    inner = np.array(
        [(0.285, -0.03, -0.03), (0.308, -0.035, -0.07), (0.304, 0.01, -0.07), (0.286, 0.04, -0.03)]
    )
    for sign, label in ((-1.0, L_EAR), (1.0, R_EAR)):
        scale = np.array([sign * person.face_width, person.ear, 1.0])
        canvas.fill(smooth(head.project(np.array(shape) * scale), closed=True), person.skin * 0.92, label)
        canvas.stroke(smooth(head.project(inner * scale)), 0.012, person.skin * 0.7)
        if shot.earrings:
            x, y = head.project(np.array([[0.296, 0.105, -0.03]]) * scale)[0]
            canvas.fill(circle(x, y, 0.016, 0.018), shot.metal * 0.75, EARRING)
            canvas.fill(circle(x - 0.003, y - 0.004, 0.009, 0.01), mix(shot.metal, WHITE, 0.5), EARRING)


def _skull(person: Person, canvas: Canvas, head: Head) -> Array:
    """The head's skin; returns the 17 jaw landmarks."""
    rim = np.concatenate(
        [mirror(head.outline[EAR:0:-1], -1.0), head.outline[:-1], mirror(head.outline[:EAR:-1], -1.0)]
    )
    points = head.rim(rim)
    canvas.fill(smooth(points, closed=True), person.skin, SKIN)
    return points[:17]


def _relief(person: Person, shot: Shot, head: Head) -> None:
    """Soft light and shadow of the face's forms."""
    light = shot.light[0]
    outline = np.concatenate([mirror(head.outline[1:13], -1.0), head.outline[1:13]]) * 0.97
    head.spots(outline, (0.045, 0.06), 0.13 * SHADE)
    head.spots(
        [(0, -0.23), (0, 0.37)], ((0.11, 0.06), (0.04, 0.026)), ((0.07, 0.07, 0.07), (0.13, 0.11, 0.1))
    )
    for sign in (-1.0, 1.0):
        lit = 0.5 + 0.5 * sign * light
        head.spots(
            [(sign * 0.165, 0.075)], (0.055, 0.045), (0.05 + 0.07 * lit, 0.02 + 0.05 * lit, 0.02 + 0.05 * lit)
        )
        head.spots([(sign * 0.16, 0.14)], (0.06, 0.05), (0.02, -0.06, -0.05))
        head.spots([(sign * 0.06, -0.045)], (0.022, 0.035), 0.22 * SHADE)
        head.spots([(sign * 0.14, -0.055)], (0.055, 0.022), 0.16 * SHADE)
        bridge = np.linspace((0.04, -0.03), (0.055, 0.085), 5) * (sign, 1)
        head.spots(bridge, (0.014, 0.022), (0.05 + 0.13 * (1 - lit)) * SHADE, 0.01)
        wing = (sign * 0.066 * person.nose_width, 0.1 + person.nose_length)
        head.spots([wing], (0.014, 0.02), 0.2 * SHADE, 0.02)
    ridge = np.linspace((0.0, -0.04), (0.0, 0.05), 6)
    head.spots(ridge, (0.016, 0.02), 0.05, np.linspace(0.01, 0.07, 6))
    tip = 0.078 + person.nose_length
    head.spots([(0, tip)], (0.02, 0.016), 0.15, 0.085)
    head.spots([(0, tip + 0.052)], (0.05, 0.014), 0.22 * SHADE, 0.035)
    head.spots([(0, 0.17 + person.nose_length)], (0.012, 0.02), 0.08 * SHADE, 0.01)
    head.spots([(0, 0.30 + 0.04 * shot.mouth_open)], (0.06, 0.014), 0.28 * SHADE)
    fold = np.array([(0.078, 0.115), (0.097, 0.145), (0.11, 0.175), (0.118, 0.205)])
    for sign in (-1.0, 1.0):
        strength = (0.05 + 0.16 * person.folds) * (1 + max(shot.smile, 0))
        head.spots(
            mirror(fold + np.array([0.012 * max(shot.smile, 0), 0]), sign), (0.012, 0.016), strength * SHADE
        )


def _nose(person: Person, canvas: Canvas, head: Head) -> Array:
    """The nose; returns its 9 landmarks."""
    width, low = 0.066 * person.nose_width, person.nose_length
    bridge = [(0, -0.035), (0, 0.005), (0, 0.045 + low / 2), (0, 0.08 + low)]
    base = np.array([(-0.72, 0.112), (-0.36, 0.121), (0, 0.127), (0.36, 0.121), (0.72, 0.112)]) * (
        width,
        1,
    ) + (0, low)
    landmarks = np.concatenate(
        [head.put(bridge, [0.01, 0.03, 0.06, 0.09]), head.put(base, [0.02, 0.045, 0.06, 0.045, 0.02])]
    )
    side = np.array(
        [
            (0.3 * person.bridge, -0.035),
            (0.36 * person.bridge, 0.02),
            (0.62, 0.065),
            (1.0, 0.088),
            (0.98, 0.108),
        ]
    ) * (width, 1)
    side[2:, 1] += low
    rise = np.array([0.005, 0.02, 0.03, 0.02, 0.015])
    left, right = head.put(mirror(side, -1.0), rise), head.put(side, rise)
    canvas.fill(
        smooth(np.concatenate([left, landmarks[4:], right[::-1]]), closed=True),
        mix(person.skin, (190, 80, 70), 0.05),
        NOSE,
    )
    for sign in (-1.0, 1.0):
        hole = circle(sign * 0.40 * width, 0.113 + low, 0.23 * width, 0.0085 * person.nostril)
        hole[:, 1] -= 0.10 * (np.abs(hole[:, 0]) - 0.40 * width)
        canvas.fill(head.put(hole, 0.045), mix(person.skin * 0.4, (60, 15, 10), 0.3))
        wing = mirror(
            np.array([(0.82, 0.072), (1.0, 0.09), (0.98, 0.108), (0.78, 0.115)]) * (width, 1) + (0, low), sign
        )
        canvas.stroke(smooth(head.put(wing, 0.02)), 0.008, person.skin * 0.72)
    under = smooth(np.array([(-0.22, 0.122), (0, 0.128), (0.22, 0.122)]) * (width, 1) + (0, low))
    canvas.stroke(head.put(under, 0.055), 0.006, person.skin * 0.7)
    return landmarks


def _texture(person: Person, head: Head) -> None:
    """Uneven skin and freckles, fixed for the person."""
    patch = person.texture
    head.spots(patch[:, :2], patch[:, 2:3], -patch[:, 3:] * SHADE)
    if len(person.freckles):
        head.spots(person.freckles[:, :2], person.freckles[:, 2:], 0.36 * BROWN)
        area = 2 * np.pi * person.freckles[:, 2:] ** 2
        _halo(head, person.freckles[:, :2], -0.3 * BROWN * area)


def _halo(head: Head, points: Array, lost: Array) -> None:
    """Gives the skin around marks the light that they take, so that a coarse pixel keeps its mean."""
    head.spots(points, HALO, lost / (2 * np.pi * HALO**2))


def _mouth(person: Person, shot: Shot, canvas: Canvas, head: Head) -> Array:
    """The mouth; returns its 20 landmarks."""
    width = person.mouth_width * (1 + 0.16 * max(shot.smile, 0) - 0.14 * shot.mouth_open)
    gap = 0.004 * (shot.mouth_open > 0) + 0.07 * shot.mouth_open
    thin = 1 - 0.2 * max(shot.smile, 0)
    upper, lower = person.upper_lip * thin, person.lower_lip * thin

    def line(t: Array) -> Array:
        return 0.232 - 0.024 * shot.smile * t**2 - 0.1 * gap

    top = np.array([-1, -0.58, -0.2, 0, 0.2, 0.58, 1])
    height = upper * np.array([0, 0.62, 1, 1 - person.bow, 1, 0.62, 0])
    bottom = np.array([0.6, 0.28, 0, -0.28, -0.6])
    depth = (lower + gap) * np.array([0.62, 0.94, 1, 0.94, 0.62])
    inner = np.array([-0.86, -0.36, 0, 0.36, 0.86])
    seam = line(inner) + 0.003 * np.array([0, 1, -0.6, 1, 0])  # the seam of closed lips is wavy
    open_top = seam - 0.1 * gap * np.array([0, 1, 1, 1, 0])
    open_bottom = seam + 0.9 * gap * np.array([0, 0.85, 1, 0.85, 0])
    rows = [
        (top, line(top) - height),
        (bottom, line(bottom) + depth),
        (inner, open_top),
        (inner[3:0:-1], open_bottom[3:0:-1]),
    ]
    flat = np.concatenate([np.stack([t * width, y], axis=1) for t, y in rows])
    landmarks = head.put(flat, 0.012)
    upper_edge, lower_edge = smooth(landmarks[:7]), smooth(landmarks[[6, 7, 8, 9, 10, 11, 0]])
    corners = landmarks[[0, 6]]
    inner_top = smooth(np.concatenate([corners[:1], landmarks[12:17], corners[1:]]))
    inner_bottom = smooth(np.concatenate([corners[1:], landmarks[[16, 17, 18, 19, 12]], corners[:1]]))
    canvas.fill(np.concatenate([inner_top, inner_bottom]), np.array([70.0, 18, 18]), MOUTH)
    if shot.mouth_open > 0:
        drop = min(0.026, 0.7 * gap)
        t = np.linspace(-0.8, 0.8, 25)
        roof = np.interp(t, inner, open_top)
        floor = np.minimum(roof + drop * (1 - t**4), np.interp(t, inner, open_bottom))
        teeth = np.concatenate([np.stack([t, roof], 1), np.stack([t, floor], 1)[::-1]]) * (width, 1)
        canvas.fill(head.put(teeth, 0.012), np.array([236.0, 230, 220]), MOUTH)
        for t_gap in np.linspace(-0.5, 0.5, 6):
            tooth = np.linspace(
                (t_gap * width, np.interp(t_gap, inner, roof[[0, 6, 12, 18, 24]])),
                (t_gap * width, np.interp(t_gap, t, floor)),
                5,
            )
            canvas.stroke(head.put(tooth, 0.012), 0.0035, np.array([190.0, 175, 165]))
        if gap > 0.03:
            tongue = circle(0.0, float(open_bottom[2]) - 0.1 * gap, 0.5 * width, 0.28 * gap)
            tongue[:, 1] = np.minimum(tongue[:, 1], np.interp(tongue[:, 0] / width, inner, open_bottom))
            canvas.fill(head.put(tongue, 0.012), np.array([176.0, 78, 80]), MOUTH)
    canvas.fill(np.concatenate([upper_edge, inner_top[::-1]]), person.lip * 0.88, U_LIP)
    canvas.fill(np.concatenate([lower_edge, inner_bottom[::-1]]), person.lip, L_LIP)
    dark = person.lip * 0.45
    canvas.stroke(inner_top, 0.007 if gap == 0 else 0.004, dark)
    if gap > 0:
        canvas.stroke(inner_bottom, 0.004, dark)
    middle = 0.236 + gap + 0.45 * lower
    head.spots([(-0.025, middle), (0.025, middle)], (0.02, 0.008), 0.17, 0.012)
    head.spots(
        np.array([(-1.08, line(np.array(-1.0))), (1.08, line(np.array(1.0)))]) * (width, 1),
        0.012,
        0.2 * SHADE,
    )
    return landmarks


def _beard(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    if person.beard == "none":
        return
    tone = mix(person.hair, person.skin, 0.12) * 0.85
    chin_drop = 0.035 * shot.mouth_open + person.chin_length
    shade = [
        (s * x, y)
        for s in (-1, 1)
        for x, y in ((0.2, 0.2), (0.17, 0.27), (0.11, 0.33), (0.05, 0.375), (0.06, 0.178))
    ]
    head.spots(shade, (0.055, 0.045), (0.16 if person.beard in ("stubble", "full") else 0.0) * BROWN)
    if person.beard == "stubble":
        head.spots(person.stubble, 0.0026, 0.5 * np.log(np.maximum(tone, 8) / person.skin))
        return
    width = person.mouth_width * (1 + 0.12 * max(shot.smile, 0))
    if person.beard == "full":
        inside = np.array([(1.0, 0.0), (0.90, 0.1), (0.72, 0.19), (0.6, 0.27), (0.45, 0.315), (0, 0.325)]) * (
            0.285 * person.face_width,
            1,
        )
        inside[3:, 1] += chin_drop
        outside = head.outline[EAR:0:-1]
        edge = np.concatenate([head.put(mirror(inside, -1.0)), head.put(inside[-2::-1])])
        rim = np.concatenate([head.rim(outside), head.rim(mirror(head.outline[: EAR + 1], -1.0))])
        rim[:, 1] += 0.006  # below the jaw, so that no skin shines through
        canvas.fill(np.concatenate([smooth(edge), smooth(rim)]), tone, SKIN)
        _strokes(canvas, head, person, smooth(np.concatenate([mirror(inside, -1.0), inside[-2::-1]])), tone)
    if person.beard in ("goatee", "full"):
        wide = 0.62 if person.beard == "goatee" else 0.9
        patch = np.array(
            [
                (-wide, 0.31),
                (-0.25, 0.297),
                (0, 0.305),
                (0.25, 0.297),
                (wide, 0.31),
                (wide * 0.9, 0.37),
                (0.3, 0.405),
                (-0.3, 0.405),
                (-wide * 0.9, 0.37),
            ]
        )
        patch = patch * (person.mouth_width, 1) + (0, chin_drop)
        canvas.fill(head.put(smooth(patch, closed=True), 0.005), tone, SKIN)
        for sign in (-1.0, 1.0):
            strip = mirror(
                np.array([(1.02, 0.195), (1.2, 0.24), (1.05, 0.32 + chin_drop)]) * (width, 1), sign
            )
            canvas.stroke(head.put(smooth(strip), 0.008), 0.028, tone, SKIN, ends=0.5)
    for sign in (-1.0, 1.0):
        hair = mirror(np.array([(0.0, 0.175), (0.45, 0.178), (0.85, 0.195), (1.1, 0.222)]) * (width, 1), sign)
        canvas.stroke(head.put(smooth(hair), 0.012), 0.03, tone, SKIN, ends=0.45)
        for shift in (-0.008, 0.0, 0.008):
            canvas.stroke(
                head.put(smooth(hair + np.array([0, shift])), 0.012), 0.004, tone * (1 + 20 * shift)
            )


def _strokes(canvas: Canvas, head: Head, person: Person, edge: Array, tone: Array) -> None:
    """Single hairs along the edge of a beard, at places fixed for the person."""
    for (x, y), lift in zip(person.stubble[:60], np.linspace(0.75, 1.35, 60), strict=True):
        below = y > np.interp(x, edge[:, 0], edge[:, 1]) + 0.01
        if below and abs(x) > 0.06:
            hair = head.put(np.linspace((x, y), (x * 0.97, y + 0.028), 5))
            canvas.stroke(hair, 0.005, np.minimum(tone * lift, 255))


def _eye(person: Person, shot: Shot, canvas: Canvas, head: Head, sign: float) -> Array:
    """One eye; returns its 6 landmarks from left to right over the upper lid and back."""
    wide, label = person.eye_width, (L_EYE if sign < 0 else R_EYE)
    high = person.eye_open * (1 - 0.35 * shot.squint + 0.15 * shot.brow_raise)
    low = 0.0135 * (1 - 0.5 * shot.squint)

    def tilt(t: Array) -> Array:
        return -person.eye_slant * t * wide * sign

    def upper(t: Array) -> Array:
        return tilt(t) - high * (1 - t**2) ** 0.7 * (1 - 0.12 * sign * t)

    def lower(t: Array) -> Array:
        return tilt(t) + low * (1 - t**2) ** 0.85 * (1 + 0.15 * sign * t)

    def lid(t: Array, y: Array, rise: float = 0.0) -> Array:
        return head.put(np.stack([sign * person.eye_x + t * wide, -0.03 + y], axis=1), rise)

    t = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 25))  # dense at the corners, where lids bend
    almond = np.concatenate([lid(t, upper(t)), lid(t[::-1], lower(t[::-1]))])
    canvas.fill(almond, np.array([240.0, 236, 232]), label)
    shadow = np.concatenate([lid(t, upper(t)), lid(t[::-1], np.minimum(upper(t) + 0.010, lower(t))[::-1])])
    canvas.fill(shadow, np.array([196.0, 188, 186]))
    corner = np.array([-0.99, -0.8]) if sign > 0 else np.array([0.8, 0.99])
    duct = np.concatenate([lid(corner, upper(corner)), lid(corner[::-1], lower(corner[::-1]))])
    canvas.fill(duct, np.array([214.0, 150, 142]))

    def disc(radius: float, colour: Array, dx: float = 0.0, dy: float = 0.0) -> None:
        points = circle(shot.gaze[0] * 0.02 + dx, shot.gaze[1] * 0.008 - 0.006 + dy, radius, radius)
        u = np.clip(points[:, 0] / wide, -1, 1)
        canvas.fill(lid(u, np.clip(points[:, 1], upper(u), lower(u))), colour)

    disc(0.0255, person.iris * 0.45)
    disc(0.0215, person.iris)
    disc(0.0165, mix(person.iris, WHITE, 0.14), dy=0.003)
    disc(0.0095, np.array([14.0, 11, 11]))
    disc(0.005, np.array([250.0, 250, 250]), 0.009 * (1 if shot.light[0] > 0 else -1), -0.008)
    skin = person.skin
    canvas.stroke(lid(t, lower(t) + 0.002), 0.004, skin * 0.62)
    lash = np.clip(t * 1.05, -1, 1)
    canvas.stroke(
        lid(lash, upper(lash) - 0.002), person.lashes, mix(person.hair * 0.35, (25, 18, 16), 0.6), ends=0.25
    )
    outer = np.array([0.72, 0.86, 0.99]) * sign
    for u in outer if person.lashes > 0.011 else ():
        root = np.array([u, u + 0.09 * sign, u + 0.2 * sign])
        height = upper(np.clip(np.array([u, u, u]), -1, 1)) - (0, 0.006, 0.016)
        canvas.stroke(lid(root, height), 0.005, np.array([30.0, 22, 20]))
    fold = np.linspace(-0.92, 1.08, 15) * sign
    crease = upper(np.clip(fold, -1, 1) * 0.94) - person.crease
    canvas.stroke(lid(fold, crease), 0.006, skin * 0.66)
    bag = np.linspace(-0.8, 0.7, 12)
    canvas.stroke(
        lid(bag, 0.027 + 0.010 * (1 - bag**2) + tilt(bag)), 0.0045, skin * (0.9 - 0.14 * person.age)
    )
    head.spots([(sign * person.eye_x, 0.0)], (0.04, 0.012), (0.04 + 0.12 * person.age) * SHADE)
    head.spots([(sign * person.eye_x, -0.052)], (0.05, 0.012), 0.1 * SHADE)
    k = np.array([-1, -0.38, 0.38, 1, 0.38, -0.38])
    return lid(k, np.concatenate([upper(k[:4]), lower(k[4:])]))


def _brow(person: Person, shot: Shot, canvas: Canvas, head: Head, sign: float) -> Array:
    """One brow; returns its 5 landmarks from left to right."""
    s = np.linspace(0, 1, 5)  # from the nose outwards
    x = person.brow_gap + s * person.brow_length
    arch = person.brow_arch * np.array([0, 0.65, 1, 0.85, 0.1])
    y = person.brow_y - arch - person.brow_slant * s - 0.025 * shot.brow_raise
    spine = np.stack([x, y], axis=1)
    points = head.put(mirror(spine, sign), 0.005)
    curve = smooth(mirror(spine, sign))
    along = np.linspace(0, 1, len(curve))
    half = 0.5 * person.brow_width * np.minimum(1, 0.62 + 2.2 * along) * np.clip(1.18 - along, 0.12, 0.9)[:]
    shape = np.concatenate(
        [curve - np.stack([0 * half, half], 1), (curve + np.stack([0 * half, half], 1))[::-1]]
    )
    tone = mix(person.brow_colour, person.skin, 0.22)
    canvas.fill(head.put(shape, 0.005), tone, L_BROW if sign < 0 else R_BROW)
    for i in range(1, len(curve) - 2, 3):
        lean = np.array([sign * (0.010 + 0.012 * along[i]), 0.0])
        hair = np.linspace(curve[i] + (0, 0.9 * half[i]), curve[i] + lean + (0, -0.45 * half[i]), 4)
        canvas.stroke(head.put(hair, 0.005), 0.004, person.brow_colour * 0.8)
    return points if sign > 0 else points[::-1]


def _wrinkles(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    line = mix(person.skin * 0.72, person.skin, 0.35 * (1 - person.age))
    for i in range(person.forehead_lines):
        x = np.linspace(-0.12 + 0.01 * i, 0.13 - 0.015 * i, 14)
        y = -0.175 - 0.032 * i - 0.01 * shot.brow_raise + 0.006 * np.sin(30 * x + 2 * i)
        canvas.stroke(head.put(np.stack([x, y], axis=1)), 0.0045 + 0.002 * shot.brow_raise, line)
    for sign in (-1.0, 1.0):
        for i in range(person.crow_feet):
            x0 = person.eye_x + person.eye_width + 0.008
            ray = np.array([(x0, -0.035 + 0.010 * i), (x0 + 0.03, -0.05 + 0.022 * i)])
            canvas.stroke(head.put(mirror(np.linspace(ray[0], ray[1], 5), sign)), 0.0045, line)
        if person.folds > 0.35:
            bend = 0.014 * max(shot.smile, 0)
            fold = [(0.076, 0.108), (0.1 + bend, 0.142), (0.114 + bend, 0.175), (0.118 + bend, 0.21)]
            canvas.stroke(head.put(mirror(smooth(fold), sign)), 0.003 + 0.005 * person.folds, line)


def _marks(person: Person, canvas: Canvas, head: Head) -> None:
    """Moles and the scar: what a 16x16 picture cannot show."""
    seen = head.facing(person.moles[:, :2]) > 0.5
    centres = head.put(person.moles[:, :2], 0.003)
    for (x, y), size, tone in zip(centres[seen], person.moles[seen, 2], person.mole_tone[seen], strict=True):
        canvas.fill(circle(x, y, 0.5 * size, 0.48 * size), person.skin * tone * PIGMENT)
    area = np.pi / 4 * person.moles[:, 2:] ** 2
    _halo(head, person.moles[:, :2], area * (1 - person.mole_tone[:, None] * PIGMENT))
    if len(person.scar):
        scar = head.put(smooth(person.scar), 0.003)
        canvas.stroke(scar + np.array([0.0025, 0.0035]), 0.006, person.skin * (0.68, 0.5, 0.5), ends=0.3)
        canvas.stroke(scar, 0.006, np.minimum(person.skin * 1.12 + 22, 255), ends=0.3)


def _glasses(person: Person, canvas: Canvas, head: Head) -> None:
    power = {"round": 2.0, "square": 4.5, "cat": 3.0}[person.glasses]
    angle = np.linspace(0, 2 * np.pi, 60)
    cos, sin = np.cos(angle), np.sin(angle)
    x = np.sign(cos) * np.abs(cos) ** (2 / power)
    y = np.sign(sin) * np.abs(sin) ** (2 / power)
    if person.glasses == "cat":
        y = y - 0.28 * np.maximum(x, 0) ** 2
    height = 0.074 if person.glasses == "round" else 0.06
    for sign in (-1.0, 1.0):
        rim = np.stack([person.eye_x * 1.03 + 0.083 * x, -0.02 + height * y], axis=1)
        lens = head.put(mirror(rim, sign), 0.03)
        edge = 0.5 * person.frame_width
        normal = (lens - lens.mean(0)) / np.linalg.norm(lens - lens.mean(0), axis=1, keepdims=True)
        # a ring as one polygon: outer edge, then the inner edge backwards
        ring = np.concatenate([lens + edge * normal, (lens - edge * normal)[::-1]])
        canvas.fill(ring, person.frame, GLASSES)
        temple = mirror([(person.eye_x * 1.03 + 0.08, -0.04), (0.25, -0.045), (0.283, -0.04)], sign)
        canvas.stroke(
            head.put(temple, [0.03, 0.015, 0.0]), person.frame_width * 0.9, person.frame, GLASSES, ends=0.9
        )
    gap = person.eye_x * 1.03 - 0.08
    bridge = smooth([(-gap, -0.03), (0, -0.042), (gap, -0.03)])
    canvas.stroke(head.put(bridge, 0.05), person.frame_width, person.frame, GLASSES, ends=0.9)


# volume over the skull, height where the hair ends, drop of the fringe, waviness
HAIR_STYLES: dict[str, tuple[float, float, float, float]] = {
    "bald": (0.0, 0.0, 0.0, 0.0),
    "buzz": (0.015, 0.12, 0.0, 0.0),
    "short": (0.07, 0.14, 0.03, 0.0),
    "side": (0.09, 0.14, 0.06, 0.0),
    "curly": (0.17, 0.16, 0.03, 0.0),
    "bob": (0.11, 0.36, 0.03, 0.02),
    "fringe": (0.11, 0.40, 0.15, 0.02),
    "long": (0.10, 0.70, 0.02, 0.03),
    "wavy": (0.14, 0.66, 0.03, 0.10),
    "bun": (0.035, 0.12, 0.0, 0.0),
}


def _hair_style(shot: Shot) -> tuple[float, float, float, float]:
    """The photo's entry of HAIR_STYLES, pressed flat under a hat."""
    volume, length, fringe, wave = HAIR_STYLES[shot.style]
    return (volume if shot.hat == "none" else min(volume, 0.05)), length, fringe, wave


def _front_hair(person: Person, shot: Shot, canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    if shot.style == "bald":
        return
    volume, length, fringe, wave = _hair_style(shot)
    colour = mix(person.hair, person.skin, 0.35) if shot.style == "buzz" else person.hair
    part = 0.1 * shot.parting
    top = person.hairline
    side = head.outline[EAR, 0]
    temple = np.array([(1.0, 0.035), (0.965, -0.06), (0.93, -0.14)]) * (side, 1)
    crown_x = np.array([-0.2, (part - 0.2) / 2, part, (part + 0.2) / 2, 0.2])
    crown = np.stack([crown_x, top + np.array([0.05, 0.012, -0.01, 0.012, 0.05])], axis=1)
    drop = fringe * np.array([1.0, 1.0, 0.3 if shot.style != "fringe" else 1.0, 1.0, 1.0])
    if shot.style in ("side", "short"):
        drop *= 0.6 + 0.6 * shot.parting * np.linspace(-1, 1, 5)
    crown[:, 1] += drop
    line = np.concatenate([mirror(temple, -1.0), crown, temple[::-1]])
    hairline = head.put(smooth(line), 0.005)
    rim = _upper_rim(head, volume)
    outer = smooth(head.rim(rim, back=0.07))
    if shot.style == "curly":
        angle = np.linspace(0, 26 * np.pi, len(outer))
        outer = outer + (outer - outer.mean(0)) * (0.03 * np.abs(np.sin(angle / 2)))[:, None]
        outer += rng.uniform(-0.004, 0.004, outer.shape)
    inner = np.stack(
        [np.interp(np.linspace(0, 1, len(outer)), np.linspace(0, 1, len(hairline)), c) for c in hairline.T],
        axis=1,
    )
    canvas.fill(np.concatenate([outer, inner[::-1]]), colour, HAIR)
    if shot.style == "curly":
        for x, y in (
            outer[10:-10:3] * 0.62
            + inner[10:-10:3] * 0.38
            + rng.uniform(-0.02, 0.02, (len(outer[10:-10:3]), 2))
        ):
            curl = circle(x, y, 0.022, 0.02, 14)[:9]
            canvas.stroke(curl, 0.008, colour * rng.uniform(0.7, 1.2))
    else:
        _strands(canvas, outer, inner, 8 if shot.style == "buzz" else 28, colour, rng)
    canvas.stroke(inner, 0.007, colour * 0.8)
    if length < 0.25:
        return
    for sign in (-1.0, 1.0):
        down = np.linspace(-0.14, length - 0.02, 9)
        sway = wave * 0.25 * np.sin(np.arange(9) * 2.1 + sign + shot.strand_seed % 7)
        near = np.stack([side * (0.94 - 0.10 * (down > 0.1)) + sway, down], axis=1)
        far = np.stack([side * (1.06 + volume) + sway, down], axis=1)
        near[0], far[0] = (0.8 * side, -0.22), (1.0 * side, -0.26)
        lock_in = smooth(head.rim(mirror(near, sign), back=0.0))
        lock_out = smooth(head.rim(mirror(far, sign), back=0.07))
        canvas.fill(np.concatenate([lock_in, lock_out[::-1]]), colour * 0.94, HAIR)
        _strands(canvas, lock_in, lock_out, 14, colour * 0.94, rng)


def _hat(shot: Shot, canvas: Canvas, head: Head) -> None:
    colour = shot.hat_colour
    x = np.linspace(-1, 1, 15)
    low = {"beanie": -0.17, "cap": -0.19, "brim": -0.2}[shot.hat]
    bend = 0.03 * (1 - x**2)

    def level(y: float, grow: float, rise: float = 0.0) -> Array:
        """(15, 2) the line around the head at height y, from rim to rim."""
        wide = float(np.interp(-y, -head.outline[:, 1], head.outline[:, 0])) * (1 + grow)
        around = head.put(np.stack([x * wide, y - bend], axis=1), rise)
        around[[0, -1]] = head.rim([(-wide, y), (wide, y)], back=0.05)
        return around

    line = level(low, 0.11)
    dome = head.outline[head.outline[:, 1] < low - 0.03] * 1.14
    crown = smooth(
        np.concatenate(
            [line[:1], head.rim(np.concatenate([mirror(dome, -1.0), dome[-2::-1]]), 0.05), line[-1:]]
        )
    )
    canvas.fill(np.concatenate([crown, smooth(line)[::-1]]), colour, HAT)
    if shot.hat == "beanie":
        high = level(low - 0.085, 0.14, 0.02)
        canvas.fill(np.concatenate([smooth(line), smooth(high)[::-1]]), colour * 0.82, HAT)
        for i in range(1, 14):
            canvas.stroke(np.linspace(line[i], high[i], 4), 0.006, colour * 0.65, ends=0.8)
    elif shot.hat == "cap":
        flat = np.stack([x * 0.25, low + 0.02 - 0.4 * bend], axis=1)
        peak, root = smooth(head.put(flat, 0.16 * (1 - x**2))), smooth(head.put(flat - (0, 0.045), 0.02))
        canvas.fill(np.concatenate([root, peak[::-1]]), colour * 0.75, HAT)
        canvas.stroke(root, 0.006, colour * 0.55)
    else:
        canvas.fill(np.concatenate([smooth(line), smooth(level(low - 0.06, 0.12))[::-1]]), colour * 0.5, HAT)
        brim = np.column_stack([0.48 * x, low - 0.03 + 0.05 * np.cos(1.5 * x), np.full(15, 0.1)])
        edge = smooth(head.project(brim))
        canvas.fill(np.concatenate([edge, (edge - (0, 0.05))[::-1]]), colour * 0.86, HAT)
    head.spots(np.stack([0.25 * x[2:-2:2], np.full(6, low + 0.03)], axis=1), (0.04, 0.022), 0.14 * SHADE)
