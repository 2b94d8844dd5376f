"""Values of every method and image, batch by batch: loading, networks and metrics overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from rpf_lightning.evaluation.methods import Method
from rpf_lightning.evaluation.records import EvaluationBatch, Fault
from rpf_lightning.metrics.faces import Identity, distance_between, find_landmarks, similarity
from rpf_lightning.metrics.image import detail_error, lr_consistency, psnr, psnr_face, ssim

if TYPE_CHECKING:
    from rpf_lightning.faces.landmarks import LandmarkModel

Perceptual = Callable[[Tensor, Tensor], Tensor]
Row = dict[str, Any]
Item = TypeVar("Item")

IMAGE_METRICS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "psnr": lambda output, lr, gt, mask: psnr(output, gt),
    "ssim": lambda output, lr, gt, mask: ssim(output, gt),
    "psnr_face": lambda output, lr, gt, mask: psnr_face(output, gt, mask),
    "detail_error": lambda output, lr, gt, mask: detail_error(output, gt, mask, lr.shape[-1]),
    "lr_consistency": lambda output, lr, gt, mask: lr_consistency(output, lr),
}
"""Metrics that need no network: output (B, 3, S, S), LR, GT and its mask to (B,)."""


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


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Fetch the next item in a thread while the caller works on this one."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield cast(Item, item)


def measured(
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
        pairs = _Pairs(batch, networks)
        for method, output, found in zip(methods, outputs, faults, strict=True):
            if not output.isfinite().all():  # NaN would pass for an image without a value
                names = ", ".join(batch.id)
                raise ValueError(f"{method.name}: the output is not finite for a photo among {names}")
            columns = pairs.values(output.clamp(0, 1), method.reference(batch))
            for place, (row, fault) in enumerate(zip(rows, found, strict=True)):
                missing = fault is not None and fault.fatal
                row["metrics"][method.name] = {
                    metric: None if missing else _number(column[place]) for metric, column in columns.items()
                }
                if fault is not None:
                    row["faults"][method.name] = list(fault)
    return rows


class _Pairs:
    """Measures outputs for one batch; what the networks see in GTs and references is computed once for all methods."""

    def __init__(self, batch: EvaluationBatch, networks: Networks) -> None:
        self.batch, self.networks = batch, networks
        self.gt_features = None if networks.identity is None else networks.identity(batch.gt)
        self.gt_landmarks = (
            None if networks.landmarks is None else find_landmarks(batch.gt, networks.landmarks)
        )
        self._references: list[tuple[Tensor, Tensor]] = []  # with their features

    def values(self, output: Tensor, reference: Tensor) -> dict[str, list[float]]:
        """Return every metric's values; `reference` is what ISC to the reference compares with."""
        networks, (lr, gt, mask) = self.networks, self.batch[:3]
        values = {name: metric(output, lr, gt, mask) for name, metric in IMAGE_METRICS.items()}
        if networks.perceptual is not None:
            values["lpips"] = networks.perceptual(output, gt)
        if networks.identity is not None and self.gt_features is not None:
            features = networks.identity(output)
            values["isc"] = similarity(features, self.gt_features)
            values["isc_reference"] = similarity(features, self._features(reference, networks.identity))
        if networks.landmarks is not None and self.gt_landmarks is not None:
            found = find_landmarks(output, networks.landmarks)
            values["landmark_distance"] = distance_between(found, self.gt_landmarks, gt.shape[-1])
        for metric, value in values.items():
            if value.shape != (len(lr),):
                got = tuple(value.shape)
                raise ValueError(f"{metric}: expected {len(lr)} values, one per image, got {got}")
        return {metric: value.cpu().double().tolist() for metric, value in values.items()}

    def _features(self, reference: Tensor, identity: Identity) -> Tensor:
        for known, features in self._references:
            if known is reference:
                return features
        features = identity(reference)
        self._references.append((reference, features))
        return features


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
