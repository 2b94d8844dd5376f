"""What all LightningDataModules share: the level, the loaders, the degradation; and pairs of photos (P IV-A)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from rpf_lightning.data.batches import FaceBatch, ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset, PhotoSource, ReferenceDataset, collate
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.drawn_references import ReferenceOptions, References
from rpf_lightning.data.flow_target import FlowTarget, rest_of
from rpf_lightning.data.loading import ResumableLoader, Shuffled
from rpf_lightning.data.pairing import (
    Pair,
    nearest_references,
    other_person_references,
    split_by_identity,
)
from rpf_lightning.data.sample import lr_as_reference

logger = logging.getLogger(__name__)

DegradationKind = Literal["bicubic", "dpsr", "realistic"]
MEMORY_MB = 2048  # for finished samples of photos that lie in memory themselves
SOURCE = 8  # the `realistic` degradation starts from the GT of side 8 L: no photo is decoded for it
Kept = TypeVar("Kept")


class LevelDataModule(LightningDataModule, ABC):
    """Loaders of one level; subclasses build the three datasets in `setup`.

    Order, flips and degradations depend on seed and epoch alone, not on the number of workers: datasets hold
    nothing random. A resumed fit goes on within the epoch where it stopped.

    Args:
        lr_size: Side L of the LR input; None takes `lr_size` of the trainer's LightningModule.
        size: Full output side; None takes the module's `size`.
        side: Side of the level; None takes the module's `side`.
        batch_size: Samples per batch, in training and validation.
        val_fraction: Share of the people held out for validation where no such part exists.
        seed: Seed of the split, of the shuffling and of the degradation.
        limit_train: Number of training samples kept, evenly spread; None keeps all.
        limit_val: The same for validation.
        num_workers: Loader processes.
        flip: Show half of the training samples in a mirror (P IV-B: no augmentation).
        degradation: How the LR is made, see `Degradation`; validation gets the same noise every time.
    """

    train_dataset: Dataset[Any]
    val_dataset_: Dataset[Any]
    test_dataset: Dataset[Any]

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
        flip: bool = False,
        degradation: DegradationKind = "bicubic",
    ) -> None:
        super().__init__()
        self.lr_size, self.size, self.side = lr_size, size, side
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        self.limit_train = limit_train
        self.limit_val = limit_val
        self.num_workers = num_workers
        self.flip = flip
        self.degradation = degradation

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches; the last, incomplete one is dropped.

        Raises:
            ValueError: if there are fewer training samples than one batch.
        """
        count = len(self.train_dataset)  # type: ignore[arg-type]
        rank, processes = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        if count // processes < self.batch_size:
            raise ValueError(
                f"{count} training samples do not fill batch_size={self.batch_size} in {processes} processes"
            )
        random = getattr(self.train_dataset, "random", False)
        sampler = Shuffled(count, self.flip, self.seed, rank, processes, with_epoch=random)
        return self._loader(self.train_dataset, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation samples in order."""
        return self._loader(self.val_dataset_)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test samples in order; where there is no test part, those of validation."""
        return self._loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return what `test_dataloader` returns."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the LR on the device where it is not the bicubic one."""
        if self.degradation == "bicubic" or not isinstance(batch, FaceBatch | ReferenceBatch):
            return batch
        trainer = self.trainer
        epoch = trainer.current_epoch + 1 if trainer is not None and trainer.training else 0
        degrade = Degradation(self.degradation, self._side_of("lr_size"), self.seed)
        return batch._replace(lr=degrade(batch.lr, list(batch.id), epoch))

    def _loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,  # a worker's start, and its cache, are not cheap
            pin_memory=torch.cuda.is_available(),
            **kwargs,
        )

    def _level(self) -> dict[str, Any]:
        """The three sides of the level."""
        return {name: self._side_of(name) for name in ("lr_size", "size", "side")}

    def _source_side(self) -> int | None:
        """Side of the GT that the degradation starts from; None: the LR itself, exact where it is bicubic."""
        if self.degradation != "realistic":
            return None
        return min(SOURCE * self._side_of("lr_size"), self._side_of("size"))

    def _side_of(self, name: str) -> int:
        """Return a side from the argument or else from the trainer's module."""
        value = getattr(self, name)
        if value is None:
            value = self._of_module(name)
        if value is None:
            raise ValueError(
                f"{name} is unknown: give {name}=... to {type(self).__name__}, "
                f"or use a trainer whose LightningModule has the attribute {name!r}"
            )
        return int(value)

    def _of_module(self, name: str) -> Any:
        """Return an attribute of the trainer's module; None where there is none."""
        return None if self.trainer is None else getattr(self.trainer.lightning_module, name, None)


