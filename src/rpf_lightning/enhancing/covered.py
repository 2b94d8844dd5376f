"""What covers the face of a reference, so that it is not transferred: glasses, hair, hands, microphones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.enhancing.aligned_faces import AlignedFace
from rpf_lightning.faces.glasses import SIDES, Glasses, find_glasses
from rpf_lightning.faces.labels import BISENET, FACIAL

LabelsOf = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
SIDE = 512  # of parsing maps
# places in aligned faces, as fractions of the side: top, bottom, left, right
BAND = (0.36, 0.63, 0.17, 0.83)  # nine of ten dark glasses of CelebA-HQ lie inside
EYES = ((0.445, 0.508, 0.32, 0.437), (0.445, 0.508, 0.563, 0.68))
AROUND_EYES = ((0.39, 0.56, 0.235, 0.5), (0.39, 0.56, 0.5, 0.765))
MOUTH = (0.55, 0.8, 0.38, 0.62)  # and the nose's tip
# measured on 3,000 parsing maps of CelebA-HQ
GLASSES = 0.02  # share of the band that glasses have at least; those that are worn on the hair have none
DARK = 0.4  # brightness at the eyes, as a share of the skin's: of lenses through which no eye is seen, mostly less
COVERED_EYE = 0.5  # share of an eye's place that is not facial where no eye is seen: 7 photos, by hair
COVERED_MOUTH = (
    0.1  # share of nose and mouth that is not facial: 10 photos, with hands, microphones, and profiles
)


@dataclass(frozen=True, eq=False)
class Cover:
    """What lies over a face.

    Attributes:
        glasses: Whether it wears glasses.
        region: (512, 512) bool: what is masked out where the photo shows no such glasses; None: nowhere is known.
        things: What else there is, in words.
    """

    glasses: Glasses
    region: NDArray[np.bool_] | None = None
    things: tuple[str, ...] = ()

    def hides(self, photo: Glasses) -> bool:
        """Whether the face shows less than that of a photo with these glasses."""
        return bool(self.things) or self.foreign_glasses(photo)

    def foreign_glasses(self, photo: Glasses) -> bool:
        """Whether it wears glasses that the photo does not show."""
        return (self.glasses.dark and not photo.dark) or (self.glasses.any and not photo.any)


def glasses_of(face: AlignedFace) -> Glasses:
    """Whether a face wears glasses, from the pixels that it has."""
    return find_glasses(face.crop(int(np.clip(face.side, SIDES[0], SIDES[-1]))))


def cover_of(face: AlignedFace, labels_of: LabelsOf | None) -> Cover:
    """Find what covers a face.

    Args:
        face: The face.
        labels_of: Its parsing map: (S, S, 3) uint8 -> (512, 512) labels in BiSeNet's order. None: glasses alone are
            looked for, and only of dark ones it is known where they are.
    """
    if labels_of is not None:
        square = face.crop(SIDE)
        return _parsed(square, labels_of(square))
    glasses = glasses_of(face)
    region = None
    if glasses.dark:
        region = np.zeros((SIDE, SIDE), bool)
        _part(region, BAND)[:] = True
    return Cover(glasses, region)


def uncovered(
    mask: NDArray[np.uint8], cover: Cover, photo: Glasses, name: str
) -> tuple[NDArray[np.uint8], list[str]]:
    """Leave out of a reference's mask what is not to be transferred.

    Args:
        mask: (512, 512) uint8 of 0 and 1.
        cover: What covers the reference.
        photo: The glasses of the face that is enhanced.
        name: Of the reference, for messages.

    Returns:
        The mask, and warnings.
    """
    warnings = [
        f"{name}: {thing}, which may appear in the result; a portrait that shows the whole face is better"
        for thing in cover.things
    ]
    if cover.foreign_glasses(photo):
        kind = "dark glasses" if cover.glasses.dark else "glasses"
        if cover.region is None:
            left = "where exactly is not known without a parsing network (--mask-model bisenet), their rims may appear"
        else:
            mask = mask * ~cover.region
            left = "they are masked out" + (
                ", the eyes come from the photo alone" if cover.glasses.dark else ""
            )
        warnings.append(
            f"{name}: the person wears {kind}, and in the photo none are seen: {left}; a portrait without is better"
        )
    return mask, warnings


def _parsed(square: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Cover:
    is_a = {name: labels == value for value, name in enumerate(BISENET)}
    eye, lenses = is_a["l_eye"] | is_a["r_eye"], is_a["eye_g"]
    any_glasses = bool(_part(lenses, BAND).mean() > GLASSES)
    dark = any_glasses and (not _part(eye, BAND).any() or _is_dark(square, is_a["skin"]))
    region = None
    if any_glasses:
        region = np.zeros_like(lenses)
        _part(region, BAND)[:] = _part(lenses | (eye if dark else False), BAND)
    facial = np.isin(labels, [value for value, name in enumerate(BISENET) if name in FACIAL])
    hair = is_a["hair"] | is_a["hat"]
    things = []
    for place, around in zip(EYES, AROUND_EYES, strict=True):
        if not _part(eye, around).any() and _part(~facial, place).mean() > COVERED_EYE:
            over = "hair or a hat" if _part(hair, place).mean() > COVERED_EYE else "something"
            things.append(f"{over} covers an eye")
    if _part(~facial & ~hair, MOUTH).mean() > COVERED_MOUTH:
        things.append(
            "something (a hand, a microphone, the background of a profile) is where nose and mouth would be"
        )
    return Cover(Glasses(any_glasses, dark), region, tuple(dict.fromkeys(things)))


def _is_dark(square: NDArray[np.uint8], skin: NDArray[np.bool_]) -> bool:
    light = square @ np.array([0.299, 0.587, 0.114])
    at_eyes = float(np.mean([np.median(_part(light, place)) for place in EYES]))
    return bool(skin.any()) and at_eyes < DARK * float(np.median(light[skin]))


def _part(values: NDArray[np.generic], place: tuple[float, float, float, float]) -> NDArray[np.generic]:
    top, bottom, left, right = (round(fraction * SIDE) for fraction in place)
    return values[top:bottom, left:right]
