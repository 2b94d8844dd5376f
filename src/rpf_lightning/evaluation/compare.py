"""Comparison of any number of methods on the same pairs (P IV-C, IV-D; docs/method.md section 10).

A method that copies the reference scores well on ISC and LPIPS and ignores its input, so PSNR and LR
consistency stand beside them always. What the reference gives is read from the difference between the own
reference and one of another person: the difference to no reference also holds what the training gives anyway.

Loading, networks and metrics overlap: while the networks run on one batch, a thread loads the next one and
another measures the one before. Values are appended to `progress.jsonl` batch by batch; a comparison that was
killed goes on there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from rpf_lightning.data.pairs import evenly
from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.devices import place_of
from rpf_lightning.evaluation.contact import picture_row
from rpf_lightning.evaluation.measuring import Networks, Perceptual, ahead, measured
from rpf_lightning.evaluation.methods import Bicubic, Method, Model
from rpf_lightning.evaluation.progress import PROGRESS, Progress, sole_evaluation
from rpf_lightning.evaluation.protocol import protocol
from rpf_lightning.evaluation.records import EvaluationBatch, collate
from rpf_lightning.evaluation.report import write_results
from rpf_lightning.evaluation.statistics import summarise
from rpf_lightning.metrics.faces import Identity
from rpf_lightning.model.rpf import RPFModel

OFF = "off: not given"
SHA256 = {"perceptual": "lpips_sha256", "identity": "isc_sha256", "landmarks": "landmark_sha256"}
"""Where the protocol says which network a metric asks; `Networks` -> its key."""

logger = logging.getLogger(__name__)


def compare(
    methods: Sequence[Method],
    dataset: Dataset[EvaluationBatch],
    out: str | Path,
    *,
    lr_size: int,
    size: int,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    networks: Networks | None = None,
    protocol_extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure methods on the same pairs; writes nothing but `progress.jsonl`, see `report.write_results`.

    Two at a time in one folder would spoil each other's progress: see `progress.sole_evaluation`.

    A comparison that was killed goes on where it was, if everything that the values depend on is the same. That can
    be known where the data set has a `fingerprint()` and `protocol_extra` has the hash of every network
    (`SHA256`); otherwise it starts anew.

    Args:
        methods: At least one; gaps are taken to the first.
        dataset: Samples at full size.
        out: Directory of the results; made with the first values.
        lr_size: Side of the LR.
        size: Side of the faces.
        batch_size: Pairs per step; values do not depend on it beyond rounding.
        workers: Processes that load; 0 is a thread.
        device: A torch device, or "auto": the GPU where there is one.
        networks: Of the metrics.
        protocol_extra: Further entries of the protocol, such as the names of data set and networks. They do
            not replace what is measured here.

    Returns:
        What `results.json` holds, see `docs/evaluation.md`. None stands for a value that does not exist.

    Raises:
        ValueError: If there is no pair; if an output is not finite; if a callable returns another shape.
        TypeError: If `protocol_extra` is not made of JSON types.
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    count = len(cast(Sized, dataset))
    if count == 0:
        raise ValueError("expected at least one pair, got none")
    networks = networks or Networks()
    extra = dict(protocol_extra or {})
    for name, given in (("lpips", networks.perceptual), ("isc", networks.identity)):
        said = extra.get(name, "given by the caller")
        extra[name] = said if given is not None or str(said).startswith("off") else OFF
    given_networks = [name for name, given in networks._asdict().items() if given is not None]
    chosen = place_of(device)
    ids = dataset.ids() if hasattr(dataset, "ids") else None
    for method in methods:
        method.prepare(ids, lr_size, size)
        if (network := method.network()) is not None:
            network.eval().to(chosen)
    for metric in networks:
        if isinstance(metric, nn.Module):
            metric.to(chosen)
    setup = {**extra, **protocol(methods, lr_size, size, chosen)}
    json.dumps(setup, allow_nan=False)  # fails now and not after the measurement

    known = hasattr(dataset, "fingerprint") and all(SHA256[name] in extra for name in given_networks)
    key = {**setup, "networks": given_networks, "data": dataset.fingerprint()} if known else None  # type: ignore[attr-defined]
    progress = Progress(Path(out) / PROGRESS, key)
    rows = progress.read()
    if rows:
        logger.warning("%s: continues after %d of %d pairs", progress.path, len(rows), count)
    rest = Subset(dataset, range(len(rows), count))
    loader = DataLoader(rest, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    batches = (batch.to(chosen) for batch in track(ahead(loader), "evaluating", total=len(loader)))
    for values in measured(methods, batches, networks):
        progress.append(values)
        rows += values
    return summarise(methods, rows, setup)


class BothReferences(Dataset[EvaluationBatch]):
    """Pairs with the own reference and with another person's, from two data sets of the same GTs.

    Args:
        dataset: Each with a reference of the same person.
        other_person: The same GTs in the same order, each with a reference of another person.
        lr_size: Side of the LR that is expected.
        size: Side of the faces.

    Raises:
        ValueError: If the lengths differ; when a sample is read, if sides or names do not fit.
    """

    def __init__(
        self,
        dataset: Dataset[ReferenceBatch],
        other_person: Dataset[ReferenceBatch],
        lr_size: int,
        size: int,
    ) -> None:
        self.count, others = (len(cast(Sized, data)) for data in (dataset, other_person))
        if self.count == 0 or self.count != others:
            raise ValueError(
                f"expected as many other-person pairs as pairs and at least one, got {others} and {self.count}"
            )
        self.masked = bool(getattr(dataset, "mask_reference", True))
        self.parts = {"dataset": dataset, "other_person": other_person}
        self.expected = {"lr": lr_size, "gt": size, "reference": size}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> EvaluationBatch:
        own, other = (part[index] for part in self.parts.values())
        for name, sample in zip(self.parts, (own, other), strict=True):
            for field, side in self.expected.items():
                got = tuple(getattr(sample, field).shape[-2:])
                if got != (side, side):
                    raise ValueError(f"{name}: expected {field} of side {side} as asked for, got {got}")
        if own.id != other.id:
            raise ValueError(f"other_person: expected the GT {own.id!r} as in dataset, got {other.id!r}")
        if own.reference_id == other.reference_id:
            raise ValueError(
                f"other_person: expected another reference for the GT {own.id!r} than dataset's "
                f"{own.reference_id!r}"
            )
        return EvaluationBatch(
            own.lr,
            own.gt,
            own.gt_mask,
            own.reference,
            other.reference,
            own.id,
            str(own.reference_id),
            str(other.reference_id),
            masked=self.masked,
        )


def evaluate(
    model: RPFModel | str | Path,
    dataset: Dataset[ReferenceBatch],
    other_person: Dataset[ReferenceBatch],
    out: str | Path,
    *,
    batch_size: int = 8,
    grid_images: int = 6,
    device: str = "auto",
    perceptual: Perceptual | None = None,
    identity: Identity | None = None,
    protocol_extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure bicubic enlargement and the model without, with its own and with another person's reference.

    Writes what `report.write_results` does, each file whole or not at all.

    Args:
        model: The model or its directory. Its mode and device are restored afterwards.
        dataset: Samples at full size (side S = kappa * L), each with a reference of the same person.
        other_person: The same GTs in the same order, each with a reference of another person.
        out: Directory of the results; made if it is missing.
        batch_size: See `compare`.
        grid_images: Faces in the grid, evenly spread over the pairs; 0 draws none.
        device: See `compare`.
        perceptual: See `Networks`.
        identity: See `Networks`.
        protocol_extra: See `compare`.

    Returns:
        What `results.json` holds: "protocol"; "methods", the mean of every metric for every method; "counts",
        the number of images behind each mean; "per_image"; and more, see `docs/evaluation.md`.

    Raises:
        ValueError: As in `BothReferences` and `compare`.
        TypeError: If `protocol_extra` is not made of JSON types.
    """
    if batch_size < 1 or grid_images < 0:
        raise ValueError(f"expected batch_size >= 1 and grid_images >= 0, got {batch_size} and {grid_images}")
    if not isinstance(model, RPFModel):
        model = RPFModel.from_pretrained(model)
    both = BothReferences(dataset, other_person, model.lr_size, model.size)
    methods = [
        Bicubic("bicubic"),
        Model("without_reference", model, "none"),
        Model("with_reference", model),
        Model("other_person", model, "swap"),
    ]
    training, home = model.training, next(model.parameters()).device
    try:
        with sole_evaluation(Path(out)):
            results = compare(
                methods, both, out, lr_size=model.lr_size, size=model.size, batch_size=batch_size,
                device=device, networks=Networks(perceptual, identity), protocol_extra=protocol_extra,
            )  # fmt: skip
            rows = [picture_row(model, both[i]) for i in evenly(list(range(len(both))), grid_images)]
            write_results(Path(out), results, rows)
    finally:
        model.train(training).to(home)
    return results
