"""What the figures show: the photos, the models and the results of other methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rpf_lightning.data import PairsDataModule, ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset, collate
from rpf_lightning.data.pairing import Pair, nearest_references, other_person_references
from rpf_lightning.data.pairs import evenly
from rpf_lightning.data.reading import read_photo
from rpf_lightning.data.sample import lr_as_reference
from rpf_lightning.evaluation.measuring import IMAGE_METRICS
from rpf_lightning.evaluation.records import ENLARGED_LR
from rpf_lightning.model import RPFModel
from rpf_lightning.model.rpf import BlockOutput
from rpf_lightning.model.storage import CONFIG_FILE
from rpf_lightning.pictures import result_file, results_in, stem

Model = RPFModel | str | Path
"""A model or its directory."""

Method = Model | Callable[[ReferenceBatch], Tensor]
"""What a comparison shows: what gives (B, 3, S, S) of a batch; a model or its directory; or a folder of results,
named after the GT photos as `rpf predict` names them."""

MEASURED = ("psnr", "psnr_face", "ssim", "lr_consistency")
"""Metrics that may be printed under results."""


class Figure:
    """What all figures begin with: checked arguments, the model, and evenly spread validation pairs.

    With `of_references` the figure is about photos of references: data with the LR in their place are refused.
    With `warped` the pairs have r_warp.
    """

    def __init__(
        self,
        model: Model | None,
        data: PairsDataModule,
        out: str | Path,
        rows: int,
        metrics: Sequence[str] = (),
        of_references: bool = False,
        warped: bool = False,
    ) -> None:
        self.out = Path(out)
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"out: expected the name of a .png file, got {str(out)!r}")
        if rows < 1:
            raise ValueError(f"rows: expected 1 or more, got {rows}")
        if unknown := [name for name in metrics if name not in MEASURED]:
            raise ValueError(f"metrics: expected some of {', '.join(MEASURED)}, got {unknown[0]!r}")
        self.metrics = metrics
        self.from_lr = data.reference == "lr"
        """Whether the enlarged LR stands for every reference."""
        if self.from_lr and of_references:
            raise ValueError(
                "data: its reference is lr, the enlarged LR stands for every reference, but this figure is about "
                "photos of references; take reference: photo"
            )
        if model is not None:
            self.model = load("model", model)
            data.lr_size, data.size = data.lr_size or self.model.lr_size, data.size or self.model.size
            if data.size != self.model.size:
                raise ValueError(f"data: its size {data.size} is not the model's, {self.model.size}")
        self.data = data
        self.dataset = data.val_dataset(warped=warped)
        if not len(self.dataset):
            raise ValueError("data: it has no validation pairs")
        self.places = evenly(list(range(len(self.dataset))), rows)

    def batches(self) -> Iterator[ReferenceBatch]:
        """The chosen pairs at full size, one at a time as a batch."""
        return (self.given(collate([self.dataset[place]])) for place in self.places)

    def given(self, batch: ReferenceBatch) -> ReferenceBatch:
        """A batch as the model gets it: with the enlarged LR as the reference, if the data want that."""
        if not self.from_lr:
            return batch
        return lr_as_reference(batch, self.dataset.size)._replace(reference_id=[ENLARGED_LR] * len(batch.id))

    def like(self, pairs: Sequence[Pair], mask_reference: bool | None = None) -> PairsDataset:
        """Other pairs, made as the validation pairs are."""
        d = self.dataset
        masked = d.mask_reference if mask_reference is None else mask_reference
        return PairsDataset(
            d.photos, pairs, lr_size=d.lr_size, size=d.size, side=d.side, mask_reference=masked,
            source_side=d.source_side, degrade=d.degrade,
        )  # fmt: skip

    def measure(self, output: Tensor, batch: ReferenceBatch) -> dict[str, float]:
        """The values that are printed under an output (1, 3, S, S)."""
        given = batch.lr, batch.gt, batch.gt_mask
        return {name: float(IMAGE_METRICS[name](output, *given)) for name in self.metrics}

    def same_person(self, gt: int, count: int) -> list[Pair]:
        """Up to `count` references of the same person, nearest landmarks first."""
        found = self.data.split_pairs()
        own = found.photos.identities[gt]
        names = [name if name == own else "" for name in found.photos.identities]
        pairs = nearest_references(names, found.photos.landmarks, found.duplicates, count)
        return [pair for pair in pairs if pair.gt == gt]

    def other_people(self, gt: int, count: int) -> list[Pair]:
        """Up to `count` references of other validation people, nearest landmarks first, one of each person."""
        found = self.data.split_pairs()
        names, left, pairs = found.photos.identities, list(found.others), []
        for _ in range(count):
            try:
                pairs += other_person_references([gt], left, names, found.photos.landmarks, found.duplicates)
            except ValueError as error:
                if not pairs:
                    raise ValueError(f"data: {error}") from error
                break
            left = [place for place in left if names[place] != names[pairs[-1].reference]]
        return pairs


def load(argument: str, model: Model, beside: RPFModel | None = None) -> RPFModel:
    """Load a model where it is none yet; errors begin with the argument's name.

    Args:
        argument: The name.
        model: The model or its directory.
        beside: What is loaded goes to the device where this one is; None leaves it on the CPU.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If its files do not fit each other.
    """
    if isinstance(model, RPFModel):
        return model
    try:
        loaded = RPFModel.from_pretrained(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{argument}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    return loaded if beside is None else loaded.to(device_of(beside))


def device_of(model: RPFModel) -> torch.device:
    """Where a model is."""
    return next(model.parameters()).device


def method_of(
    name: str, method: Method, beside: RPFModel | None = None
) -> Callable[[ReferenceBatch], Tensor]:
    """Make a function of a method; a model is loaded `beside` another one, see `load`.

    Raises:
        FileNotFoundError: If it is neither a model directory nor a folder.
        ValueError: If two results of a folder have one name.
    """
    if callable(method) and not isinstance(method, RPFModel):
        return lambda batch: method(batch).detach().cpu()
    if (
        isinstance(method, str | Path)
        and Path(method).is_dir()
        and not (Path(method) / CONFIG_FILE).is_file()
    ):
        folder = Path(method)
        try:
            files = results_in(folder)
        except ValueError as error:
            raise ValueError(f"methods: {name}: {error}") from error
        return lambda batch: torch.stack([_result(name, folder, files, gt) for gt in batch.id])
    model = load(f"methods: {name}", method, beside)
    return lambda batch: output_of(model, batch)


def _result(name: str, folder: Path, files: Mapping[str, Path], gt: str) -> Tensor:
    path = files.get(stem(gt))
    if path is None:
        raise FileNotFoundError(f"methods: {name} has no result {folder / result_file(gt)}")
    return torch.from_numpy(read_photo(path)).permute(2, 0, 1).float() / 255


def blocks_of(model: RPFModel, batch: ReferenceBatch) -> list[BlockOutput]:
    """What every block makes of a batch at full size, on the CPU."""
    device = device_of(model)
    with torch.inference_mode():
        blocks = model(batch.lr.to(device), batch.reference.to(device), return_intermediates=True)[1]
    return [
        block._replace(**{name: image.cpu() for name, image in block._asdict().items() if image is not None})
        for block in blocks
    ]


def output_of(model: RPFModel, batch: ReferenceBatch) -> Tensor:
    """What a model makes of a batch at full size, on the CPU."""
    device = device_of(model)
    with torch.inference_mode():
        return model(batch.lr.to(device), batch.reference.to(device)).cpu()


def caption(batch: ReferenceBatch) -> str:
    """Name the two photos of a batch of one."""
    return f"{batch.id[0]}, reference {batch.reference_id[0]}"
