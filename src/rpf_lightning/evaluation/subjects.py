"""What the figures show: the model, evenly spread validation pairs, and what methods make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rpf_lightning.data import PairsDataModule, ReferenceBatch
from rpf_lightning.data.pairing import Pair, nearest_references, other_person_references
from rpf_lightning.data.pairs_datamodule import evenly
from rpf_lightning.drawing import Cell, cell
from rpf_lightning.evaluation.chosen_metrics import image_metrics
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch, collate
from rpf_lightning.evaluation.evaluation_pairs import pairs_for
from rpf_lightning.evaluation.methods import Method, output_of
from rpf_lightning.metrics import PerImageMetric
from rpf_lightning.model import RPFModel
from rpf_lightning.model.reconstruction_block import BlockOutput

Network = RPFModel | str | Path
"""A model or its directory."""


class Figure:
    """What all figures begin with: checked arguments, the model, and evenly spread validation pairs.

    With `of_references` the figure is about photos of references: data with the LR in their place are refused.
    """

    def __init__(
        self,
        model: Network | None,
        data: PairsDataModule,
        out: str | Path,
        rows: int,
        metrics: Sequence[str] = (),
        of_references: bool = False,
    ) -> None:
        self.out = Path(out)
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"out: expected the name of a .png file, got {str(out)!r}")
        if rows < 1:
            raise ValueError(f"rows: expected 1 or more, got {rows}")
        known = image_metrics()
        if unknown := [name for name in metrics if name not in known]:
            raise ValueError(f"metrics: expected some of {', '.join(known)}, got {unknown[0]!r}")
        self.metrics = {name: known[name] for name in metrics}
        if data.reference == "lr" and of_references:
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
        self.pairs = pairs_for(data, [])
        if not len(self.pairs):
            raise ValueError("data: it has no validation pairs")
        self.places = evenly(list(range(len(self.pairs))), rows)

    def add(self, methods: Sequence[Method]) -> None:
        """Prepare other methods: what they read, where they compute, and what they refuse."""
        self.pairs = pairs_for(self.data, methods)
        names = [self.pairs.ids()[place] for place in self.places]
        for method in methods:
            with naming("methods"):
                method.prepare(names, self.pairs.base.lr_size, self.pairs.base.size)
            if (network := method.network()) is not None:
                network.eval().to(device_of(self.model))

    def batches(self) -> Iterator[EvaluationBatch]:
        """The chosen pairs, one at a time as a batch."""
        return (collate([self.pairs[place]]) for place in self.places)

    def run(self, method: Method, batch: EvaluationBatch) -> Tensor:
        """What a method makes of a batch of one, on the CPU; it computes where its network is.

        A folder without such an image is a FileNotFoundError, another shape a ValueError.
        """
        network = method.network()
        given = batch if network is None else batch.to(next(network.parameters()).device)
        with naming("methods"):
            output = output_of(method, given).cpu()
        if (fault := method.fault(batch.id[0])) is not None and fault.fatal:
            raise FileNotFoundError(f"methods: {method.name}: {fault.kind}: {fault.text}")
        return output

    def cell(self, output: Tensor, batch: EvaluationBatch) -> Cell:
        """A cell of an output (1, 3, S, S) with what was measured of it."""
        metrics = self.metrics
        given = {"lr": batch.lr, "gt": batch.gt, "mask": batch.mask}
        measured = {name: float(metric.measure(output, **given)) for name, metric in metrics.items()}
        lines = [_printed(metrics[name], value) for name, value in measured.items()]
        return cell(output[0], *lines, values=measured)

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


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Begin what is said of a missing file or a wrong value with the argument's name."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{argument}: {error}") from error


def load(argument: str, model: Network) -> RPFModel:
    """Load a model where it is none yet; a missing one's and a broken one's error begins with the argument's name."""
    if isinstance(model, RPFModel):
        return model
    with naming(argument):
        return RPFModel.from_pretrained(model)


def device_of(model: RPFModel) -> torch.device:
    """Where a model is."""
    return next(model.parameters()).device


def blocks_of(model: RPFModel, batch: EvaluationBatch | ReferenceBatch) -> list[BlockOutput]:
    """What every block makes of a batch at full size, on the CPU."""
    device = device_of(model)
    with torch.inference_mode():
        blocks = model(batch.lr.to(device), batch.reference.to(device), return_intermediates=True)[1]
    return [
        block._replace(**{name: image.cpu() for name, image in block._asdict().items() if image is not None})
        for block in blocks
    ]


def _printed(metric: PerImageMetric, value: float) -> str:
    """A value with its metric's name; one that does not exist (no face was found) is a dash."""
    of = metric.describe()
    number = "-" if math.isnan(value) else f"{value:.{of['digits']}f}"
    return " ".join(filter(None, (of["label"], number, of["unit"])))


def caption(batch: EvaluationBatch | ReferenceBatch) -> str:
    """Name the two photos of a batch of one."""
    return f"{batch.id[0]}, reference {batch.reference_id[0]}"
