"""Comparison of any number of methods on the same pairs (P IV-C, IV-D; METHOD section 10).

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
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.evaluation.contact import picture_row, spread
from rpf_lightning.evaluation.methods import Bicubic, EvaluationBatch, Fault, Method, Model, collate
from rpf_lightning.evaluation.report import PROGRESS, protocol, write_results
from rpf_lightning.evaluation.statistics import summarise
from rpf_lightning.metrics.faces import landmark_distance
from rpf_lightning.metrics.image import detail_error, lr_consistency, psnr, psnr_face, ssim
from rpf_lightning.model.rpf import RPFModel

if TYPE_CHECKING:
    from rpf_lightning.faces.landmarks import LandmarkModel

OFF = "off: no weights"
METHODS = ("bicubic", "without_reference", "with_reference", "other_person")

logger = logging.getLogger(__name__)
Perceptual = Callable[[Tensor, Tensor], Tensor]
Identity = Callable[[Tensor], Tensor]
Row = dict[str, Any]
Item = TypeVar("Item")


class Networks(NamedTuple):
    """Networks of metrics; None leaves the metric out.

    Attributes:
        perceptual: LPIPS: (B, 3, S, S) prediction and GT, both in [0, 1] on the device, to (B,).
        identity: Features of ArcFace: (B, 3, S, S) in [0, 1] on the device to (B, D); ISC is the cosine between
            those of output and GT. A row of NaN says that no face was found.
        landmarks: Finds landmarks, for the landmark distance.
    """

    perceptual: Perceptual | None = None
    identity: Identity | None = None
    landmarks: LandmarkModel | None = None


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

    A comparison that was killed goes on where it was, if everything that the values depend on is the same: it
    is, and can be known, where the data set has a `fingerprint()`. Otherwise it starts anew.

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
        extra[name] = OFF if given is None else extra.get(name, "given by the caller")
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    ids = dataset.ids() if hasattr(dataset, "ids") else None
    for method in methods:
        method.prepare(ids, size)
        if (network := method.network()) is not None:
            network.eval().to(chosen)
    for metric in networks:
        if isinstance(metric, nn.Module):
            metric.to(chosen)
    setup = {**extra, **protocol(methods, lr_size, size, chosen)}
    json.dumps(setup, allow_nan=False)  # fails now and not after the measurement

    fingerprint = dataset.fingerprint() if hasattr(dataset, "fingerprint") else None
    progress = _Progress(
        Path(out) / PROGRESS, None if fingerprint is None else {**setup, "data": fingerprint}
    )
    rows = progress.read()
    if rows:
        logger.warning("%s: continues after %d of %d pairs", progress.path, len(rows), count)
    rest = Subset(dataset, range(len(rows), count))
    loader = DataLoader(rest, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    batches = (batch.to(chosen) for batch in track(_ahead(loader), "evaluating", total=len(loader)))
    for measured in _measured(methods, batches, networks):
        progress.append(measured)
        rows += measured
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
            own.reference_id,
            other.reference_id,
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
        results = compare(
            methods, both, out, lr_size=model.lr_size, size=model.size, batch_size=batch_size,
            device=device, networks=Networks(perceptual, identity), protocol_extra=protocol_extra,
        )  # fmt: skip
        rows = [picture_row(model, both[i]) for i in spread(len(both), grid_images)]
    finally:
        model.train(training).to(home)
    write_results(Path(out), results, rows)
    return results


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Fetch the next item in a thread while the caller works on this one."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield cast(Item, item)


def _measured(
    methods: Sequence[Method], batches: Iterable[EvaluationBatch], networks: Networks
) -> Iterator[list[Row]]:
    """Run all methods, and measure each batch in a thread while the next one runs."""
    pending: Future[list[Row]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            # The data sets run outside of inference mode: what they cache may be used for training later.
            with torch.inference_mode():
                outputs = [method(batch).float() for method in methods]
            faults = [[method.fault(photo) for photo in batch.id] for method in methods]
            # unpacked before the next is submitted: at most two batches are in memory
            if pending is not None:
                yield pending.result()
            pending = thread.submit(partial(_rows, methods, batch, outputs, faults, networks))
        if pending is not None:
            yield pending.result()


def _rows(
    methods: Sequence[Method],
    batch: EvaluationBatch,
    outputs: Sequence[Tensor],
    faults: Sequence[Sequence[Fault | None]],
    networks: Networks,
) -> list[Row]:
    """Return what is known about every pair of a batch."""
    rows: list[Row] = [
        {"id": photo, "reference_id": reference, "metrics": {}, "faults": {}}
        for photo, reference in zip(batch.id, batch.reference_id, strict=True)
    ]
    if batch.other_id is not None:
        for row, other in zip(rows, batch.other_id, strict=True):
            row["other_id"] = other
    with torch.inference_mode():
        seen = None if networks.identity is None else networks.identity(batch.gt)
        for method, output, found in zip(methods, outputs, faults, strict=True):
            if not output.isfinite().all():  # NaN would pass for an image without a value
                names = ", ".join(batch.id)
                raise ValueError(f"{method.name}: the output is not finite for a photo among {names}")
            columns = _values(output.clamp(0, 1), method.reference(batch), batch, seen, networks)
            for place, (row, fault) in enumerate(zip(rows, found, strict=True)):
                missing = fault is not None and fault.fatal
                row["metrics"][method.name] = {
                    metric: None if missing else _number(column[place]) for metric, column in columns.items()
                }
                if fault is not None:
                    row["faults"][method.name] = list(fault)
    return rows


def _values(
    output: Tensor, reference: Tensor, batch: EvaluationBatch, seen: Tensor | None, networks: Networks
) -> dict[str, list[float]]:
    """Return every metric's values; `seen` are the features of the GT."""
    lr, gt, mask = batch.lr, batch.gt, batch.mask
    values = {
        "psnr": psnr(output, gt),
        "ssim": ssim(output, gt),
        "psnr_face": psnr_face(output, gt, mask),
        "detail_error": detail_error(output, gt, mask, lr.shape[-1]),
        "lr_consistency": lr_consistency(output, lr),
    }
    if networks.perceptual is not None:
        values["lpips"] = networks.perceptual(output, gt)
    if networks.identity is not None and seen is not None:
        features = networks.identity(output)
        values["isc"] = F.cosine_similarity(features, seen, dim=1)
        values["isc_reference"] = F.cosine_similarity(features, networks.identity(reference), dim=1)
    if networks.landmarks is not None:
        values["landmark_distance"] = landmark_distance(output, gt, networks.landmarks)
    for metric, value in values.items():
        if value.shape != (len(lr),):
            raise ValueError(f"{metric}: expected {len(lr)} values, one per image, got {tuple(value.shape)}")
    return {metric: value.double().tolist() for metric, value in values.items()}


class _Progress:
    """Values that were measured, a JSON object per line; the first line says what they depend on.

    Args:
        path: The file.
        setup: What the values depend on; None keeps no file.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any] | None) -> None:
        self.path, self.setup = path, None if setup is None else json.loads(json.dumps(setup))

    def read(self) -> list[Row]:
        """Return the rows of a comparison like this one; a torn last line is dropped, another's file removed."""
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end is torn
        try:
            header, *rows = [json.loads(line) for line in lines]
        except ValueError:  # empty, or torn by a crash of the machine
            header, rows = {}, []
        if self.setup is None or header != self.setup:
            known = self.setup or {}
            header = header if isinstance(header, dict) else {}
            differing = sorted(key for key in {*header, *known} if header.get(key) != known.get(key))
            logger.warning(
                "%s: starts anew, the unfinished comparison there differs in: %s",
                self.path, ", ".join(differing) or "nothing that is known",
            )  # fmt: skip
            self.path.unlink()
            return []
        whole = b"".join(line + b"\n" for line in lines)
        if self.path.stat().st_size != len(whole):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return rows

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.setup is None:
            return
        lines = [*([] if self.path.is_file() else [self.setup]), *rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
