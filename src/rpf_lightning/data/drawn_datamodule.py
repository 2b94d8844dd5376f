"""A data set of embedded synthetic faces: training and demonstration without any download."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from rpf_lightning.data.batches import Photo
from rpf_lightning.data.pairing import grey_thumbnail, near_duplicates
from rpf_lightning.data.pairs_datamodule import PairsDataModule, SplitPairs, pairs_by_identity
from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces.labels import facial_mask


class SyntheticPhotos:
    """Photos of synthetic people, rendered once and kept in memory.

    Args:
        people: Number of identities.
        photos_each: Photos of each.
        side: Side of the photos in pixels.
        seed: Seed of the first identity; others follow, so disjoint ranges are disjoint people.
    """

    def __init__(self, people: int, photos_each: int, side: int, seed: int = 0) -> None:
        self._photos: list[Photo] = []
        self.landmarks: list[NDArray[np.float64] | None] = []
        digest = hashlib.sha256()  # another release may draw other faces
        for person in track(range(seed, seed + people), "Drawing synthetic faces", transient=True):
            for shot in range(photos_each):
                drawn = render_photo(person, shot, side)
                mask = facial_mask(drawn.parsing, "bisenet")
                self._photos.append(Photo(drawn.id, drawn.identity, drawn.image, drawn.landmarks, mask))
                self.landmarks.append(drawn.landmarks / side)
                for array in (drawn.image, mask, drawn.landmarks / side):
                    digest.update(np.ascontiguousarray(array).tobytes())
        self.ids = [photo.id for photo in self._photos]
        self.identities = [photo.identity for photo in self._photos]
        self.sha256 = digest.hexdigest()

    def photo(self, index: int) -> Photo:
        """Return one photo."""
        return self._photos[index]

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Pairs of photos that are the same photo twice."""
        return near_duplicates(self.landmarks, [grey_thumbnail(photo.image) for photo in self._photos])

    def __len__(self) -> int:
        return len(self._photos)


# one curriculum builds a datamodule for each of its fits; the faces stay the same
_drawn_once = lru_cache(maxsize=2)(SyntheticPhotos)


class SyntheticFacesDataModule(PairsDataModule):
    """Pairs of embedded synthetic faces.

    Args:
        people: Number of identities.
        photos_each: Photos of each.
        kwargs: Arguments of `PairsDataModule` and `LevelDataModule`; the seed also draws the faces.
    """

    def __init__(self, people: int = 200, photos_each: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.people = people
        self.photos_each = photos_each

    def find_pairs(self) -> SplitPairs:
        """Draw the faces at the full output side and pair them."""
        photos = _drawn_once(self.people, self.photos_each, self._side_of("size"), self.seed)
        return pairs_by_identity(photos, self.val_fraction, self.seed)
