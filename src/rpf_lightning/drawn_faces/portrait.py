"""One photo of one person: every part, from the back to the front."""

from __future__ import annotations

import numpy as np

from rpf_lightning.drawn_faces import accessories, features, hair, skin
from rpf_lightning.drawn_faces.beard import beard
from rpf_lightning.drawn_faces.canvas import Canvas
from rpf_lightning.drawn_faces.geometry import Array
from rpf_lightning.drawn_faces.head import Head
from rpf_lightning.drawn_faces.person import Person
from rpf_lightning.drawn_faces.shot import Shot


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
    beard(person, shot, canvas, head)
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
