"""The pairs that methods are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from rpf_lightning.data import PairsDataModule
from rpf_lightning.data.dataset import PairsDataset, PhotoSource, fingerprint
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.pairs_datamodule import SplitPairs, evenly
from rpf_lightning.data.prepared_datamodules import ReferencePairsDataModule
from rpf_lightning.data.sample import full_reference, make_face
from rpf_lightning.evaluation.evaluation_batch import ENLARGED_LR, EvaluationBatch
from rpf_lightning.evaluation.methods import Method
from rpf_lightning.model.resize import resize

PARTS = ("train", "val", "test")


class EvaluationPairs(Dataset[EvaluationBatch]):
    """Pairs of photos at full size, without the thin-plate splines that only training needs.

    Args:
        base: The pairs, and how samples are made.
        others: The same GTs with references of other people; None gives none.
        unmasked: Also give the reference without the mask.
        lr_as_reference: Put the enlarged LR in place of each reference, as in the training of the ablation "w/o
            reference" (P Table 2).
    """

    def __init__(
        self,
        base: PairsDataset,
        others: Sequence[Pair] | None,
        unmasked: bool = False,
        lr_as_reference: bool = False,
    ) -> None:
        self.base, self.others = base, None if others is None else list(others)
        self.unmasked, self.lr_as_reference = unmasked, lr_as_reference

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> EvaluationBatch:
        base, pair = self.base, self.base.pairs[index]
        face = make_face(
            base.photos.photo(pair.gt), lr_size=base.lr_size, size=base.size, side=base.size,
            source_side=base.source_side,
        )  # fmt: skip
        name = base.photos.ids[pair.gt]
        lr = face.lr if base.degrade is None else base.degrade(face.lr[None], [name])[0]
        if self.lr_as_reference:
            reference, reference_id = resize(lr[None], base.size)[0].clamp(0, 1), ENLARGED_LR
        else:
            reference, reference_id = self._reference(pair.reference, base.mask_reference)
        other, other_id = None, None
        if self.others is not None:
            other, other_id = self._reference(self.others[index].reference, base.mask_reference)
        unmasked = self._reference(pair.reference, False)[0] if self.unmasked else None
        return EvaluationBatch(
            lr, face.gt, face.gt_mask, reference, other, name, reference_id, other_id, unmasked,
            base.mask_reference,
        )  # fmt: skip

    def like(self, **changes: Any) -> EvaluationPairs:
        """Return the same with other attributes of `base`: its pairs, its degradation."""
        other = copy(self)
        other.base = copy(self.base)
        for name, value in changes.items():
            setattr(other.base, name, value)
        return other

    def _reference(self, place: int, masked: bool) -> tuple[Tensor, str]:
        photos = self.base.photos
        return full_reference(photos.photo(place), self.base.size, masked)[0][0], photos.ids[place]

    def ids(self) -> list[str]:
        """Return the names of the GTs."""
        return [self.base.photos.ids[pair.gt] for pair in self.base.pairs]

    def fingerprint(self) -> str:
        """Hash of everything that the samples depend on."""
        others = None if self.others is None else [pair[:2] for pair in self.others]
        degrade = self.base.degrade
        lr = None if degrade is None else [degrade.kind, degrade.seed]
        return fingerprint(self.base.fingerprint(), others, self.lr_as_reference, lr)


class ChosenPairs(PairsDataModule):
    """Pairs that were chosen, as the validation part of `found`; further arguments are those of `PairsDataModule`."""

    def __init__(self, found: SplitPairs, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.found = found

    def find_pairs(self) -> SplitPairs:
        """Return them."""
        return self.found


def pairs_for(data: PairsDataModule, methods: Sequence[Method]) -> EvaluationPairs:
    """Make the samples that methods read, of the validation part of `data`.

    Raises:
        ValueError: If a method reads a photo of a reference, but in `data` the LR is the reference.
    """
    from_lr = data.reference == "lr"
    reading = [m.name for m in methods if m.needs_other or m.needs_photo]
    if from_lr and reading:
        raise ValueError(
            f"data: reference is lr, the enlarged LR stands for every reference, but {', '.join(reading)} needs a "
            "photo; leave the method out, or take reference: photo"
        )
    others = data.val_dataset(other_person=True).pairs if any(m.needs_other for m in methods) else None
    unmasked = any(m.needs_unmasked for m in methods)
    return EvaluationPairs(data.val_dataset(), others, unmasked, from_lr)


def choose_pairs(data: PairsDataModule, split: str | None = None) -> tuple[PairsDataModule, str]:
    """Choose the pairs to evaluate on.

    Args:
        data: The data; its sides are known.
        split: The name of a split of the prepared folder, such as "all" or "paper_test"; or a part of the
            datamodule's own: "train", "val", "test". None is "val".

    Returns:
        A datamodule whose validation part they are, and what the protocol says of the choice. The people whose
        photos serve as another person's are those of all pairs of the split: `limit_train` and `limit_val` leave
        pairs out, and change no other person.

    Raises:
        FileNotFoundError: If there is no such split; the message has those there are.
    """
    named: list[str] = []
    if isinstance(data, ReferencePairsDataModule) and split is not None:
        photos = data.prepared()
        named = photos.splits
        if split in named:
            return _with_pairs(data, photos.pairs(split), photos, photos.near_duplicates()), split
    of = f"{data.split} " if isinstance(data, ReferencePairsDataModule) and data.split else ""
    if split in (None, "val"):
        return data, f"{of}val"
    if split not in PARTS:
        raise FileNotFoundError(
            f"no split {split!r}: expected one of {', '.join(dict.fromkeys([*named, *PARTS]))}"
        )
    found = data.find_pairs()
    pairs = getattr(found, split)
    said = "test (no such part: validation)" if split == "test" and pairs == found.val else split
    limit = data.limit_train if split == "train" else None
    return _with_pairs(data, pairs, found.photos, found.duplicates, limit), f"{of}{said}"


def _with_pairs(
    data: PairsDataModule,
    pairs: list[Pair],
    photos: PhotoSource,
    duplicates: list[tuple[int, int]],
    limit: int | None = None,
) -> ChosenPairs:
    people = {photos.identities[pair.gt] for pair in pairs}
    others = [place for place, name in enumerate(photos.identities) if name in people]
    kept = evenly(pairs, limit)
    return ChosenPairs(
        SplitPairs(photos, [], kept, kept, others, duplicates),
        lr_size=data.lr_size, size=data.size, limit_val=data.limit_val, seed=data.seed,
        degradation=data.degradation, mask_reference=data.mask_reference, reference=data.reference,
    )  # fmt: skip
