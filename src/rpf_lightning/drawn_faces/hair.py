"""The hair of the head, behind and in front of the face, and the beard."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rpf_lightning.drawn_faces.canvas import HAIR, SKIN, Canvas
from rpf_lightning.drawn_faces.colours import BROWN, WHITE, mix
from rpf_lightning.drawn_faces.geometry import Array, both_sides, circle, mirror, resample, smooth, xy
from rpf_lightning.drawn_faces.head import EAR, Head
from rpf_lightning.drawn_faces.person import Person, Shot


class HairStyle(NamedTuple):
    """Shape of a hair style."""

    volume: float  # over the skull
    length: float  # height (y) where the hair ends
    fringe: float  # how far it falls over the forehead
    wave: float


HAIR_STYLES: dict[str, HairStyle] = {
    "bald": HairStyle(0.0, 0.0, 0.0, 0.0),
    "buzz": HairStyle(0.015, 0.12, 0.0, 0.0),
    "short": HairStyle(0.07, 0.14, 0.03, 0.0),
    "side": HairStyle(0.09, 0.14, 0.06, 0.0),
    "curly": HairStyle(0.17, 0.16, 0.03, 0.0),
    "bob": HairStyle(0.11, 0.36, 0.03, 0.02),
    "fringe": HairStyle(0.11, 0.40, 0.15, 0.02),
    "long": HairStyle(0.10, 0.70, 0.02, 0.03),
    "wavy": HairStyle(0.14, 0.66, 0.03, 0.10),
    "bun": HairStyle(0.035, 0.12, 0.0, 0.0),
}


def back_hair(person: Person, shot: Shot, canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """The hair behind the head."""
    if shot.style == "bald":
        return
    volume, length, _, wave = _hair_style(shot)
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
    canvas.fill(smooth(head.rim(outline, back=0.09), closed=True), person.hair * 0.7, HAIR)


def front_hair(person: Person, shot: Shot, canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """The hair over the forehead and the skull, and long hair beside the face."""
    if shot.style == "bald":
        return
    volume, length, fringe, _ = _hair_style(shot)
    colour = mix(person.hair, person.skin, 0.35) if shot.style == "buzz" else person.hair
    part = 0.1 * shot.parting
    top = person.hairline
    side = head.outline[EAR, 0]
    temple = np.array([(1.0, 0.035), (0.965, -0.06), (0.93, -0.14)]) * (side, 1)
    crown_x = np.array([-0.2, (part - 0.2) / 2, part, (part + 0.2) / 2, 0.2])
    crown = xy(crown_x, top + np.array([0.05, 0.012, -0.01, 0.012, 0.05]))
    drop = fringe * np.array([1.0, 1.0, 0.3 if shot.style != "fringe" else 1.0, 1.0, 1.0])
    if shot.style in ("side", "short"):
        drop *= 0.6 + 0.6 * shot.parting * np.linspace(-1, 1, 5)
    crown[:, 1] += drop
    line = np.concatenate([mirror(temple, -1.0), crown, temple[::-1]])
    hairline = head.put(smooth(line), 0.005)
    outer = smooth(head.rim(_upper_rim(head, volume), back=0.07))
    if shot.style == "curly":
        angle = np.linspace(0, 26 * np.pi, len(outer))
        outer = outer + (outer - outer.mean(0)) * (0.03 * np.abs(np.sin(angle / 2)))[:, None]
        outer += rng.uniform(-0.004, 0.004, outer.shape)
    inner = resample(hairline, len(outer))
    canvas.band(outer, inner, colour, HAIR)
    if shot.style == "curly":
        _curls(canvas, outer, inner, colour, rng)
    else:
        _strands(canvas, outer, inner, 8 if shot.style == "buzz" else 28, colour, rng)
    canvas.stroke(inner, 0.007, colour * 0.8)
    if length >= 0.25:
        _locks(shot, canvas, head, colour * 0.94, rng)


def beard(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    """Stubble, moustache, goatee or full beard; labelled as skin."""
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
        inside = np.array([(1.0, 0.0), (0.90, 0.1), (0.72, 0.19), (0.6, 0.27), (0.45, 0.315), (0, 0.325)])
        inside[:, 0] *= 0.285 * person.face_width
        inside[3:, 1] += chin_drop
        outside = head.outline[EAR:0:-1]
        edge = np.concatenate([head.put(mirror(inside, -1.0)), head.put(inside[-2::-1])])
        rim = np.concatenate([head.rim(outside), head.rim(mirror(head.outline[: EAR + 1], -1.0))])
        rim[:, 1] += 0.006  # below the jaw, so that no skin shines through
        canvas.fill(np.concatenate([smooth(edge), smooth(rim)]), tone, SKIN)
        _single_hairs(canvas, head, person, smooth(both_sides(inside)), tone)
    if person.beard in ("goatee", "full"):
        wide = 0.62 if person.beard == "goatee" else 0.9
        patch = np.array(
            [(-wide, 0.31), (-0.25, 0.297), (0, 0.305), (0.25, 0.297), (wide, 0.31), (wide * 0.9, 0.37),
             (0.3, 0.405), (-0.3, 0.405), (-wide * 0.9, 0.37)]
        )  # fmt: skip
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


def _hair_style(shot: Shot) -> HairStyle:
    """The photo's entry of HAIR_STYLES, pressed flat under a hat."""
    style = HAIR_STYLES[shot.style]
    return style if shot.hat == "none" else style._replace(volume=min(style.volume, 0.05))


