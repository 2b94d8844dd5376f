"""The beard."""

from __future__ import annotations

import numpy as np

from rpf_lightning.drawn_faces.canvas import SKIN, Canvas
from rpf_lightning.drawn_faces.colours import BROWN, mix
from rpf_lightning.drawn_faces.geometry import Array, mirror, smooth, xy
from rpf_lightning.drawn_faces.head import EAR, Head
from rpf_lightning.drawn_faces.person import Person
from rpf_lightning.drawn_faces.shot import Shot


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
    x, y = person.stubble[:60].T
    grown = (y > np.interp(x, edge[:, 0], edge[:, 1]) + 0.01) & (np.abs(x) > 0.06)
    x, y, lifts = x[grown], y[grown], np.linspace(0.75, 1.35, 60)[grown]
    hairs = np.linspace(xy(x, y), xy(x * 0.97, y + 0.028), 5, axis=1).reshape(-1, 2)
    for hair, lift in zip(head.put(hairs).reshape(-1, 5, 2), lifts, strict=True):
        canvas.stroke(hair, 0.005, np.minimum(tone * lift, 255))
