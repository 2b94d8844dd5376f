"""Pairs and faces as datasets: made from photos, at one level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, default_collate

from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.records import FaceBatch, Photo, ReferenceBatch
from rpf_lightning.data.sample import check_sizes, make_face, make_sample, mirror, mirror_face

Record = TypeVar("Record", FaceBatch, ReferenceBatch)


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

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Pairs of photos that are the same photo twice."""

    def __len__(self) -> int: ...


# Finished samples live as long as their photos: the fits of one curriculum share both.
_SAMPLES: WeakKeyDictionary[PhotoSource, dict[tuple[int, ...], ReferenceBatch]] = WeakKeyDictionary()


class PairsDataset(Dataset[ReferenceBatch]):
    """Samples of one level, made from pairs of photos; n pairs, and from index n on the same in a mirror.

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
        cache_mb: int = 0,
    ) -> None:
        check_sizes(lr_size, size, side)
        self.photos = photos
        self.pairs = list(pairs)
        self.lr_size, self.size, self.side = lr_size, size, side
        self.mask_reference, self.source_side = mask_reference, source_side
        wanted = len(self.pairs) * _floats(source_side or lr_size, side)
        self.cached = 0 < wanted * 4 <= cache_mb * 2**20
        self._samples = _SAMPLES.setdefault(photos, {})
        if self.cached:
            held = sum(sum(map(_numbers, sample)) for sample in self._samples.values())
            if (wanted + held) * 4 > cache_mb * 2**20:
                self._samples.clear()  # another level's, mostly

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> ReferenceBatch:
        """Return one sample without batch dimension; treat it as read-only, it may come from the cache."""
        pair = self.pairs[index % len(self)]
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
        return sample if index < len(self) else mirror(sample)


class FacesDataset(Dataset[FaceBatch]):
    """Samples of one level without references; n photos, and from index n on the same in a mirror.

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

    def __getitem__(self, index: int) -> FaceBatch:
        """Return one sample without batch dimension."""
        face = make_face(
            self.photos.photo(self.indices[index % len(self)]),
            lr_size=self.lr_size, size=self.size, side=self.side, source_side=self.source_side,
        )  # fmt: skip
        return face if index < len(self) else mirror_face(face)


class Shuffled(Sampler[int]):
    """Every sample once per epoch, in random order, each as it is or in a mirror.

    Args:
        count: Number of samples n; n .. 2n - 1 are their mirror images.
        flip: Whether to flip half of them.
        generator: Draws order and flips: datasets hold nothing random, so workers have nothing to seed.
    """

    def __init__(self, count: int, flip: bool, generator: torch.Generator) -> None:
        self.count, self.flip, self.generator = count, flip, generator

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        """Draw an epoch."""
        order = torch.randperm(self.count, generator=self.generator)
        if self.flip:
            order += self.count * torch.randint(2, (self.count,), generator=self.generator)
        return iter(order.tolist())


def collate(samples: list[Record]) -> Record:
    """Stack samples into a batch, with the names as lists (torch's default gives tuples)."""
    batch = default_collate(samples)
    names = {name: list(getattr(batch, name)) for name in ("id", "reference_id") if hasattr(batch, name)}
    return batch._replace(**names)


def _floats(lr_side: int, side: int) -> int:
    """Numbers in a sample: three images, two masks and the flow; the LR; the landmarks."""
    return 13 * side**2 + 3 * lr_side**2 + 4 * 68


def _numbers(value: object) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0
