"""The skin: head, ears, neck, relief, texture, wrinkles and marks."""

from __future__ import annotations

import numpy as np

from rpf_lightning.drawn_faces.canvas import L_EAR, NECK, R_EAR, SKIN, Canvas
from rpf_lightning.drawn_faces.colours import BROWN, SHADE, mix
from rpf_lightning.drawn_faces.geometry import Array, circle, mirror, smooth, xy
from rpf_lightning.drawn_faces.head import EAR, Head
from rpf_lightning.drawn_faces.person import Person, Shot

MOLE = np.array([1.0, 0.85, 0.8])  # a mole's hue, as a share of the skin's
HALO = 0.03  # sigma of the lighter skin around marks: half a pixel of a 16x16 picture


def neck(person: Person, canvas: Canvas, head: Head) -> tuple[float, float]:
    """The neck and the head's shadow on it; returns its middle and half width in the picture."""
    x = float(head.project(np.array([[0.0, 0.3, 0.02]]))[0, 0])
    wide = 0.185 * person.face_width + 0.05 * person.jaw
    left = x - wide
    flare = np.array([(left, 0.6), (left, 0.86), (left - 0.03, 0.95), (left - 0.12, 1.02)])
    outline = np.concatenate([smooth(flare), smooth(flare * (-1, 1) + (2 * x, 0))[::-1]])
    canvas.fill(outline, person.skin * 0.86, NECK)
    shadow = head.rim(np.concatenate([mirror(head.outline[6::-1], -1.0), head.outline[1:7]]))
    canvas.fill(smooth(shadow + np.array([0, 0.045])), person.skin * 0.66, NECK)
    return x, wide


def ears(person: Person, canvas: Canvas, head: Head) -> None:
    """Both ears."""
    shape = [(0.262, -0.03, -0.01), (0.295, -0.07, -0.05), (0.322, -0.055, -0.09), (0.322, 0.0, -0.09)]
    shape += [(0.306, 0.055, -0.06), (0.292, 0.095, -0.03), (0.268, 0.09, 0.0)]
    inner = np.array(
        [(0.285, -0.03, -0.03), (0.308, -0.035, -0.07), (0.304, 0.01, -0.07), (0.286, 0.04, -0.03)]
    )
    for sign, label in ((-1.0, L_EAR), (1.0, R_EAR)):
        scale = np.array([sign * person.face_width, person.ear, 1.0])
        canvas.fill(smooth(head.project(np.array(shape) * scale), closed=True), person.skin * 0.92, label)
        canvas.stroke(smooth(head.project(inner * scale)), 0.012, person.skin * 0.7)


def skull(person: Person, canvas: Canvas, head: Head) -> Array:
    """The head's skin; returns the 17 jaw landmarks."""
    rim = np.concatenate(
        [mirror(head.outline[EAR:0:-1], -1.0), head.outline[:-1], mirror(head.outline[:EAR:-1], -1.0)]
    )
    points = head.rim(rim)
    canvas.fill(smooth(points, closed=True), person.skin, SKIN)
    return points[:17]


def relief(person: Person, shot: Shot, head: Head) -> None:
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


def texture(person: Person, head: Head) -> None:
    """Uneven skin and freckles, fixed for the person."""
    patch = person.texture
    head.spots(patch[:, :2], patch[:, 2:3], -patch[:, 3:] * SHADE)
    if len(person.freckles):
        head.spots(person.freckles[:, :2], person.freckles[:, 2:], 0.36 * BROWN)
        area = 2 * np.pi * person.freckles[:, 2:] ** 2
        _halo(head, person.freckles[:, :2], -0.3 * BROWN * area)


def wrinkles(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    """Lines of the forehead, crow's feet and nasolabial folds."""
    line = mix(person.skin * 0.72, person.skin, 0.35 * (1 - person.age))
    for i in range(person.forehead_lines):
        x = np.linspace(-0.12 + 0.01 * i, 0.13 - 0.015 * i, 14)
        y = -0.175 - 0.032 * i - 0.01 * shot.brow_raise + 0.006 * np.sin(30 * x + 2 * i)
        canvas.stroke(head.put(xy(x, y)), 0.0045 + 0.002 * shot.brow_raise, line)
    for sign in (-1.0, 1.0):
        for i in range(person.crow_feet):
            x0 = person.eye_x + person.eye_width + 0.008
            ray = np.array([(x0, -0.035 + 0.010 * i), (x0 + 0.03, -0.05 + 0.022 * i)])
            canvas.stroke(head.put(mirror(np.linspace(ray[0], ray[1], 5), sign)), 0.0045, line)
        if person.folds > 0.35:
            bend = 0.014 * max(shot.smile, 0)
            fold = [(0.076, 0.108), (0.1 + bend, 0.142), (0.114 + bend, 0.175), (0.118 + bend, 0.21)]
            canvas.stroke(head.put(mirror(smooth(fold), sign)), 0.003 + 0.005 * person.folds, line)


def marks(person: Person, canvas: Canvas, head: Head) -> None:
    """Moles and the scar: what a 16x16 picture cannot show."""
    seen = head.facing(person.moles[:, :2]) > 0.5
    centres = head.put(person.moles[:, :2], 0.003)
    for (x, y), size, tone in zip(centres[seen], person.moles[seen, 2], person.mole_tone[seen], strict=True):
        canvas.fill(circle(x, y, 0.5 * size, 0.48 * size), person.skin * tone * MOLE)
    area = np.pi / 4 * person.moles[:, 2:] ** 2
    _halo(head, person.moles[:, :2], area * (1 - person.mole_tone[:, None] * MOLE))
    if len(person.scar):
        scar = head.put(smooth(person.scar), 0.003)
        canvas.stroke(scar + np.array([0.0025, 0.0035]), 0.006, person.skin * (0.68, 0.5, 0.5), ends=0.3)
        canvas.stroke(scar, 0.006, np.minimum(person.skin * 1.12 + 22, 255), ends=0.3)


def _halo(head: Head, points: Array, lost: Array) -> None:
    """Gives the skin around marks the light that they take, so that a coarse pixel keeps its mean."""
    head.spots(points, HALO, lost / (2 * np.pi * HALO**2))
