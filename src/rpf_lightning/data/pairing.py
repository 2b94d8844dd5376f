"""Who is whose reference, and who is held out (P IV-A).

A reference is another photo of the same person, the one with the nearest landmarks. Landmarks are fractions
of the image's side throughout, so that distances mean the same at every size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist

Landmarks = NDArray[np.float64]  # (68, 2), fractions of the side

POINTS = 68
DUPLICATE_CORRELATION = 0.97
DUPLICATE_DISTANCE = 0.01
BLOCK = 2048  # rows of the correlation matrix at a time: 0.25 GB for 30,000 photos


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


def near_duplicates(
    landmarks: Sequence[Landmarks | None], thumbnails: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
) -> list[tuple[int, int]]:
    """Find photos that are the same photo twice (docs/method.md section 9).

    Two photos are near-duplicates if their grey thumbnails correlate above 0.97 and their landmarks are less
    than 1 % of the side apart. All photos are compared, whoever is on them.

    Args:
        landmarks: (68, 2) per photo, in fractions of the side; photos with None are left out.
        thumbnails: `grey_thumbnail` of every photo.

    Returns:
        Pairs of indices, the lower one first, ascending.
    """
    if len(landmarks) != len(thumbnails):
        raise ValueError(f"got {len(landmarks)} landmarks but {len(thumbnails)} thumbnails")
    usable = [i for i, points in enumerate(landmarks) if points is not None]
    if not usable:
        return []
    points = _flatten(landmarks, usable)
    # the search in fp32 is a matrix product; what comes near the threshold is then computed exactly
    pixels = np.stack([np.asarray(thumbnails[i], np.float32).ravel() for i in usable])
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = []
    for start in range(0, len(usable), BLOCK):
        correlation = pixels[start : start + BLOCK] @ pixels[start:].T
        # many pictures with one background are alike, few of them have the same landmarks
        rows, columns = np.nonzero(np.triu(correlation > DUPLICATE_CORRELATION - 1e-3, 1))
        for part in range(0, len(rows), BLOCK * 16):
            a, b = (start + side[part : part + BLOCK * 16] for side in (rows, columns))
            near = np.abs(points[a] - points[b]).sum(1) / POINTS < DUPLICATE_DISTANCE
            found += [
                (usable[i], usable[j])
                for i, j in zip(a[near], b[near], strict=True)
                if _same_picture(thumbnails[usable[i]], thumbnails[usable[j]])
            ]
    return sorted(found)


def nearest_references(
    identities: Sequence[str],
    landmarks: Sequence[Landmarks | None],
    duplicates: Iterable[tuple[int, int]] = (),
    k: int = 1,
) -> list[Pair]:
    """Match every photo with the `k` photos of the same person whose landmarks are nearest (P IV-A).

    A photo is never its own reference. Differs from the paper: near-duplicates (the same photo twice in the
    data set) are no references either, because nearest landmarks would pick exactly them.

    Args:
        identities: Name of the person on each photo; photos with an empty name get no pair.
        landmarks: (68, 2) per photo, in fractions of the side; photos with None get no pair.
        duplicates: Pairs of photos that are not each other's references, as `near_duplicates` finds them.
        k: References per GT; a person with fewer other photos gets fewer.

    Returns:
        The pairs, ordered by GT index and then by distance (equal distances: lower reference index first).

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
    twins = twins_of(duplicates)
    pairs: list[Pair] = []
    for members in people.values():
        points = _flatten(landmarks, members)
        distance = _distance(points, points)
        np.fill_diagonal(distance, np.inf)
        for row, gt in enumerate(members):
            distance[row, [other in twins.get(gt, ()) for other in members]] = np.inf
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        for row, gt in enumerate(members):
            for column in order[row]:
                if np.isfinite(distance[row, column]):
                    pairs.append(Pair(gt, members[column], float(distance[row, column])))
    pairs.sort(key=lambda pair: pair.gt)  # stable: keeps the order by distance
    return pairs


def other_person_references(
    gts: Sequence[int],
    candidates: Sequence[int],
    identities: Sequence[str],
    landmarks: Sequence[Landmarks | None],
    duplicates: Iterable[tuple[int, int]] = (),
) -> list[Pair]:
    """Match every GT with the nearest-landmark photo of ANOTHER person (the control of P Fig. 11).

    Nearest, so that the pose is no worse than with the own reference and only the identity differs.

    Args:
        gts: Indices of the GT photos; they need landmarks.
        candidates: Indices of the photos to choose from; those without identity or landmarks are skipped.
        identities: As in `nearest_references`.
        landmarks: As in `nearest_references`.
        duplicates: As in `nearest_references`: the same photo under two names is no other person.

    Returns:
        One pair per GT, in the order of `gts`.

    Raises:
        ValueError: if there is no photo of another person for some GT.
    """
    usable = sorted(i for i in set(candidates) if identities[i] and landmarks[i] is not None)
    names = np.array([identities[i] for i in usable])
    points = _flatten(landmarks, usable)
    twins = twins_of(duplicates)
    pairs = []
    for gt in gts:
        if landmarks[gt] is None:
            raise ValueError(f"photo {gt} has no landmarks and cannot be matched")
        distance = _distance(_flatten(landmarks, [gt]), points)[0]
        distance[names == identities[gt]] = np.inf
        distance[[other in twins.get(gt, ()) for other in usable]] = np.inf
        column = int(distance.argmin()) if usable else 0
        if not usable or not np.isfinite(distance[column]):
            raise ValueError(f"no photo of a person other than {identities[gt]!r} to choose from")
        pairs.append(Pair(gt, usable[column], float(distance[column])))
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


def twins_of(duplicates: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    """Return for each photo that is there twice, in pairs of `near_duplicates`, the others like it."""
    twins: dict[int, set[int]] = {}
    for a, b in duplicates:
        twins.setdefault(a, set()).add(b)
        twins.setdefault(b, set()).add(a)
    return twins


def grey_thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce (H, W, 3) uint8 to a (32, 32) grey uint8 image, for the near-duplicate rule."""
    return np.asarray(Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX))


def _flatten(landmarks: Sequence[Landmarks | None], indices: Sequence[int]) -> NDArray[np.float64]:
    """Stack the landmarks of some photos as (n, 136).

    Multiples of 2^-20 add up without rounding in any order, so that every processor finds the same pairs.
    """
    points = np.array([landmarks[i] for i in indices], dtype=np.float64).reshape(len(indices), -1)
    return np.rint(points * 2**20) / 2**20


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean L1 distance over the landmarks between the rows of `a` and of `b`."""
    return np.asarray(cdist(a, b, "cityblock") / POINTS)


def _same_picture(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Tell whether two thumbnails correlate above the threshold, in whole numbers as far as possible."""
    x, y = a.ravel().astype(np.int64), b.ravel().astype(np.int64)
    n = len(x)
    covariance = n * int((x * y).sum()) - int(x.sum()) * int(y.sum())
    variances = [n * int((v * v).sum()) - int(v.sum()) ** 2 for v in (x, y)]
    return covariance > DUPLICATE_CORRELATION * math.sqrt(variances[0] * variances[1])
