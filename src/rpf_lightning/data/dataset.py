"""Pairs and faces as datasets: made from photos, at one level."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rpf_lightning.data.batches import FaceBatch, Photo, ReferenceBatch
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.drawn_references import Drawn, Kind, ReferenceOptions, References
from rpf_lightning.data.flow_target import target_flow
from rpf_lightning.data.jitter import Colour, Warp, inverse_flow, resample
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.sample import (
    Record,
    ReferenceLevel,
    ReferencePart,
    bicubic,
    check_sizes,
    join,
    make_face,
    mirror,
    reference_levels,
)
from rpf_lightning.data.thin_plate import warp as tps_warp


class PhotoSource(Protocol):
    """What gives the photos: a prepared folder, or faces made on the fly.

    Attributes:
        ids: Names of the photos.
        identities: Names of the people, empty if unknown.
        landmarks: (68, 2) per photo in fractions of its side, or None.
        sha256: Hash over the photos and their annotations.
    """

    ids: list[str]
    identities: list[str]
    landmarks: list[NDArray[np.float64] | None]
    sha256: str

    def photo(self, index: int) -> Photo:
        """Return one photo; the same index gives the same photo."""

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Pairs of photos that are the same photo twice."""

    def __len__(self) -> int: ...


# Finished samples live as long as their photos: the fits of one curriculum share both.
_SAMPLES: WeakKeyDictionary[PhotoSource, dict[tuple[float, ...], ReferenceBatch]] = WeakKeyDictionary()

Index = int | tuple[int, int]


class LevelDataset(Dataset[Record], ABC):
    """Samples of one level. From index n = len on, up to 2n, come their mirror images.

    Attributes:
        random: Whether samples differ from epoch to epoch; then an index comes with its epoch. Datasets hold nothing
            random themselves: copies of them live in workers that stay from epoch to epoch.
    """

    random = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples n, without the mirror images."""

    @abstractmethod
    def sample(self, index: int, epoch: int = 0) -> Record:
        """Return sample 0 .. n - 1 without batch dimension; treat it as read-only, it may come from a cache."""

    def __getitem__(self, index: Index) -> Record:
        """Return sample `index`, or from n on the mirror image of sample `index` - n.

        Args:
            index: Place, or place and epoch.

        Raises:
            IndexError: if the place is outside 0 .. 2n - 1.
        """
        place, epoch = index if isinstance(index, tuple) else (index, 0)
        count = len(self)
        if not 0 <= place < 2 * count:
            raise IndexError(f"expected an index in 0..{2 * count - 1}, got {place}")
        sample = self.sample(place % count, epoch)
        return (sample if place < count else mirror(sample))._replace(place=place)

    def __iter__(self) -> Iterator[Record]:
        """Return the samples without their mirror images."""
        return (self[index] for index in range(len(self)))


class ReferenceDataset(LevelDataset[ReferenceBatch]):
    """Samples with references; subclasses say where the levels of a photo come from.

    Args:
        photos: The photos that the pairs index.
        pairs: GT and reference indices.
        side: Side S of the level.
        sides: Sides of which references can be had.
        warped: Make r_warp.
        flow_rest: See `target_flow`.
        references: Draws the references; None takes the pairs' own.
    """

    def __init__(
        self,
        photos: PhotoSource,
        pairs: Sequence[Pair],
        side: int,
        sides: Sequence[int],
        *,
        warped: bool = False,
        flow_rest: float = 1.0,
        references: References | None = None,
    ) -> None:
        self.photos, self.pairs, self.side = photos, list(pairs), side
        self.warped, self.flow_rest, self.references = warped, flow_rest, references
        self.finest = max(sides)  # r_warp is warped there
        self.sampled = 2 * side if 2 * side in sides else side  # jitter is

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the references differ from epoch to epoch."""
        return self.references is not None and self.references.options.random

    def __len__(self) -> int:
        return len(self.pairs)

    @abstractmethod
    def face(self, photo: int) -> FaceBatch:
        """Return a photo as a GT."""

    @abstractmethod
    def levels(self, photo: int, sides: set[int]) -> dict[int, ReferenceLevel]:
        """Return a photo as a reference, at some sides."""

    def points(self, photo: int) -> NDArray[np.float64]:
        """Return the landmarks of a photo.

        Raises:
            ValueError: If it has none.
        """
        points = self.photos.landmarks[photo]
        if points is None:
            raise ValueError(f"photo {self.photos.ids[photo]!r} has no landmarks; the flow needs 68 points")
        return points

    def sample(self, index: int, epoch: int = 0) -> ReferenceBatch:
        """Return one sample without batch dimension; the same epoch gives the same one."""
        pair, slots = self.pairs[index], 1
        drawn = Drawn((pair.reference,), "own", 0)
        if self.references is not None:
            drawn, slots = self.references.draw(index, epoch), self.references.options.max_references
        rng = np.random.default_rng(drawn.seed)
        parts = [self._part(pair.gt, photo, drawn.kind, rng) for photo in drawn.photos]
        return join(self.face(pair.gt), self.points(pair.gt), parts, slots, self.warped)

    def _part(self, gt: int, photo: int, kind: Kind, rng: np.random.Generator) -> ReferencePart:
        """Make one reference of a sample."""
        points, gt_points, side = self.points(photo), self.points(gt), self.side
        jitter = ReferenceOptions() if self.references is None else self.references.options
        warp = None
        if kind == "self":
            warp = Warp.smooth(rng, points.mean(0))
        elif jitter.similarity_jitter:
            warp = Warp.similarity(rng, jitter.similarity_jitter, points.mean(0))
        colour = Colour.draw(rng, jitter.colour_jitter) if jitter.colour_jitter else None

        source = side if warp is None else self.sampled
        levels = self.levels(photo, {source, self.finest} if self.warped else {source})
        level, moved, r_warp = levels[source], points, None
        if warp is not None:
            level = resample(level, side, warp)
            moved = warp.inverse(torch.from_numpy(points)).numpy()
        if warp is not None and kind == "self":
            flow = inverse_flow(warp, side)
        else:
            flow = target_flow(gt_points, moved, side, self.flow_rest)
        if self.warped:
            # from where it was: what moves a reference moves its landmarks alike, and the flow undoes it
            finest = levels[self.finest]
            image = finest.image if colour is None else colour(finest.image, finest.mask)
            to_gt = target_flow(gt_points, points, self.finest, self.flow_rest)
            r_warp = bicubic(tps_warp(image[None], to_gt), side)[0]
        if colour is not None:
            level = level._replace(image=colour(level.image, level.mask))
        known = self.photos.identities[gt] == self.photos.identities[photo]
        return ReferencePart(level, r_warp, flow, known, moved, self.photos.ids[photo])


