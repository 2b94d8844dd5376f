"""Portraits of people, read once for any number of photos, and which face of a photo is whose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rpf_lightning.data.preparation.sources import identities_from_folders, list_photos
from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks
from rpf_lightning.enhancing.choosing import reference_face
from rpf_lightning.enhancing.found import FoundFace, FoundFaces, LeftFace, Photo, check_size, photo_name, read
from rpf_lightning.enhancing.identity_check import Comparison, Limits, compare, limits_of
from rpf_lightning.enhancing.paste import box_around


@dataclass(frozen=True, eq=False)
class Portrait:
    """A reference that was read and whose face was found.

    Attributes:
        name: For messages.
        face: The face in its photo.
        warnings: What the user should know of the file, as sentences.
    """

    name: str
    face: AlignedFace
    warnings: tuple[str, ...]


class Matches(NamedTuple):
    """Which face of a photo is whose.

    Attributes:
        people: Face -> name of the person.
        left: The other faces.
    """

    people: dict[int, str]
    left: tuple[LeftFace, ...]


def read_portrait(
    photo: Photo | Portrait, networks: FaceNetworks, otherwise: str = "the portrait"
) -> Portrait:
    """Read a portrait and find its face; one that was read before is given back.

    Args:
        photo: A file, an array, or what this function gave.
        networks: The detector.
        otherwise: What messages call an array.

    Raises:
        RefusedError: If it does not show one large face, or has too many pixels, see `check_size`.
        FileNotFoundError: If it or the detector's weights are missing.
        ValueError: If it cannot be read or is no RGB image.
    """
    if isinstance(photo, Portrait):
        return photo
    check_size(photo)
    name, warnings = photo_name(photo, otherwise), list[str]()
    face = reference_face(read(photo, name, warnings), name, networks)
    return Portrait(name, _surroundings(face), tuple(warnings))


def _surroundings(face: AlignedFace) -> AlignedFace:
    """The face in what lies around it: a whole photo of each person would be held in memory."""
    assert face.points is not None  # a detector found it
    side = ceil(face.side)
    left, top, right, bottom = box_around(face.matrix, face.image, side)
    return replace(
        face,
        image=face.image[top:bottom, left:right].copy(),
        points=face.points - (left, top),
        matrix=face.matrix - [[0, 0, left], [0, 0, top]],
    )


def check_portraits(photos: Sequence[Photo | Portrait], of: str) -> None:
    """Check a list of portraits before anything is decoded; `of` is the argument, for messages.

    Raises:
        RefusedError: If one has too many pixels, see `check_size`.
        FileNotFoundError: If one is missing.
        ValueError: If it is no list or empty, or one is no image.
    """
    if isinstance(photos, str | Path | np.ndarray | Portrait):
        raise ValueError(f"{of}: expected a list of portraits, got a single one")
    if not photos:
        raise ValueError(f"{of}: expected one portrait at least, got none")
    for photo in photos:
        if not isinstance(photo, Portrait):
            check_size(photo)


def read_portraits(
    photos: Sequence[Photo | Portrait], of: str, networks: FaceNetworks, otherwise: str = "portrait"
) -> list[Portrait]:
    """Read a list of portraits, see `read_portrait`; `of` is the argument, for messages.

    Raises:
        ValueError: If it is no list or empty, and as `read_portrait`.
    """
    check_portraits(photos, of)
    return [read_portrait(photo, networks, f"{otherwise} {i}") for i, photo in enumerate(photos)]


def people_in(folder: str | Path) -> dict[str, list[Path]]:
    """List a folder of portraits per person: name of the folder -> its photos.

    Raises:
        FileNotFoundError: If there is no such folder, or no photo in it.
        ValueError: If a photo lies beside the people's folders.
    """
    files = list_photos(folder)
    people: dict[str, list[Path]] = {}
    for file, name in identities_from_folders(files).items():
        if not name:
            raise ValueError(f"{folder}: expected a folder per person, and {file} lies beside them")
        people.setdefault(name, []).append(files[file])
    return people


def read_people(
    people: Mapping[str, Sequence[Photo]], networks: FaceNetworks, warnings: list[str]
) -> dict[str, list[Portrait]]:
    """Read the portraits of several people, of which bad ones are left out.

    Args:
        people: Name -> portraits.
        networks: The detector.
        warnings: Gets a sentence for each portrait that cannot be used, and for each person who is left without one.

    Returns:
        Name -> portraits, one at least; who has none is left out.

    Raises:
        FileNotFoundError: If a portrait or the detector's weights are missing.
        ValueError: If nobody has a portrait.
    """
    usable: dict[str, list[Portrait]] = {}
    for name, photos in people.items():
        for place, photo in enumerate(photos):
            try:
                usable.setdefault(name, []).append(
                    read_portrait(photo, networks, f"portrait {place} of {name}")
                )
            except ValueError as error:
                warnings.append(f"a portrait of {name} is left out: {error}")
        if not usable.get(name):
            warnings.append(f"{name} has no portrait that can be used and is not sought")
            usable.pop(name, None)
    if not usable:
        raise ValueError("; ".join(["people: expected one portrait at least that can be used", *warnings]))
    return usable


def match_people(
    found: FoundFaces,
    people: Mapping[str, Sequence[Portrait]],
    networks: FaceNetworks,
    taken: Collection[int] = (),
) -> Matches:
    """Tell by identity which face is whose: each person has one face at most, each face one person at most.

    A face is compared with every portrait of every person where it is large enough to tell people apart
    (`identity_check`); of all pairs that surely match, the most alike one is taken, then the most alike one of the
    faces and people that remain, and so on.

    Args:
        found: The photo's faces.
        people: Name -> portraits.
        networks: The recogniser.
        taken: Faces that have their person already; they are not compared.

    Returns:
        The people, and every other face that is not taken, with the reason.

    Raises:
        FileNotFoundError: If the recogniser's weights are missing.
    """
    free = [face for face in found if face.index not in taken]
    alike: dict[tuple[int, str], Comparison] = {}
    for face in free:
        for name, portraits in people.items():
            compared = [c for p in portraits if (c := compare(face.aligned, p.face, networks))]
            if compared:
                alike[face.index, name] = max(compared)
    matched: dict[int, str] = {}
    for (index, name), comparison in sorted(alike.items(), key=lambda pair: -pair[1].cosine):
        if comparison.matches and index not in matched and name not in matched.values():
            matched[index] = name
    left = []
    for face in free:
        if face.index not in matched:
            of_face = {name: comparison for (index, name), comparison in alike.items() if index == face.index}
            left.append(
                LeftFace(face.index, face.side, _why_left(face, of_face, matched, limits_of(networks)))
            )
    return Matches(matched, tuple(left))


def _why_left(
    face: FoundFace, alike: Mapping[str, Comparison], matched: Mapping[int, str], limits: Limits
) -> str:
    """Why a face has no person; `alike` is how it compares with each person."""
    if face.side < limits.smallest_side:
        said = f"below {limits.smallest_side} pixels, people cannot be told apart"
        return f"{said}; --face {face.index}=PORTRAIT says who it is"
    if not alike:
        return f"no portrait has a face of {limits.smallest_side} pixels, which comparing needs"
    nearest = max(alike, key=lambda name: alike[name])
    said = f"most like {nearest}, cosine {alike[nearest].cosine:.2f}"
    if not alike[nearest].matches:
        return f"{said}, and a sure match has {limits.same} or more"
    (other,) = (index for index, name in matched.items() if name == nearest)
    return f"{said}, who is face {other}"