class SplitPairs(NamedTuple):
    """Pairs of photos in three parts.

    Attributes:
        photos: The photos that the pairs index.
        train: Training pairs.
        val: Validation pairs.
        test: Test pairs.
        others: Photos to take another person's reference from.
        duplicates: Photos that are the same photo twice.
        trained: Photos of the training part, whatever is left out of `train`.
    """

    photos: PhotoSource
    train: list[Pair]
    val: list[Pair]
    test: list[Pair]
    others: Sequence[int]
    duplicates: list[tuple[int, int]]
    trained: Sequence[int] = ()


class PairsDataModule(LevelDataModule):
    """Pairs of photos of the same person; subclasses name the photos.

    Training and validation share no person. Nothing is read before `prepare_data`, `setup` or `val_dataset`.
    Validation and test always show the nearest reference as it is.

    Args:
        mask_reference: Remove the non-facial region of references (eq. 1); False is the ablation of P Table 2.
        reference: ``"photo"``, or ``"lr"``: in training the enlarged LR in place of each reference, the ablation
            "w/o reference" of P Table 2.
        references: ``"nearest"``: the one with the nearest landmarks (P IV-A); ``"all"``: in every epoch any other
            photo of the person in the training part that is no near-duplicate of the GT.
        max_references: Largest number K of references; above 1, training batches have an axis K.
        several_fraction: Share of the samples whose person has the photos that get 2 .. K references.
        wrong_fraction: Share of the samples whose references are all of another person.
        absent_fraction: Share of the samples without reference.
        self_fraction: Share of the samples whose reference is the GT itself under a random smooth warp.
        colour_jitter: Strength s of a random change of each reference's colour: per channel gain and gamma within
            e^-s .. e^s, bias within +-s/4.
        similarity_jitter: Strength s of a random similarity of each reference about the face's centre: rotation
            within +-s radians, scale within e^-s .. e^s, shift within +-s/2 of the side. The flow accounts for it.
        flow_target: What flow is to be learned: ``"tps"``, the thin-plate spline (P III-B-1), ``"similarity"``, or
            the share, 0 to 1, that is left of what the spline has beyond the similarity.
        warped_reference: Make r_warp; None takes `needs_warped_reference` of the trainer's module.
        kwargs: Arguments of `LevelDataModule`.

    Raises:
        ValueError: If an argument is outside its range, or some do not go together.
    """

    def __init__(
        self,
        mask_reference: bool = True,
        reference: Literal["photo", "lr"] = "photo",
        references: Literal["nearest", "all"] = "nearest",
        max_references: int = 1,
        several_fraction: float = 0.0,
        wrong_fraction: float = 0.0,
        absent_fraction: float = 0.0,
        self_fraction: float = 0.0,
        colour_jitter: float = 0.0,
        similarity_jitter: float = 0.0,
        flow_target: FlowTarget = "tps",
        warped_reference: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if reference not in ("photo", "lr"):
            raise ValueError(f"reference: expected photo or lr, got {reference!r}")
        self.drawing = ReferenceOptions(
            references, max_references, several_fraction, wrong_fraction, absent_fraction, self_fraction,
            colour_jitter, similarity_jitter,
        )  # fmt: skip
        if reference == "lr" and self.drawing.random:
            raise ValueError(
                "reference: expected photo where references are drawn or changed at random, got 'lr'"
            )
        self.mask_reference = mask_reference
        self.reference = reference
        self.flow_rest = rest_of(flow_target)
        self.warped_reference = warped_reference
        self._split: SplitPairs | None = None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the LR on the device where it is not the bicubic one, and the reference where it is the LR."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.reference == "photo" or not isinstance(batch, ReferenceBatch):
            return batch
        return lr_as_reference(batch, self._side_of("size"))

    @abstractmethod
    def find_pairs(self) -> SplitPairs:
        """Return the photos and all their pairs; called once."""

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets for the level of the trainer's module.

        Raises:
            ValueError: if a side is neither an argument nor an attribute of the module, or no pair was found.
        """
        level, pairs, warped = self._level(), self.split_pairs(), self.warped_reference
        if warped is None:
            warped = bool(self._of_module("needs_warped_reference"))
        self.train_dataset = self._dataset(pairs.train, level, warped=warped, references=self._references())
        self.val_dataset_, self.test_dataset = (
            self._dataset(part, level, warped=warped) for part in (pairs.val, pairs.test)
        )

    def training_key(self) -> str | None:
        """Hash of everything that LR, reference and mask of the training samples depend on.

        What a frozen part of the model makes of a sample may be kept under it. None where these are random: the
        LR of another degradation than the bicubic one, and references that are drawn or changed.
        """
        key: str | None = self.train_dataset.fingerprint()  # type: ignore[attr-defined]
        if self.degradation != "bicubic" or key is None:
            return None
        return key if self.reference == "photo" else f"{self.reference} {key}"

    def split_pairs(self) -> SplitPairs:
        """Find and thin the pairs, the first time only.

        Raises:
            ValueError: if there is no pair.
        """
        if self._split is None:
            found = self.find_pairs()
            if not found.train and not found.val:
                raise ValueError(
                    f"no pair among {len(found.photos)} photos: expected people with two photos with landmarks"
                )
            self._split = found._replace(
                trained=sorted({index for pair in found.train for index in pair[:2]}),
                train=evenly(found.train, self.limit_train),
                val=evenly(found.val, self.limit_val),
                test=evenly(found.test, self.limit_val),
            )
            logger.info(
                "%d training and %d validation pairs; %d near-duplicates are no references",
                len(self._split.train), len(self._split.val), len(found.duplicates),
            )  # fmt: skip
        return self._split

    def _references(self) -> References | None:
        """Return what draws the references of the training samples; None: there is nothing to draw."""
        if not self.drawing.random:
            return None
        found = self.split_pairs()
        return References(
            self.drawing, [pair[:2] for pair in found.train], found.trained, found.photos.identities,
            found.duplicates, self.seed,
        )  # fmt: skip

    def val_dataset(
        self, side: int | None = None, other_person: bool = False, warped: bool = False
    ) -> PairsDataset:
        """Return the validation pairs for evaluation, at any level, unrounded, degraded and without `setup`.

        Args:
            side: Side of the samples; None is the full size.
            other_person: Give the same GTs each a reference of another person of the validation part, the
                one with the nearest landmarks (the control of P Fig. 11).
            warped: Make r_warp.

        Raises:
            ValueError: as in `setup`, or if the validation part shows one person only.
        """
        found = self.split_pairs()
        lr_size, size, pairs, degrade = self._side_of("lr_size"), self._side_of("size"), found.val, None
        if other_person:
            gts, photos = [pair.gt for pair in pairs], found.photos
            pairs = other_person_references(
                gts, found.others, photos.identities, photos.landmarks, found.duplicates
            )
        if self.degradation != "bicubic":
            degrade = Degradation(self.degradation, lr_size, self.seed)
        level = {"lr_size": lr_size, "size": size, "side": size if side is None else side}
        return self._from_photos(pairs, level, degrade=degrade, warped=warped)

    def _dataset(self, pairs: Sequence[Pair], level: Mapping[str, Any], **kwargs: Any) -> ReferenceDataset:
        """Make the samples from photos that lie in memory; overridden where they lie on a disk."""
        return self._from_photos(pairs, level, cache_mb=MEMORY_MB, **kwargs)

    def _from_photos(self, pairs: Sequence[Pair], level: Mapping[str, Any], **kwargs: Any) -> PairsDataset:
        return PairsDataset(
            self.split_pairs().photos, pairs, **level, mask_reference=self.mask_reference,
            source_side=self._source_side(), flow_rest=self.flow_rest, **kwargs,
        )  # fmt: skip


def pairs_by_identity(photos: PhotoSource, val_fraction: float, seed: int) -> SplitPairs:
    """Pair photos that no `rpf prepare` has paired, and hold people out."""
    train_photos, val_photos = (
        set(part) for part in split_by_identity(photos.identities, val_fraction, seed)
    )
    duplicates = photos.near_duplicates()
    # A pair is one person's and a person is in one part, so pairs can be found before the split.
    pairs = nearest_references(photos.identities, photos.landmarks, duplicates)
    train = [pair for pair in pairs if pair.gt in train_photos]
    val = [pair for pair in pairs if pair.gt in val_photos]
    return SplitPairs(photos, train, val, val, sorted(val_photos), duplicates)


def evenly(items: list[Kept], limit: int | None) -> list[Kept]:
    """Keep `limit` items, evenly spread."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]
