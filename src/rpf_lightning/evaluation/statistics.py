"""Means over images, and bootstrap intervals of them and of their differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy.stats import bootstrap

from rpf_lightning.evaluation.evaluation_batch import Fault
from rpf_lightning.evaluation.methods import Method, Model
from rpf_lightning.metrics import PerImageMetric

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
CHUNK = 2**20  # drawn images at a time: memory does not grow with their number


class Estimate(TypedDict):
    """A mean with its interval; None where no image has a value.

    Attributes:
        mean: Mean over the images.
        low: Lower end of the 95 % interval.
        high: Upper end.
        count: Images with a value.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float | None], resamples: int = RESAMPLES) -> Estimate:
    """Average images, and draw them again with replacement to see how much the mean depends on the draw.

    Args:
        values: One per image; None or NaN where an image has none.
        resamples: Number of draws; equal values give equal intervals.

    Returns:
        Mean and percentile interval over the images that have a value.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    count = len(numbers)
    if not count:
        return {"mean": None, "low": None, "high": None, "count": 0}
    low = high = numbers.mean()
    if count > 1:
        draws = bootstrap(
            (numbers,), np.mean, n_resamples=resamples, batch=max(1, CHUNK // count), confidence_level=LEVEL,
            method="percentile", random_state=np.random.default_rng(SEED),
        )  # fmt: skip
        low, high = draws.confidence_interval
    return {"mean": float(numbers.mean()), "low": float(low), "high": float(high), "count": count}


def gap(values: Sequence[float | None], others: Sequence[float | None]) -> Estimate:
    """Estimate the mean difference of two methods on the same images, which are drawn in pairs.

    Args:
        values: One per image, of the first method.
        others: The same images' of the second.

    Returns:
        First minus second, over the images for which both have a value.

    Raises:
        ValueError: If the numbers of images differ.
    """
    if len(values) != len(others):
        raise ValueError(f"expected the same images, got {len(values)} and {len(others)} values")
    differences = [None if a is None or b is None else a - b for a, b in zip(values, others, strict=True)]
    return estimate(differences)


def summarise(
    methods: Sequence[Method],
    metrics: Mapping[str, PerImageMetric],
    rows: Sequence[Mapping[str, Any]],
    setup: Mapping[str, Any],
) -> dict[str, Any]:
    """Summarise the values of all images.

    Args:
        methods: What was compared.
        metrics: What was measured.
        rows: A row per pair: "id", "reference_id", "other_id" where there is one, "metrics", "faults".
        setup: The protocol so far.

    Returns:
        What `results.json` holds, see `docs/evaluation.md`.
    """
    columns = {
        method.name: {metric: [row["metrics"][method.name][metric] for row in rows] for metric in metrics}
        for method in methods
    }
    means: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, Any]] = {}
    intervals: dict[str, dict[str, Any]] = {}
    for name, of in columns.items():
        estimates = {metric: estimate(values) for metric, values in of.items()}
        means[name] = {metric: found["mean"] for metric, found in estimates.items()}
        counts[name] = {metric: found["count"] for metric, found in estimates.items()}
        intervals[name] = {metric: [found["low"], found["high"]] for metric, found in estimates.items()}
    faults: dict[str, dict[str, list[str]]] = {}
    for method in methods:
        found = [Fault(*row["faults"][method.name]) for row in rows if method.name in row["faults"]]
        for fault in [*found, *method.faults()]:
            faults.setdefault(method.name, {}).setdefault(fault.kind, []).append(fault.text)
    gaps = []
    for a, b, kind in _gaps(methods):
        # of two different references ISC to the reference has no difference
        compared = [m for m in metrics if kind != "own_minus_other" or m != "isc_reference"]
        values = {metric: gap(columns[a][metric], columns[b][metric]) for metric in compared}
        gaps.append({"method": a, "minus": b, "kind": kind, "metrics": values})
    names = ("id", "reference_id", "other_id")
    pairs = json.dumps([[row[name] for name in names if name in row] for row in rows])
    digest = hashlib.sha256(pairs.encode()).hexdigest()
    return {
        "protocol": {**setup, "pairs": len(rows), "pairs_sha256": digest},
        "metrics": {name: metric.describe() for name, metric in metrics.items()},
        "methods": means,
        "counts": counts,
        "intervals": intervals,
        "gaps": gaps,
        "faults": faults,
        "per_image": [{k: value for k, value in row.items() if k != "faults" or value} for row in rows],
    }


def _gaps(methods: Sequence[Method]) -> list[tuple[str, str, str]]:
    """Which differences are of interest: each method's to the first; own minus another person's reference."""
    models = [method for method in methods if isinstance(method, Model)]
    return [
        *((method.name, methods[0].name, "to_first") for method in methods[1:]),
        *(
            (own.name, other.name, "own_minus_other")
            for own in models
            for other in models
            if own.given == "own" and other.given == "swap" and own.model is other.model
        ),
    ]
