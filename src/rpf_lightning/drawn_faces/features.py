"""The features with landmarks: eyes, brows, nose and mouth."""

from __future__ import annotations

import numpy as np

from rpf_lightning.drawn_faces.canvas import L_BROW, L_EYE, L_LIP, MOUTH, NOSE, R_BROW, R_EYE, U_LIP, Canvas
from rpf_lightning.drawn_faces.colours import SHADE, WHITE, mix
from rpf_lightning.drawn_faces.geometry import Array, circle, mirror, smooth, xy
from rpf_lightning.drawn_faces.head import Head
from rpf_lightning.drawn_faces.person import Person, Shot

ALONG_LID = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 25))  # dense at the corners, where lids bend


def eye(person: Person, shot: Shot, canvas: Canvas, head: Head, sign: float) -> Array:
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

    def lid(t: Array, y: Array) -> Array:
        return head.put(xy(sign * person.eye_x + t * wide, -0.03 + y))

    t = ALONG_LID
    top, bottom = upper(t), lower(t)
    upper_edge = lid(t, top)
    canvas.band(upper_edge, lid(t, bottom), np.array([240.0, 236, 232]), label)
    shadow = lid(t, np.minimum(top + 0.010, bottom))
    canvas.band(upper_edge, shadow, np.array([196.0, 188, 186]))
    corner = np.array([-0.99, -0.8]) if sign > 0 else np.array([0.8, 0.99])
    duct = np.concatenate([lid(corner, upper(corner)), lid(corner[::-1], lower(corner[::-1]))])
    canvas.fill(duct, np.array([214.0, 150, 142]))

    def disc(radius: float, colour: Array, dx: float = 0.0, dy: float = 0.0) -> None:
        points = circle(shot.gaze[0] * 0.02 + dx, shot.gaze[1] * 0.008 - 0.006 + dy, radius, radius)
        u = (points[:, 0] / wide).clip(-1, 1)
        canvas.fill(lid(u, np.minimum(np.maximum(points[:, 1], upper(u)), lower(u))), colour)

    disc(0.0255, person.iris * 0.45)
    disc(0.0215, person.iris)
    disc(0.0165, mix(person.iris, WHITE, 0.14), dy=0.003)
    disc(0.0095, np.array([14.0, 11, 11]))
    disc(0.005, np.array([250.0, 250, 250]), 0.009 * (1 if shot.light[0] > 0 else -1), -0.008)
    skin = person.skin
    canvas.stroke(lid(t, bottom + 0.002), 0.004, skin * 0.62)
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


def brow(person: Person, shot: Shot, canvas: Canvas, head: Head, sign: float) -> Array:
    """One brow; returns its 5 landmarks from left to right."""
    s = np.linspace(0, 1, 5)  # from the nose outwards
    x = person.brow_gap + s * person.brow_length
    arch = person.brow_arch * np.array([0, 0.65, 1, 0.85, 0.1])
    y = person.brow_y - arch - person.brow_slant * s - 0.025 * shot.brow_raise
    spine = xy(x, y)
    points = head.put(mirror(spine, sign), 0.005)
    curve = smooth(mirror(spine, sign))
    along = np.linspace(0, 1, len(curve))
    half = 0.5 * person.brow_width * np.minimum(1, 0.62 + 2.2 * along) * np.clip(1.18 - along, 0.12, 0.9)
    thickness = half[:, None] * (0.0, 1.0)
    shape = np.concatenate([curve - thickness, (curve + thickness)[::-1]])
    tone = mix(person.brow_colour, person.skin, 0.22)
    canvas.fill(head.put(shape, 0.005), tone, L_BROW if sign < 0 else R_BROW)
    rooted = slice(1, len(curve) - 2, 3)
    lean = xy(sign * (0.010 + 0.012 * along[rooted]), 0.0)
    root, tip = curve[rooted] + 0.9 * thickness[rooted], curve[rooted] + lean - 0.45 * thickness[rooted]
    hairs = np.linspace(root, tip, 4, axis=1).reshape(-1, 2)
    for hair in head.put(hairs, 0.005).reshape(-1, 4, 2):
        canvas.stroke(hair, 0.004, person.brow_colour * 0.8)
    return points if sign > 0 else points[::-1]


def nose(person: Person, canvas: Canvas, head: Head) -> Array:
    """The nose; returns its 9 landmarks."""
    width, low = 0.066 * person.nose_width, person.nose_length
    bridge = [(0, -0.035), (0, 0.005), (0, 0.045 + low / 2), (0, 0.08 + low)]
    base = np.array([(-0.72, 0.112), (-0.36, 0.121), (0, 0.127), (0.36, 0.121), (0.72, 0.112)])
    base = base * (width, 1) + (0, low)
    landmarks = np.concatenate(
        [head.put(bridge, [0.01, 0.03, 0.06, 0.09]), head.put(base, [0.02, 0.045, 0.06, 0.045, 0.02])]
    )
    side = np.array([(0.3 * person.bridge, -0.035), (0.36 * person.bridge, 0.02), (0.62, 0.065), (1.0, 0.088),
                     (0.98, 0.108)]) * (width, 1)  # fmt: skip
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


def mouth(person: Person, shot: Shot, canvas: Canvas, head: Head) -> Array:
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
    flat = np.concatenate([xy(t * width, y) for t, y in rows])
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
        teeth = np.concatenate([xy(t, roof), xy(t, floor)[::-1]]) * (width, 1)
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
    canvas.band(upper_edge, inner_top, person.lip * 0.88, U_LIP)
    canvas.band(lower_edge, inner_bottom, person.lip, L_LIP)
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
