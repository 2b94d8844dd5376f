"""A data set of embedded synthetic faces: training and demonstration without any download."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from rpf_lightning.data.labels import facial_mask
from rpf_lightning.data.pairs import PairsDataModule
from rpf_lightning.data.records import Photo
from rpf_lightning.data.synthetic import render_photo


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
        for person in track(range(seed, seed + people), "Drawing synthetic faces", transient=True):
            for shot in range(photos_each):
                drawn = render_photo(person, shot, side)
                mask = facial_mask(drawn.parsing, "bisenet")
                self._photos.append(Photo(drawn.id, drawn.identity, drawn.image, drawn.landmarks, mask))
                self.landmarks.append(drawn.landmarks / side)

    @property
    def ids(self) -> list[str]:
        """Names of the photos."""
        return [photo.id for photo in self._photos]

    @property
    def identities(self) -> list[str]:
        """Names of the people."""
        return [photo.identity for photo in self._photos]

    def photo(self, index: int) -> Photo:
        """Return one photo."""
        return self._photos[index]

    def __len__(self) -> int:
        return len(self._photos)


# one curriculum builds a datamodule for each of its fits; the faces stay the same
_drawn_once = lru_cache(maxsize=2)(SyntheticPhotos)


class SyntheticFacesDataModule(PairsDataModule):
    """Pairs of embedded synthetic faces.

    Args:
        people: Number of identities.
        photos_each: Photos of each.
        lr_size: As in `PairsDataModule`, like all that follow.
        size: Full output side.
        side: Side of the level.
        batch_size: Pairs per batch.
        val_fraction: Share of the people held out.
        seed: Seed of the faces, the split and the shuffling.
        limit_train: Number of training pairs kept.
        limit_val: Number of validation pairs kept.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        people: int = 200,
        photos_each: int = 5,
        lr_size: int | None = None,
        size: int | None = None,
        side: int | None = None,
        batch_size: int = 8,
        val_fraction: float = 0.15,
        seed: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            lr_size, size, side, batch_size, val_fraction, seed, limit_train, limit_val, num_workers
        )
        self.people = people
        self.photos_each = photos_each

    def photos(self) -> SyntheticPhotos:
        """Return the photos at the full output side."""
        return _drawn_once(self.people, self.photos_each, self._side_of("size"), self.seed)
