"""What covers the face of a reference, so that it is not transferred: glasses, hair, hands, microphones.

Glasses that the photo does not show are painted over with the skin around them; where dark ones hide the eyes, those
are left out of the mask as well. A hole of the glasses' shape would look like dark glasses to the model. Measured on
photos of CelebA-HQ without glasses, reduced to 16 pixels, with portraits of the same people, by LPIPS. Clear glasses:
.175 with the portrait as it is and .173 painted over (14 photos), .180 as it is and .185 with a hole (22 photos). Dark
ones (8 photos), whose rims are gone only without them: .179 as it is, .197 so, .203 with a hole; at 32 pixels .103,
.105 and .108.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.enhancing.aligned_faces import AlignedFace
from rpf_lightning.faces.glasses import SIDES, Glasses, find_glasses
from rpf_lightning.faces.labels import BISENET, FACIAL

LabelsOf = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
SIDE = 512  # of parsing maps
# places in aligned faces, as fractions of the side: top, bottom, left, right
BAND = (0.36, 0.63, 0.17, 0.83)  # nine of ten dark glasses of CelebA-HQ lie inside
EYES = ((0.445, 0.508, 0.32, 0.437), (0.445, 0.508, 0.563, 0.68))
AROUND_EYES = ((0.39, 0.56, 0.235, 0.5), (0.39, 0.56, 0.5, 0.765))
HIDDEN_EYES = ((0.38, 0.57, 0.2, 0.46), (0.38, 0.57, 0.54, 0.8))  # with the brows
MOUTH = (0.55, 0.8, 0.38, 0.62)  # and the nose's tip
# measured on 3,000 parsing maps of CelebA-HQ
GLASSES = 0.02  # share of the band that glasses have at least; those that are worn on the hair have none
DARK = 0.4  # brightness at the eyes, as a share of the skin's: of lenses through which no eye is seen, mostly less
COVERED_EYE = 0.5  # share of an eye's place that is not facial where no eye is seen: 7 photos, by hair
COVERED_MOUTH = (
    0.1  # share of nose and mouth that is not facial: 10 photos, with hands, microphones, profiles
)
RIM, LID = 4, 2  # pixels of 512 by which glasses are larger than their class, and eyes
ENOUGH = 0.15  # of the weights around a pixel that is painted over


@dataclass(frozen=True, eq=False)
class Cover:
    """What lies over a face.

    Attributes:
        glasses: Whether it wears glasses.
        region: (512, 512) bool: where the glasses are; eyes that are seen through them are left out. None: not known.
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
        labels_of: Its parsing map: (S, S, 3) uint8 -> (512, 512) labels in BiSeNet's order. None: glasses are looked
            for in the pixels, and dark ones are somewhere in a band around the eyes; other things cannot be known.
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
    reference: NDArray[np.uint8], mask: NDArray[np.uint8], cover: Cover, photo: Glasses, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    """Leave out of a reference what is not to be transferred.

    Args:
        reference: (S, S, 3) uint8, aligned.
        mask: (512, 512) uint8 of 0 and 1, its face.
        cover: What covers it.
        photo: The glasses of the face that is enhanced.
        name: Of the reference, for messages.

    Returns:
        The reference, the mask, and warnings.
    """
    warnings = [
        f"{name}: {thing}, which may appear in the result; a portrait that shows the whole face is better"
        for thing in cover.things
    ]
    if cover.foreign_glasses(photo):
        if cover.region is None:
            left = "where they are is not known without a parsing network (--mask-model bisenet), rims may appear"
        else:
            reference = _painted_over(reference, mask, cover.region)
            left = "they are painted over with the skin around them"
        if cover.region is not None and cover.glasses.dark:
            hidden = np.zeros_like(cover.region)
            for place in HIDDEN_EYES:
                _part(hidden, place)[:] = True
            mask = mask * ~(hidden & cover.region)
            left = "they are masked out, and the eyes come from the photo alone"
        kind = "dark glasses" if cover.glasses.dark else "glasses"
        warnings.append(f"{name} shows {kind} that the photo does not: {left}; a portrait without is better")
    return reference, mask, warnings


def _painted_over(
    reference: NDArray[np.uint8], mask: NDArray[np.uint8], region: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Fill a region with the weighted mean of the face around it, as near as there is some."""
    from scipy.ndimage import gaussian_filter  # imported here: slow to import

    side = len(reference)
    left, face = (
        np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.NEAREST))
        for part in (region, mask.astype(bool))
    )
    weights = (face & ~left).astype(np.float64)
    painted, left = reference.astype(np.float64), left.copy()
    for width in (side / 128, side / 64, side / 32, side / 16, side / 8):
        near = gaussian_filter(weights, width)
        now = left & (near > ENOUGH)
        for channel in range(3):
            mean = gaussian_filter(reference[..., channel] * weights, width)
            painted[now, channel] = mean[now] / near[now]
        left &= ~now
    return painted.round().astype(np.uint8)


def _parsed(square: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Cover:
    is_a = {name: labels == value for value, name in enumerate(BISENET)}
    eye, lenses = is_a["l_eye"] | is_a["r_eye"], is_a["eye_g"]
    any_glasses = bool(_part(lenses, BAND).mean() > GLASSES)
    dark = any_glasses and (not _part(eye, BAND).any() or _is_dark(square, is_a["skin"]))
    region = None
    if any_glasses:
        region = np.zeros_like(lenses)
        _part(region, BAND)[:] = _part(_grown(lenses, RIM) & (dark | ~_grown(eye, LID)), BAND)
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


def _grown(values: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation  # imported here: slow to import

    return np.asarray(binary_dilation(values, iterations=pixels))


def _is_dark(square: NDArray[np.uint8], skin: NDArray[np.bool_]) -> bool:
    light = square @ np.array([0.299, 0.587, 0.114])
    at_eyes = float(np.mean([np.median(_part(light, place)) for place in EYES]))
    return bool(skin.any()) and at_eyes < DARK * float(np.median(light[skin]))


def _part(values: NDArray[Any], place: tuple[float, float, float, float]) -> NDArray[Any]:
    top, bottom, left, right = (round(fraction * SIDE) for fraction in place)
    return values[top:bottom, left:right]