class PairsDataset(ReferenceDataset):
    """Samples of one level, made from pairs of photos (P III, Fig. 2).

    Both photos are brought to the full size first. The GT of the level is one bicubic step from the photo
    itself; the reference is masked at full size (eq. 1) and then halved repeatedly; r_warp (eq. 3) is masked
    and thin-plate warped at full size, then reduced in one step. After every step images are clamped to
    [0, 1], where bicubic overshoots.

    With `cache_mb`, finished samples are kept in memory, unless all of them together would exceed it, or they are
    random: then none is. Datasets of the same photos share samples and budget. It counts per process: every loader
    worker may use that much.

    Args:
        photos: The photos that the pairs index.
        pairs: GT and reference indices.
        lr_size: Side L of the LR input in pixels.
        size: Full output side, kappa * L.
        side: Side S of the level.
        mask_reference: Remove the non-facial region of the reference; without it (an ablation, P Table 2) its
            mask is 1 everywhere.
        source_side: Give in place of the LR the GT of this side, for a degradation to make the LR from.
        degrade: Makes the LR here; without it the datamodule makes it in batches on the device.
        cache_mb: Memory for finished samples in MiB.
        kwargs: `warped`, `flow_rest` and `references` of `ReferenceDataset`.

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
        **kwargs: Any,
    ) -> None:
        check_sizes(lr_size, size, side)
        super().__init__(photos, pairs, side, [*{side, min(2 * side, size), size}], **kwargs)
        self.lr_size, self.size = lr_size, size
        self.mask_reference, self.source_side = mask_reference, source_side
        self.degrade = degrade
        # two or three images, three masks and the flow; the LR; the landmarks
        numbers = (14 if self.warped else 11) * side**2 + 3 * (source_side or lr_size) ** 2 + 4 * 68 + 1
        wanted = len(self.pairs) * numbers
        self.cached = 0 < wanted * 4 <= cache_mb * 2**20 and not self.random
        self._samples = _SAMPLES.setdefault(photos, {})
        if self.cached:
            tensors = (x for sample in self._samples.values() for x in sample if isinstance(x, Tensor))
            held = sum(x.numel() for x in tensors)
            if (wanted + held) * 4 > cache_mb * 2**20:
                self._samples.clear()  # another level's, mostly

    def face(self, photo: int) -> FaceBatch:
        """Make a GT from its photo."""
        return make_face(
            self.photos.photo(photo),
            lr_size=self.lr_size, size=self.size, side=self.side, source_side=self.source_side,
        )  # fmt: skip

    def levels(self, photo: int, sides: set[int]) -> dict[int, ReferenceLevel]:
        """Make a reference from its photo."""
        return reference_levels(self.photos.photo(photo), self.size, sides, self.mask_reference)

    def sample(self, index: int, epoch: int = 0) -> ReferenceBatch:
        """Return one sample without batch dimension; treat it as read-only, it may come from the cache."""
        pair = self.pairs[index]
        key = (
            pair.gt, pair.reference, self.lr_size, self.size, self.side, self.mask_reference, self.source_side or 0,
            self.warped, self.flow_rest,
        )  # fmt: skip
        sample = self._samples.get(key) if self.cached else None
        if sample is None:
            sample = super().sample(index, epoch)
            if self.cached:
                self._samples[key] = sample
        if self.degrade is not None:  # after the cache, which other datasets share
            sample = sample._replace(lr=self.degrade(sample.lr[None], [self.photos.ids[pair.gt]])[0])
        return sample

    def fingerprint(self) -> str | None:
        """Hash of everything that LR, references, masks and flow depend on, and of their order; None: random."""
        if self.random:
            return None
        return fingerprint(
            type(self).__name__, self.photos.sha256, [pair[:2] for pair in self.pairs],
            self.lr_size, self.size, self.side, self.mask_reference, self.source_side, self.flow_rest,
        )  # fmt: skip


class FacesDataset(LevelDataset[FaceBatch]):
    """Samples without references: photos as a dataset of pairs gives them as GTs.

    Args:
        source: Gives them; its pairs are not asked for.
        indices: Which of its photos.
    """

    def __init__(self, source: ReferenceDataset, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, epoch: int = 0) -> FaceBatch:
        """Return one sample without batch dimension."""
        return self.source.face(self.indices[index])


def collate(samples: list[Record]) -> Record:
    """Stack samples into a batch; names and places become lists, which stay where they are, and None stays None."""

    def stacked(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return default_collate(values) if isinstance(values[0], Tensor) else values

    return type(samples[0])(*(stacked(list(column)) for column in zip(*samples, strict=True)))


def fingerprint(*content: object) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
