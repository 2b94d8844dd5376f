"""Which face of the photo, which face of a reference, and which reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.data.preparation.annotator import face_count_problem
from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks, RefusedError
from rpf_lightning.enhancing.found import FoundFaces
from rpf_lightning.enhancing.identity_check import Comparison, comparable, compare, limits_of
from rpf_lightning.faces.detection import Face
from rpf_lightning.faces.turned import find_any_way_up, upright_aligned


def reference_face(image: NDArray[np.uint8], name: str, networks: FaceNetworks) -> AlignedFace:
    """Find the one face of a reference, any way up; faces below a quarter of its area are people in the background.

    Args:
        image: (H, W, 3) uint8, RGB.
        name: Of the photo, for messages.
        networks: The detector.

    Raises:
        RefusedError: If no face is found, or a second one that is not clearly smaller, or it cannot be aligned upright.
    """
    faces = find_any_way_up(image, networks.detector.detect, networks.detector.sure_upright)
    if problem := face_count_problem(faces):
        raise RefusedError(f"{name}: {problem}; a reference shows one large face")
    return upright(AlignedFace.found(image, faces[0]), faces[0], f"the face of {name}", networks)


def upright(found: AlignedFace, face: Face, label: str, networks: FaceNetworks) -> AlignedFace:
    """Check that a face stands upright once it is aligned; where it lies after all, it is turned.

    Args:
        found: The face.
        face: The same as the detector found it.
        label: For messages.
        networks: The detector.

    Raises:
        RefusedError: If it does not stand.
    """
    standing = upright_aligned(found.image, face, networks.detector.detect)
    if standing is None:
        raise RefusedError(
            f"{label} is not upright once it is aligned, whichever way the photo is turned: its eyes and its mouth "
            "were not found where they are. If it lies on its side, turn the photo; else another photo helps"
        )
    return found if standing is face else AlignedFace.found(found.image, standing)


def chosen_face(
    found: FoundFaces, index: int | None, references: Sequence[AlignedFace], networks: FaceNetworks
) -> int:
    """Choose the face of the photo: the one that is named, the only one, or the one that the references match.

    Args:
        found: The photo's faces.
        index: Which face, 0 is the largest; None: the only one or the best match.
        references: Faces that one of several is compared with.
        networks: The recogniser.

    Returns:
        Its index.

    Raises:
        RefusedError: If there is no such index, or none of several faces is known to match.
    """
    if index is not None:
        check_index(found, index)
        return index
    if len(found) == 1:
        return 0
    best: dict[int, Comparison] = {}
    for face in found:
        if comparable(face.aligned, networks):
            compared = [c for reference in references if (c := compare(face.aligned, reference, networks))]
            best |= {face.index: max(compared)} if compared else {}
    place = max(best, key=lambda place: best[place].cosine, default=-1)
    if place < 0 or not best[place].matches:
        smallest = limits_of(networks).smallest_side
        raise RefusedError(
            f"{found.name}: several faces, and none of those of at least {smallest} pixels is known to be the "
            f"reference's person: choose with --face. {_listed(found, best)}"
        )
    return place


def check_index(found: FoundFaces, index: int) -> None:
    """Check that a photo has a face.

    Raises:
        RefusedError: If it has not; the message lists its faces.
    """
    if not 0 <= index < len(found):
        raise RefusedError(f"{found.name}: --face {index} is not there. {_listed(found)}")


def _listed(found: FoundFaces, compared: Mapping[int, Comparison] | None = None) -> str:
    lines = []
    for face in found:
        x, y = face.aligned.matrix @ (0.5, 0.5, 1)
        alike = f", cosine {compared[face.index].cosine:.2f}" if compared and face.index in compared else ""
        lines.append(f"--face {face.index}: {face.side:.0f} pixels, around x {x:.0f}, y {y:.0f}{alike}")
    missed = f". {found.search.hint.capitalize()}" if found.search.hint else ""
    return "Faces found: " + "; ".join(lines) + missed


def nearest_reference(face: AlignedFace, references: Sequence[AlignedFace]) -> int:
    """Choose the reference whose pose is nearest, as training pairs are chosen by their 68 points.

    Compared are the detector's five points in the aligned squares: the mean of ``|dx| + |dy|``. The 68 points of a
    tiny face would not be better known.

    Returns:
        Its place; the first of equal ones.
    """
    own = face.own_points()
    distances = [np.abs(own - reference.own_points()).sum(1).mean() for reference in references]
    return int(np.argmin(distances))
