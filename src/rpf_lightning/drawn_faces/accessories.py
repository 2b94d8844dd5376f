"""What a person wears: clothes, necklace, earrings, glasses and hats."""

from __future__ import annotations

import numpy as np

from rpf_lightning.drawn_faces.canvas import CLOTH, EARRING, GLASSES, HAT, NECKLACE, Canvas
from rpf_lightning.drawn_faces.colours import SHADE, WHITE, mix
from rpf_lightning.drawn_faces.geometry import Array, both_sides, circle, mirror, smooth, xy
from rpf_lightning.drawn_faces.head import Head
from rpf_lightning.drawn_faces.person import Person, Shot


def necklace(shot: Shot, canvas: Canvas, neck: tuple[float, float]) -> None:
    """A chain around the neck, given by its middle and half width."""
    x, wide = neck
    left, right = x - wide, x + wide
    chain = smooth(
        [(left - 0.02, 0.915), (x - 0.1, 0.965), (x, 0.982), (x + 0.1, 0.965), (right + 0.02, 0.915)]
    )
    canvas.stroke(chain, 0.013, shot.metal * 0.7, NECKLACE, ends=0.8)
    canvas.stroke(chain, 0.007, shot.metal, NECKLACE, ends=0.8)


def clothes(shot: Shot, canvas: Canvas, neck: tuple[float, float]) -> None:
    """The shoulders and the neckline around the neck, given by its middle and half width."""
    x, wide = neck
    top = {"crew": 0.97, "vee": 1.06, "turtle": 0.9, "collar": 0.99}[shot.neckline]
    edge = 0.88 if shot.neckline != "turtle" else 0.86
    shoulders = [(-0.6, 1.03), (x - wide - 0.2, 0.955), (x - wide - 0.02, edge), (x - 0.11, (edge + top) / 2)]
    shoulders.append((x, top))
    mirrored = [(2 * x - px, py) for px, py in shoulders[-2::-1]]
    curve = smooth(shoulders + mirrored)
    canvas.fill(np.concatenate([curve, [(2.0, 1.1), (-1.0, 1.1)]]), shot.cloth, CLOTH)
    canvas.stroke(curve, 0.02, shot.cloth * 0.8, CLOTH, ends=1.0)
    if shot.neckline == "collar":
        for sign in (-1.0, 1.0):
            flap = [(wide + 0.02, 0.87), (wide + 0.07, 0.93), (0.06, 1.03), (0.02, 0.98)]
            canvas.fill(mirror(flap, sign) + np.array([x, 0]), mix(shot.cloth, WHITE, 0.35), CLOTH)


def earrings(person: Person, shot: Shot, canvas: Canvas, head: Head) -> None:
    """One below each ear."""
    for sign in (-1.0, 1.0):
        lobe = np.array([[0.296 * sign * person.face_width, 0.105 * person.ear, -0.03]])
        x, y = head.project(lobe)[0]
        canvas.fill(circle(x, y, 0.016, 0.018), shot.metal * 0.75, EARRING)
        canvas.fill(circle(x - 0.003, y - 0.004, 0.009, 0.01), mix(shot.metal, WHITE, 0.5), EARRING)


def glasses(person: Person, canvas: Canvas, head: Head) -> None:
    """Frames without lenses: what lies behind them stays visible."""
    power = {"round": 2.0, "square": 4.5, "cat": 3.0}[person.glasses]
    angle = np.linspace(0, 2 * np.pi, 60)
    cos, sin = np.cos(angle), np.sin(angle)
    x = np.sign(cos) * np.abs(cos) ** (2 / power)
    y = np.sign(sin) * np.abs(sin) ** (2 / power)
    if person.glasses == "cat":
        y = y - 0.28 * np.maximum(x, 0) ** 2
    height = 0.074 if person.glasses == "round" else 0.06
    for sign in (-1.0, 1.0):
        rim = xy(person.eye_x * 1.03 + 0.083 * x, -0.02 + height * y)
        lens = head.put(mirror(rim, sign), 0.03)
        edge = 0.5 * person.frame_width
        normal = (lens - lens.mean(0)) / np.linalg.norm(lens - lens.mean(0), axis=1, keepdims=True)
        canvas.band(lens + edge * normal, lens - edge * normal, person.frame, GLASSES)  # a ring
        temple = mirror([(person.eye_x * 1.03 + 0.08, -0.04), (0.25, -0.045), (0.283, -0.04)], sign)
        canvas.stroke(
            head.put(temple, [0.03, 0.015, 0.0]), person.frame_width * 0.9, person.frame, GLASSES, ends=0.9
        )
    gap = person.eye_x * 1.03 - 0.08
    bridge = smooth([(-gap, -0.03), (0, -0.042), (gap, -0.03)])
    canvas.stroke(head.put(bridge, 0.05), person.frame_width, person.frame, GLASSES, ends=0.9)


def hat(shot: Shot, canvas: Canvas, head: Head) -> None:
    """A beanie, a cap or a hat with a brim, and its shadow on the forehead."""
    colour = shot.hat_colour
    x = np.linspace(-1, 1, 15)
    low = {"beanie": -0.17, "cap": -0.19, "brim": -0.2}[shot.hat]
    bend = 0.03 * (1 - x**2)

    def level(y: float, grow: float, rise: float = 0.0) -> Array:
        """(15, 2) the line around the head at height y, from rim to rim."""
        wide = float(np.interp(-y, -head.outline[:, 1], head.outline[:, 0])) * (1 + grow)
        around = head.put(xy(x * wide, y - bend), rise)
        around[[0, -1]] = head.rim([(-wide, y), (wide, y)], back=0.05)
        return around

    line = level(low, 0.11)
    dome = head.outline[head.outline[:, 1] < low - 0.03] * 1.14
    crown = smooth(np.concatenate([line[:1], head.rim(both_sides(dome), 0.05), line[-1:]]))
    canvas.band(crown, smooth(line), colour, HAT)
    if shot.hat == "beanie":
        high = level(low - 0.085, 0.14, 0.02)
        canvas.band(smooth(line), smooth(high), colour * 0.82, HAT)
        for i in range(1, 14):
            canvas.stroke(np.linspace(line[i], high[i], 4), 0.006, colour * 0.65, ends=0.8)
    elif shot.hat == "cap":
        flat = xy(x * 0.25, low + 0.02 - 0.4 * bend)
        peak, root = smooth(head.put(flat, 0.16 * (1 - x**2))), smooth(head.put(flat - (0, 0.045), 0.02))
        canvas.band(root, peak, colour * 0.75, HAT)
        canvas.stroke(root, 0.006, colour * 0.55)
    else:
        canvas.band(smooth(line), smooth(level(low - 0.06, 0.12)), colour * 0.5, HAT)
        brim = np.column_stack([0.48 * x, low - 0.03 + 0.05 * np.cos(1.5 * x), np.full(15, 0.1)])
        edge = smooth(head.project(brim))
        # a head that is bent back shows no forehead between crown and brim
        canvas.band(smooth(line), edge, colour * 0.5, HAT)
        canvas.band(edge, edge - (0, 0.05), colour * 0.86, HAT)
    head.spots(xy(0.25 * x[2:-2:2], low + 0.03), (0.04, 0.022), 0.14 * SHADE)
