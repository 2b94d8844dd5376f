"""Pairs and faces as datasets: made from photos, at one level."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate

from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.records import FaceBatch, Photo, ReferenceBatch
from rpf_lightning.data.sample import Record, check_sizes, make_face, make_sample, mirror


class PhotoSource(Protocol):
    """What gives the photos: a prepared folder, or faces made on the fly."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the photos."""

    @property
    def identities(self) -> Sequence[str]:
        """Names of the people, empty if unknown."""

    @property
    def landmarks(self) -> Sequence[NDArray[np.float64] | None]:
        """(68, 2) per photo in fractions of its side, or None."""

    def photo(self, index: int) -> Photo:
        """Return one photo; the same index gives the same photo."""

    @property
    def sha256(self) -> str:
        """Hash over the photos and their annotations."""

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Pairs of photos that are the same photo twice."""

    def __len__(self) -> int: ...


# Finished samples live as long as their photos: the fits of one curriculum share both.
_SAMPLES: WeakKeyDictionary[PhotoSource, dict[tuple[int, ...], ReferenceBatch]] = WeakKeyDictionary()


class LevelDataset(Dataset[Record], ABC):
    """Samples of one level. From index n = len on, up to 2n, come their mirror images."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples n, without the mirror images."""

    @abstractmethod
    def sample(self, index: int) -> Record:
        """Return sample 0 .. n - 1 without batch dimension; treat it as read-only, it may come from a cache."""

    def __getitem__(self, index: int) -> Record:
        """Return sample `index`, or from n on the mirror image of sample `index` - n.

        Raises:
            IndexError: if `index` is outside 0 .. 2n - 1.
        """
        count = len(self)
        if not 0 <= index < 2 * count:
            raise IndexError(f"expected an index in 0..{2 * count - 1}, got {index}")
        sample = self.sample(index) if index < count else mirror(self.sample(index - count))
        return sample._replace(place=index)

    def __iter__(self) -> Iterator[Record]:
        """Return the samples without their mirror images."""
        return (self[index] for index in range(len(self)))


class PairsDataset(LevelDataset[ReferenceBatch]):
    """Samples of one level, made from pairs of photos.

    With `cache_mb`, finished samples are kept in memory, unless all of them together would exceed it: then
    none is. Datasets of the same photos share samples and budget. It counts per process: every loader worker
    may use that much.

    Args:
        photos: The photos that the pairs index.
        pairs: GT and reference indices.
        lr_size: Side L of the LR input in pixels.
        size: Full output side, kappa * L.
        side: Side S of the level.
        mask_reference: See `make_sample`.
        source_side: See `make_sample`.
        degrade: Makes the LR here; without it the datamodule makes it in batches on the device.
        cache_mb: Memory for finished samples in MiB.

    Raises:
        ValueError: if the sides are not powers of two with ``lr_size < side <= size``.
    """

    def __init__(
        self,
        photos: PhotoSource,
        pairs: Sequence[Pair],
        *,
        lr_size: int,
        size: int,
        side: int,
        mask_reference: bool = True,
        source_side: int | None = None,
        degrade: Degradation | None = None,
        cache_mb: int = 0,
    ) -> None:
        check_sizes(lr_size, size, side)
        self.photos = photos
        self.pairs = list(pairs)
        self.lr_size, self.size, self.side = lr_size, size, side
        self.mask_reference, self.source_side = mask_reference, source_side
        self.degrade = degrade
        wanted = len(self.pairs) * _floats(source_side or lr_size, side)
        self.cached = 0 < wanted * 4 <= cache_mb * 2**20
        self._samples = _SAMPLES.setdefault(photos, {})
        if self.cached:
            held = sum(sum(map(_numbers, sample)) for sample in self._samples.values())
            if (wanted + held) * 4 > cache_mb * 2**20:
                self._samples.clear()  # another level's, mostly

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int) -> ReferenceBatch:
        """Return one sample without batch dimension; treat it as read-only, it may come from the cache."""
        pair = self.pairs[index]
        key = (
            pair.gt, pair.reference, self.lr_size, self.size, self.side, self.mask_reference, self.source_side or 0,
        )  # fmt: skip
        sample = self._samples.get(key)
        if sample is None:
            sample = make_sample(
                self.photos.photo(pair.gt),
                self.photos.photo(pair.reference),
                lr_size=self.lr_size,
                size=self.size,
                side=self.side,
                mask_reference=self.mask_reference,
                source_side=self.source_side,
            )
            if self.cached:
                self._samples[key] = sample
        if self.degrade is not None:  # after the cache, which other datasets share
            sample = sample._replace(lr=self.degrade(sample.lr[None], [self.photos.ids[pair.gt]])[0])
        return sample

    def fingerprint(self) -> str:
        """Hash of everything that LR, references and masks depend on, and of their order."""
        return fingerprint(
            type(self).__name__, self.photos.sha256, [pair[:2] for pair in self.pairs],
            self.lr_size, self.size, self.side, self.mask_reference, self.source_side,
        )  # fmt: skip


class FacesDataset(LevelDataset[FaceBatch]):
    """Samples of one level without references, made from photos.

    Args:
        photos: The photos.
        indices: Which of them.
        lr_size: Side L of the LR input in pixels.
        size: Full output side, kappa * L.
        side: Side S of the level.
        source_side: See `make_sample`.

    Raises:
        ValueError: if the sides are not powers of two with ``lr_size < side <= size``.
    """

    def __init__(
        self,
        photos: PhotoSource,
        indices: Sequence[int],
        *,
        lr_size: int,
        size: int,
        side: int,
        source_side: int | None = None,
    ) -> None:
        check_sizes(lr_size, size, side)
        self.photos, self.indices = photos, list(indices)
        self.lr_size, self.size, self.side, self.source_side = lr_size, size, side, source_side

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int) -> FaceBatch:
        """Return one sample without batch dimension."""
        return make_face(
            self.photos.photo(self.indices[index]),
            lr_size=self.lr_size, size=self.size, side=self.side, source_side=self.source_side,
        )  # fmt: skip


def collate(samples: list[Record]) -> Record:
    """Stack samples into a batch, names and places as lists, which stay where they are."""
    batch = default_collate(samples)
    kept = [name for name in ("id", "reference_id", "place") if hasattr(batch, name)]
    return batch._replace(**{name: [getattr(sample, name) for sample in samples] for name in kept})


def fingerprint(*content: object) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _floats(lr_side: int, side: int) -> int:
    """Numbers in a sample: three images, two masks and the flow; the LR; the landmarks."""
    return 13 * side**2 + 3 * lr_side**2 + 4 * 68


def _numbers(value: object) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0
