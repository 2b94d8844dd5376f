"""Pairs of photos as a dataset and as LightningDataModules (P IV-A)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from rpf_lightning.data.folder import PhotoFolder
from rpf_lightning.data.pairing import (
    Pair,
    Thumbnail,
    grey_thumbnail,
    nearest_references,
    other_person_references,
    split_by_identity,
)
from rpf_lightning.data.records import Photo, ReferenceBatch
from rpf_lightning.data.sample import check_sizes, make_sample

logger = logging.getLogger(__name__)


class PhotoSource(Protocol):
    """What gives the photos: a folder, or faces made on the fly."""

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

    def __len__(self) -> int: ...


# Finished samples live as long as their photos: the fits of one curriculum share both.
_SAMPLES: WeakKeyDictionary[PhotoSource, dict[tuple[int, ...], ReferenceBatch]] = WeakKeyDictionary()


class PairsDataset(Dataset[ReferenceBatch]):
    """Samples of one level, made from pairs of photos.

    Finished samples are kept in memory, unless all of them together would exceed the budget: then none is.
    Datasets of the same photos share samples and budget. It counts per process: every loader worker may use
    that much.

    Args:
        photos: The photos that the pairs index.
        pairs: GT and reference indices.
        lr_size: Side L of the LR input in pixels.
        size: Full output side, kappa * L.
        side: Side S of the level.
        cache: Whether to keep finished samples.
        cache_mb: Budget in MiB.

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
        cache: bool = True,
        cache_mb: int = 2048,
    ) -> None:
        check_sizes(lr_size, size, side)
        self.photos = photos
        self.pairs = list(pairs)
        self.lr_size, self.size, self.side = lr_size, size, side
        wanted = len(self.pairs) * _floats(lr_size, side)
        self.cached = cache and wanted * 4 <= cache_mb * 2**20
        self._samples = _SAMPLES.setdefault(photos, {})
        if (
            self.cached
            and (wanted + sum(_floats(key[2], key[4]) for key in self._samples)) * 4 > cache_mb * 2**20
        ):
            self._samples.clear()  # another level's, mostly

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> ReferenceBatch:
        """Return one sample without batch dimension; treat it as read-only, it may come from the cache."""
        pair = self.pairs[index]
        key = (pair.gt, pair.reference, self.lr_size, self.size, self.side)
        if self.cached and key in self._samples:
            return self._samples[key]
        sample = make_sample(
            self.photos.photo(pair.gt),
            self.photos.photo(pair.reference),
            lr_size=self.lr_size,
            size=self.size,
            side=self.side,
        )
        if self.cached:
            self._samples[key] = sample
        return sample


def collate(samples: list[ReferenceBatch]) -> ReferenceBatch:
    """Stack samples into a batch, with the names as lists (torch's default gives tuples)."""
    batch = default_collate(samples)
    return batch._replace(id=list(batch.id), reference_id=list(batch.reference_id))


class _Pairing(NamedTuple):
    """The photos and their pairs, found once per datamodule."""

    photos: PhotoSource
    train: list[Pair]
    val: list[Pair]
    val_photos: list[int]
    dropped: int