def _upper_rim(head: Head, grow: float) -> Array:
    """(n, 2) frontal outline over the skull from the left ear to the right, ``grow`` larger."""
    half = head.outline[EAR:] * (1 + grow)
    half[0, 1] = 0.06
    return both_sides(half)


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


def _curls(canvas: Canvas, outer: Array, inner: Array, colour: Array, rng: np.random.Generator) -> None:
    """A row of small arcs between the hair's outer and inner edge."""
    row = outer[10:-10:3] * 0.62 + inner[10:-10:3] * 0.38
    for x, y in row + rng.uniform(-0.02, 0.02, row.shape):
        curl = circle(x, y, 0.022, 0.02, 14)[:9]
        canvas.stroke(curl, 0.008, colour * rng.uniform(0.7, 1.2))


def _locks(shot: Shot, canvas: Canvas, head: Head, colour: Array, rng: np.random.Generator) -> None:
    """Long hair beside the face."""
    volume, length, _, wave = _hair_style(shot)
    side = head.outline[EAR, 0]
    for sign in (-1.0, 1.0):
        down = np.linspace(-0.14, length - 0.02, 9)
        sway = wave * 0.25 * np.sin(np.arange(9) * 2.1 + sign + shot.strand_seed % 7)
        near = xy(side * (0.94 - 0.10 * (down > 0.1)) + sway, down)
        far = xy(side * (1.06 + volume) + sway, down)
        near[0], far[0] = (0.8 * side, -0.22), (1.0 * side, -0.26)
        lock_in = smooth(head.rim(mirror(near, sign), back=0.0))
        lock_out = smooth(head.rim(mirror(far, sign), back=0.07))
        canvas.band(lock_in, lock_out, colour, HAIR)
        _strands(canvas, lock_in, lock_out, 14, colour, rng)


def _single_hairs(canvas: Canvas, head: Head, person: Person, edge: Array, tone: Array) -> None:
    """Single hairs along the edge of a beard, at places fixed for the person."""
    x, y = person.stubble[:60].T
    grown = (y > np.interp(x, edge[:, 0], edge[:, 1]) + 0.01) & (np.abs(x) > 0.06)
    x, y, lifts = x[grown], y[grown], np.linspace(0.75, 1.35, 60)[grown]
    hairs = np.linspace(xy(x, y), xy(x * 0.97, y + 0.028), 5, axis=1).reshape(-1, 2)
    for hair, lift in zip(head.put(hairs).reshape(-1, 5, 2), lifts, strict=True):
        canvas.stroke(hair, 0.005, np.minimum(tone * lift, 255))
