"""A vector face: records of a person and a photo, and the parts that draw them.

Face coordinates are in units of the picture's side, seen from the front: x to the right, y down, z towards
the camera, the origin in the middle of the head. Picture coordinates span 0..1 in x and y. "Left" is always
the image's left (lower x).

Each module imports only from earlier ones: ``geometry`` and ``colours``; ``canvas``; ``person`` and ``shot``,
the records with their random draws; ``head``, the posed surface; ``skin``, ``features``, ``hair``, ``beard`` and
``accessories``, one function per part; ``portrait``, which draws the parts in their order.
"""

from rpf_lightning.drawn_faces.canvas import GLASSES, HAT, NECK, SKIN, Canvas
from rpf_lightning.drawn_faces.geometry import Array
from rpf_lightning.drawn_faces.person import sample_person
from rpf_lightning.drawn_faces.portrait import draw_portrait
from rpf_lightning.drawn_faces.shot import Shot, sample_shot

__all__ = [
    "GLASSES",
    "HAT",
    "NECK",
    "SKIN",
    "Array",
    "Canvas",
    "Shot",
    "draw_portrait",
    "sample_person",
    "sample_shot",
]