class PairsDataModule(LightningDataModule, ABC):
    """Nearest-landmark pairs of the same person, split by identity; subclasses name the photos.

    Training and validation share no person. Nothing is read before `setup` or `val_dataset`.

    Args:
        lr_size: Side L of the LR input; None takes `lr_size` of the trainer's LightningModule.
        size: Full output side; None takes the module's `size`.
        side: Side of the level; None takes the module's `side`.
        batch_size: Pairs per batch, in training and validation.
        val_fraction: Share of the people held out.
        seed: Seed of the split and of the shuffling.
        limit_train: Number of training pairs kept, evenly spread; None keeps all.
        limit_val: The same for validation.
        num_workers: Loader processes; each has its own cache of samples.
    """

    def __init__(
        self,
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
        super().__init__()
        self.lr_size, self.size, self.side = lr_size, size, side
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.limit_train = limit_train
        self.limit_val = limit_val
        self.num_workers = num_workers
        self._found: _Pairing | None = None
        self._shuffling = torch.Generator().manual_seed(seed)

    @abstractmethod
    def photos(self) -> PhotoSource:
        """Return the photos; called once."""

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets for the level of the trainer's module.

        Raises:
            ValueError: if a side is neither an argument nor an attribute of the module, or no pair was found.
        """
        lr_size, size, side = self._side_of("lr_size"), self._side_of("size"), self._side_of("side")
        found = self._pairing()
        self.train_dataset = PairsDataset(found.photos, found.train, lr_size=lr_size, size=size, side=side)
        self.val_pairs_dataset = PairsDataset(found.photos, found.val, lr_size=lr_size, size=size, side=side)

    def train_dataloader(self) -> DataLoader[ReferenceBatch]:
        """Return shuffled batches; the last, incomplete one is dropped.

        Raises:
            ValueError: if there are fewer training pairs than one batch.
        """
        if len(self.train_dataset) < self.batch_size:
            raise ValueError(
                f"{len(self.train_dataset)} training pairs do not fill batch_size={self.batch_size}"
            )
        return DataLoader(
            self.train_dataset,
            batch_size=self.batch_size,
            shuffle=True,
            generator=self._shuffling,
            drop_last=True,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,  # a worker's cache dies with it
        )

    def state_dict(self) -> dict[str, Tensor]:
        """State of the shuffling, so that a resumed fit sees the epochs that an uninterrupted one would see."""
        return {"shuffling": self._shuffling.get_state()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue the shuffling of a checkpoint."""
        self._shuffling.set_state(state_dict["shuffling"].cpu())

    def val_dataloader(self) -> DataLoader[ReferenceBatch]:
        """Return the validation pairs in order."""
        return DataLoader(
            self.val_pairs_dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
        )

    def test_dataloader(self) -> DataLoader[ReferenceBatch]:
        """Return the validation pairs: there is no third part."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[ReferenceBatch]:
        """Return the validation pairs."""
        return self.val_dataloader()

    def val_dataset(self, side: int | None = None, other_person: bool = False) -> PairsDataset:
        """Return the validation pairs for evaluation, at any level and without `setup`.

        Args:
            side: Side of the samples; None is the full size.
            other_person: Give the same GTs each a reference of another person of the validation part, the
                one with the nearest landmarks (the control of P Fig. 11).

        Raises:
            ValueError: as in `setup`, or if the validation part shows one person only.
        """
        found = self._pairing()
        size = self._side_of("size")
        pairs = found.val
        if other_person:
            photos = found.photos
            gts = [pair.gt for pair in found.val]
            pairs = other_person_references(
                gts, found.val_photos, photos.identities, photos.landmarks, _thumbnails(photos)
            )
        lr_size = self._side_of("lr_size")
        return PairsDataset(
            found.photos, pairs, lr_size=lr_size, size=size, side=size if side is None else side, cache=False
        )

    @property
    def dropped_duplicates(self) -> int:
        """Near-duplicates that were dropped as references, in both parts."""
        return self._pairing().dropped

    def _pairing(self) -> _Pairing:
        """Find, split and thin the pairs, the first time only."""
        if self._found is None:
            photos = self.photos()
            train_photos, val_photos = split_by_identity(photos.identities, self.val_fraction, self.seed)
            # A pair is one person's and a person is in one part, so pairs can be found before the split.
            pairs, dropped = nearest_references(photos.identities, photos.landmarks, _thumbnails(photos))
            if not pairs:
                raise ValueError(
                    f"no pair among {len(photos)} photos: expected people with two photos with landmarks"
                )
            parts = []
            for indices, limit in ((train_photos, self.limit_train), (val_photos, self.limit_val)):
                members = set(indices)
                parts.append(_spread([pair for pair in pairs if pair.gt in members], limit))
            self._found = _Pairing(photos, parts[0], parts[1], val_photos, dropped)
            logger.info(
                "%d training and %d validation pairs; %d near-duplicates dropped as references",
                len(parts[0]), len(parts[1]), dropped,
            )  # fmt: skip
        return self._found

    def _side_of(self, name: str) -> int:
        """Return a side from the argument or else from the trainer's module."""
        value = getattr(self, name)
        module = None if self.trainer is None else self.trainer.lightning_module
        if value is None:
            value = getattr(module, name, None)
        if value is None:
            raise ValueError(
                f"{name} is unknown: give {name}=... to {type(self).__name__}, "
                f"or use a trainer whose LightningModule has the attribute {name!r}"
            )
        return int(value)


class ReferencePairsDataModule(PairsDataModule):
    """Pairs from a `PhotoFolder`.

    Args:
        root: Folder with `images/`, `labels/`, `identities.csv` and `landmarks.csv`.
        label_scheme: Order of the label values, "bisenet" or "celebamask-hq".
        lr_size: As in `PairsDataModule`, like all that follow.
        size: Full output side.
        side: Side of the level.
        batch_size: Pairs per batch.
        val_fraction: Share of the people held out.
        seed: Seed of the split and of the shuffling.
        limit_train: Number of training pairs kept.
        limit_val: Number of validation pairs kept.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        root: str,
        label_scheme: str,
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
        self.root = root
        self.label_scheme = label_scheme

    def photos(self) -> PhotoFolder:
        """Return the photos of the folder."""
        return _opened_once(self.root, self.label_scheme)


# one curriculum builds a datamodule for each of its fits; the photos stay the same
_opened_once = lru_cache(maxsize=2)(PhotoFolder)


def _floats(lr_size: int, side: int) -> int:
    """Numbers in a sample: four images, two masks and the flow; the LR."""
    return 16 * side**2 + 3 * lr_size**2


def _spread(pairs: list[Pair], limit: int | None) -> list[Pair]:
    """Keep `limit` pairs, evenly spread."""
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def _thumbnails(photos: PhotoSource) -> Thumbnail:
    """Make thumbnails on demand: the duplicate rule looks at few of the photos, some of them often."""
    return cache(lambda index: grey_thumbnail(photos.photo(index).image))
