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
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from rpf_lightning.evaluation.chosen_metrics import SHA256
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch, Fault, collate
from rpf_lightning.evaluation.methods import Function, Method, output_of
from rpf_lightning.evaluation.progress import PROGRESS, Progress, Row
from rpf_lightning.evaluation.statistics import LEVEL, RESAMPLES, SEED, summarise
from rpf_lightning.metrics import NetworkMetric, PerImageMetric
from rpf_lightning.metrics.face_networks import Seen
from rpf_lightning.metrics.image import ERROR_FLOOR
from rpf_lightning.model import storage

Item = TypeVar("Item")
logger = logging.getLogger(__name__)


def compare(
    methods: Sequence[Method],
    dataset: Dataset[EvaluationBatch],
    out: str | Path,
    metrics: Mapping[str, PerImageMetric],
    *,
    lr_size: int,
    size: int,
    device: torch.device,
    batch_size: int = 8,
    workers: int = 0,
    protocol_extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure methods on the same pairs; writes nothing but `progress.jsonl`, see `result_files.write_results`.

    Two at a time in one folder would spoil each other's progress: see `progress.sole_evaluation`.

    A comparison that was killed goes on where it was, if everything that the values depend on is the same. That can
    be known where the data set has a `fingerprint()`, `protocol_extra` has the hash of every metric's network
    (`SHA256`), and methods and metrics are the package's own; otherwise it starts anew.

    Args:
        methods: At least one; gaps are taken to the first.
        dataset: Samples at full size.
        out: Directory of the results; made with the first values.
        metrics: By name.
        lr_size: Side of the LR.
        size: Side of the faces.
        device: Where to compute.
        batch_size: Pairs per step; values do not depend on it beyond rounding.
        workers: Processes that load; 0 is a thread.
        protocol_extra: Further entries of the protocol, such as the names of data set and networks. They do
            not replace what is measured here.

    Returns:
        What `results.json` holds, see `docs/evaluation.md`. None stands for a value that does not exist.

    Raises:
        ValueError: If there is no pair; if an output is not finite or of another shape.
        TypeError: If `protocol_extra` is not made of JSON types.
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    count = len(cast(Sized, dataset))
    if count == 0:
        raise ValueError("expected at least one pair, got none")
    ids = dataset.ids() if hasattr(dataset, "ids") else None
    for method in methods:
        method.prepare(ids, lr_size, size)
        if (network := method.network()) is not None:
            network.eval().to(device)
    for metric in metrics.values():
        metric.to(device)
    setup = {**(protocol_extra or {}), **_protocol(methods, lr_size, size, device)}
    json.dumps(setup, allow_nan=False)  # fails now and not after the measurement

    # of others' methods and metrics the protocol knows the name alone
    identified = (
        hasattr(dataset, "fingerprint"),
        *(method.kind not in ("", Function.kind) for method in methods),
        *(
            SHA256.get(name) in setup
            if isinstance(metric, NetworkMetric)
            else type(metric).__module__.startswith("rpf_lightning.")
            for name, metric in metrics.items()
        ),
    )
    key = {**setup, "metrics": list(metrics), "data": dataset.fingerprint()} if all(identified) else None  # type: ignore[attr-defined]
    progress = Progress(Path(out) / PROGRESS, key)
    rows = progress.read()
    if rows:
        logger.warning("%s: continues after %d of %d pairs", progress.path, len(rows), count)
    rest = Subset(dataset, range(len(rows), count))
    loader = DataLoader(rest, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    batches = (batch.to(device) for batch in track(_ahead(loader), "evaluating", total=len(loader)))
    for values in _measured(methods, batches, metrics):
        progress.append(values)
        rows += values
    return summarise(methods, metrics, rows, setup)


def _protocol(methods: Sequence[Method], lr_size: int, size: int, device: torch.device) -> dict[str, Any]:
    """Say in JSON types how it is measured, and identify weights and software."""
    networks = {id(network): network for method in methods if (network := method.network()) is not None}
    hashes = {key: storage.weights_hash(network.state_dict()) for key, network in networks.items()}
    described = {method.name: method.describe() for method in methods}
    for method in methods:
        if (network := method.network()) is not None:
            described[method.name]["weights_sha256"] = hashes[id(network)]
    models = {d["weights_sha256"]: d for d in described.values() if "model_config" in d}
    (one,) = models.values() if len(models) == 1 else ({},)
    return {
        "range": "RGB in [0, 1], outputs clamped",
        "rounding": "outputs and GT unrounded (a folder's are files of 8 bit); the LR input as the data set gives "
        "it, rounded to 8 bit",
        "crop": "none, the border counts; psnr_face and detail_error inside the facial mask of the GT",
        "averaging": "per image, then the mean over the images that have a value (counts)",
        "intervals": f"bootstrap over images, {RESAMPLES} resamples, seed {SEED}, {LEVEL:.0%}, percentiles; gaps "
        "over the images that both methods have a value for",
        "psnr": f"all pixels and channels of an image; squared error of at least {ERROR_FLOOR:g}, so at most "
        f"{-10 * math.log10(ERROR_FLOOR):g} dB",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, RGB, reflected borders",
        "detail_error": "mean absolute error of y - up(down(y, lr_size)) inside the face, bicubic",
        "lr_consistency": "PSNR of the output reduced to lr_size (bicubic) against the LR",
        "resize": "bicubic, a = -0.5, antialiased",
        "lr_size": lr_size,
        "size": size,
        "methods": described,
        **{key: one[key] for key in ("weights_sha256", "model_config") if key in one},
        "device": device.type,
        "torch": torch.__version__,
        "rpf_lightning": version("rpf-lightning"),
    }


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
    methods: Sequence[Method], batches: Iterable[EvaluationBatch], metrics: Mapping[str, PerImageMetric]
) -> Iterator[list[Row]]:
    """Run all methods, and measure each batch in a thread while the next one runs."""
    pending: Future[list[Row]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            # The data sets run outside of inference mode: what they cache may be used for training later.
            outputs = [output_of(method, batch) for method in methods]
            faults = [[method.fault(photo) for photo in batch.id] for method in methods]
            # unpacked before the next is submitted: at most two batches are in memory
            if pending is not None:
                yield pending.result()
            pending = thread.submit(partial(_rows, methods, batch, outputs, faults, metrics))
        if pending is not None:
            yield pending.result()


def _rows(
    methods: Sequence[Method],
    batch: EvaluationBatch,
    outputs: Sequence[Tensor],
    faults: Sequence[Sequence[Fault | None]],
    metrics: Mapping[str, PerImageMetric],
) -> list[Row]:
    """Return what is known about every pair of a batch."""
    rows: list[Row] = [
        {"id": photo, "reference_id": reference, "metrics": {}, "faults": {}}
        for photo, reference in zip(batch.id, batch.reference_id, strict=True)
    ]
    if batch.other_id is not None:
        for row, other in zip(rows, batch.other_id, strict=True):
            row["other_id"] = other
    seen: Seen = {}  # what the networks see in GTs and references serves all methods
    for method, output, found in zip(methods, outputs, faults, strict=True):
        if not output.isfinite().all():  # NaN would pass for an image without a value
            names = ", ".join(batch.id)
            raise ValueError(f"{method.name}: the output is not finite for a photo among {names}")
        with torch.inference_mode():
            clamped = output.clamp(0, 1)
            given: dict[str, Any] = {"output": clamped, "lr": batch.lr, "gt": batch.gt, "mask": batch.mask}
            given |= {"reference": method.reference(batch), "seen": seen}
            columns = {name: metric.measure(**given).tolist() for name, metric in metrics.items()}
        seen = {key: known for key, known in seen.items() if known[0] is not clamped}
        for place, (row, fault) in enumerate(zip(rows, found, strict=True)):
            missing = fault is not None and fault.fatal
            row["metrics"][method.name] = {  # JSON knows neither NaN nor infinity
                metric: column[place] if math.isfinite(column[place]) and not missing else None
                for metric, column in columns.items()
            }
            if fault is not None:
                row["faults"][method.name] = list(fault)
    return rows
