"""Which references a training sample gets: drawn per seed, epoch and place, the same in every process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np

from rpf_lightning.data.pairing import twins_of

Kind = Literal["own", "wrong", "self", "absent"]
KINDS: tuple[Kind, ...] = ("wrong", "absent", "self", "own")
SHARES = ("several_fraction", "wrong_fraction", "absent_fraction", "self_fraction")


class Drawn(NamedTuple):
    """The references of one sample.

    Attributes:
        photos: Indices of the photos; none where there is no reference.
        kind: Of the same person, of another one, the GT itself, or none.
        seed: Of what else is random about them.
    """

    photos: tuple[int, ...]
    kind: Kind
    seed: int


@dataclass(frozen=True)
class ReferenceOptions:
    """How references are drawn and changed; see `PairsDataModule`.

    Raises:
        ValueError: If a value is outside its range, or some do not go together.
    """

    references: Literal["nearest", "all"] = "nearest"
    max_references: int = 1
    several_fraction: float = 0.0
    wrong_fraction: float = 0.0
    absent_fraction: float = 0.0
    self_fraction: float = 0.0
    colour_jitter: float = 0.0
    similarity_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.references not in ("nearest", "all"):
            raise ValueError(f"references: expected nearest or all, got {self.references!r}")
        if self.max_references < 1:
            raise ValueError(f"max_references: expected at least 1, got {self.max_references}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if self.wrong_fraction + self.absent_fraction + self.self_fraction > 1:
            raise ValueError(
                "wrong_fraction, absent_fraction and self_fraction: expected a sum of at most 1, got "
                f"{self.wrong_fraction} + {self.absent_fraction} + {self.self_fraction}"
            )
        if self.several_fraction > 0 and self.max_references == 1:
            raise ValueError("several_fraction: expected max_references of at least 2 with it, got 1")
        if self.max_references > 1 and self.references != "all":
            raise ValueError(f"max_references: expected references: all with {self.max_references}")
        for name, highest in (("colour_jitter", 1.0), ("similarity_jitter", 0.5)):
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(
                    f"{name}: expected a strength in [0, {highest:g}], got {getattr(self, name)}"
                )

    @property
    def random(self) -> bool:
        """Whether a sample's references differ from epoch to epoch."""
        fixed = ("references", "max_references")
        return self.references == "all" or any(
            getattr(self, field.name) for field in fields(self) if field.name not in fixed
        )


class References:
    """The references that the training samples may get.

    Args:
        options: How they are drawn.
        pairs: GT and nearest reference of each sample.
        photos: The photos of the training part that may be references; they have landmarks.
        identities: Name of the person on each photo.
        duplicates: Pairs of photos that are the same photo twice.
        seed: Of all draws.

    Raises:
        ValueError: If another person's references are asked for and there is only one person.
    """

    def __init__(
        self,
        options: ReferenceOptions,
        pairs: Sequence[tuple[int, int]],
        photos: Iterable[int],
        identities: Sequence[str],
        duplicates: Iterable[tuple[int, int]],
        seed: int,
    ) -> None:
        self.options, self.pairs, self.seed = options, list(pairs), seed
        self.photos = sorted(set(photos))
        self.person = {photo: identities[photo] for photo in self.photos}
        self.people: dict[str, list[int]] = defaultdict(list)
        for photo in self.photos:
            self.people[self.person[photo]].append(photo)
        self.twins = twins_of(duplicates)
        if options.wrong_fraction > 0 and len(self.people) < 2:
            raise ValueError("wrong_fraction: expected photos of at least two people")

    def own(self, place: int) -> list[int]:
        """Return what may be the reference of a sample: photos of the same person that are not the GT."""
        gt, nearest = self.pairs[place]
        if self.options.references == "nearest":
            return [nearest]
        out = {gt, *self.twins.get(gt, ())}
        return [photo for photo in self.people[self.person[gt]] if photo not in out]

    def draw(self, place: int, epoch: int) -> Drawn:
        """Draw the references of a sample.

        Args:
            place: Which sample.
            epoch: Which epoch.
        """
        options = self.options
        rng = np.random.default_rng([self.seed, epoch, place, 1])  # 1: not the stream of the samples' order
        seed = int(rng.integers(2**62))
        shares = np.cumsum([options.wrong_fraction, options.absent_fraction, options.self_fraction])
        kind = KINDS[int(np.searchsorted(shares, rng.random(), side="right"))]
        if kind == "absent":
            return Drawn((), "absent", seed)
        gt = self.pairs[place][0]
        if kind == "self":
            return Drawn((gt,), "self", seed)
        candidates = self.own(place) if kind == "own" else self._wrong(gt, rng)
        count, highest = 1, min(options.max_references, len(candidates))
        if highest > 1 and rng.random() < options.several_fraction:
            count = int(rng.integers(2, highest + 1))
        chosen = rng.permutation(len(candidates))[:count]
        return Drawn(tuple(candidates[i] for i in chosen), kind, seed)

    def _wrong(self, gt: int, rng: np.random.Generator) -> list[int]:
        """Return the photos of another person; the more photos, the likelier."""
        out = self.twins.get(gt, set())  # under another name
        for i in rng.permutation(len(self.photos)):
            name = self.person[self.photos[i]]
            if name != self.person[gt] and (found := [p for p in self.people[name] if p not in out]):
                return found
        raise ValueError(
            f"wrong_fraction: no photo of a person other than {self.person[gt]!r} to choose from"
        )
