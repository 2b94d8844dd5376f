"""Who is whose reference, and who is held out (P IV-A).

A reference is another photo of the same person, the one with the nearest landmarks. Landmarks are fractions
of the image's side throughout, so that distances mean the same at every size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist

Landmarks = NDArray[np.float64]  # (68, 2), fractions of the side
Thumbnail = Callable[[int], NDArray[np.float32]]  # index of a photo -> `grey_thumbnail` of it

DUPLICATE_CORRELATION = 0.97
DUPLICATE_DISTANCE = 0.01


class Pair(NamedTuple):
    """A GT and its reference.

    Attributes:
        gt: Index of the GT photo.
        reference: Index of the reference photo.
        distance: Mean over the 68 landmarks of ``|dx| + |dy|``, as a fraction of the side.
    """

    gt: int
    reference: int
    distance: float


def nearest_references(
    identities: Sequence[str],
    landmarks: Sequence[Landmarks | None],
    thumbnail: Thumbnail | None = None,
    k: int = 1,
) -> tuple[list[Pair], int]:
    """Match every photo with the `k` photos of the same person whose landmarks are nearest (P IV-A).

    A photo is never its own reference. Differs from the paper: near-duplicates (the same photo twice in the
    data set) are no references either, because nearest landmarks would pick exactly them.

    Args:
        identities: Name of the person on each photo; photos with an empty name get no pair.
        landmarks: (68, 2) per photo, in fractions of the side; photos with None get no pair.
        thumbnail: Gives a photo's `grey_thumbnail`; asked only for photos whose landmarks are as near as a
            duplicate's. None switches the duplicate rule off.
        k: References per GT; a person with fewer other photos gets fewer.

    Returns:
        The pairs, ordered by GT index and then by distance (equal distances: lower reference index first),
        and the number of near-duplicates dropped, counted as unordered pairs of photos.

    Raises:
        ValueError: if `k` is below 1 or the two sequences differ in length.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(identities) != len(landmarks):
        raise ValueError(f"got {len(identities)} identities but {len(landmarks)} landmarks")
    people: dict[str, list[int]] = defaultdict(list)
    for index, (identity, points) in enumerate(zip(identities, landmarks, strict=True)):
        if identity and points is not None:
            people[identity].append(index)

    pairs: list[Pair] = []
    dropped = 0
    for members in people.values():
        points = _flatten(landmarks, members)
        distance = _distance(points, points)
        np.fill_diagonal(distance, np.inf)
        allowed = distance.copy()
        if thumbnail is not None:
            for a, b in np.argwhere(np.triu(distance < DUPLICATE_DISTANCE, 1)):
                if _same_picture(thumbnail(members[a]), thumbnail(members[b])):
                    allowed[a, b] = allowed[b, a] = np.inf
                    dropped += 1
        order = np.argsort(allowed, axis=1, kind="stable")[:, :k]
        for row, gt in enumerate(members):
            for column in order[row]:
                if np.isfinite(allowed[row, column]):
                    pairs.append(Pair(gt, members[column], float(allowed[row, column])))
    pairs.sort(key=lambda pair: pair.gt)  # stable: keeps the order by distance
    return pairs, dropped


def other_person_references(
    gts: Sequence[int],
    candidates: Sequence[int],
    identities: Sequence[str],
    landmarks: Sequence[Landmarks | None],
    thumbnail: Thumbnail | None = None,
) -> list[Pair]:
    """Match every GT with the nearest-landmark photo of ANOTHER person (the control of P Fig. 11).

    Nearest, so that the pose is no worse than with the own reference and only the identity differs.

    Args:
        gts: Indices of the GT photos; they need landmarks.
        candidates: Indices of the photos to choose from; those without identity or landmarks are skipped.
        identities: As in `nearest_references`.
        landmarks: As in `nearest_references`.
        thumbnail: As in `nearest_references`: the same photo under two names is no other person.

    Returns:
        One pair per GT, in the order of `gts`.

    Raises:
        ValueError: if there is no photo of another person for some GT.
    """
    usable = sorted(i for i in set(candidates) if identities[i] and landmarks[i] is not None)
    names = np.array([identities[i] for i in usable])
    points = _flatten(landmarks, usable)
    pairs = []
    for gt in gts:
        if landmarks[gt] is None:
            raise ValueError(f"photo {gt} has no landmarks and cannot be matched")
        distance = _distance(_flatten(landmarks, [gt]), points)[0]
        distance[names == identities[gt]] = np.inf
        for column in np.argsort(distance, kind="stable"):
            if not np.isfinite(distance[column]):
                raise ValueError(f"no photo of a person other than {identities[gt]!r} to choose from")
            near = thumbnail is not None and distance[column] < DUPLICATE_DISTANCE
            if thumbnail is None or not near or not _same_picture(thumbnail(gt), thumbnail(usable[column])):
                pairs.append(Pair(gt, usable[column], float(distance[column])))
                break
        else:
            raise ValueError(f"no photo of a person other than {identities[gt]!r} to choose from")
    return pairs


def split_by_identity(
    identities: Sequence[str], val_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split photos into training and validation without a person on both sides.

    The people are drawn, not the photos, from the sorted names: the order of the photos has no influence.
    Photos without identity are in neither part, because they may show anyone.

    Args:
        identities: Name of the person on each photo, empty if unknown.
        val_fraction: Share of the PEOPLE in the validation part, 0 <= f < 1. Above 0 it takes at least one.
        seed: Seed of the draw.

    Returns:
        Indices of the training and of the validation photos, ascending.

    Raises:
        ValueError: if `val_fraction` is outside [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
    names = sorted({name for name in identities if name})
    count = round(val_fraction * len(names))
    if val_fraction > 0:
        count = max(count, 1)
    held_out = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    train = [i for i, name in enumerate(identities) if name and name not in held_out]
    val = [i for i, name in enumerate(identities) if name in held_out]
    return train, val


def grey_thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Reduce (H, W, 3) uint8 to a (32, 32) grey float32 image in 0..255, for the near-duplicate rule."""
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float32)


def _flatten(landmarks: Sequence[Landmarks | None], indices: Sequence[int]) -> NDArray[np.float64]:
    """Stack the landmarks of some photos as (n, 136)."""
    return np.array([landmarks[i] for i in indices], dtype=np.float64).reshape(len(indices), -1)


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean L1 distance over the landmarks between the rows of `a` and of `b`."""
    return np.asarray(cdist(a, b, "cityblock") / (a.shape[1] / 2))


def _same_picture(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Tell whether two thumbnails correlate above the threshold."""
    a, b = a - a.mean(), b - b.mean()
    return bool((a * b).sum() > DUPLICATE_CORRELATION * np.sqrt((a * a).sum() * (b * b).sum()))
