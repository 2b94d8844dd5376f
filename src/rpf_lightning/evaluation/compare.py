"""Comparison of a model with and without the reference on held-out pairs (P IV-C, IV-D; METHOD section 10).

A method that copies the reference scores well on ISC and LPIPS and ignores its input, so PSNR and LR
consistency stand beside them always. What the reference gives is read from the difference between the own
reference and one of another person: the difference to no reference also holds what the training gives anyway.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.evaluation.report import PictureRow, draw_grid, picture_row, table_markdown
from rpf_lightning.metrics.image import (
    ERROR_FLOOR,
    detail_error,
    lr_consistency,
    mean_and_count,
    psnr,
    psnr_face,
    ssim,
)
from rpf_lightning.model import storage
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel

METHODS = ("bicubic", "without_reference", "with_reference", "other_person")
OFF = "off: no weights"

Perceptual = Callable[[Tensor, Tensor], Tensor]
Identity = Callable[[Tensor], Tensor]


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

    Writes `results.json`, `table.md` and `grid.png`, each whole or not at all.

    Args:
        model: The model or its directory. Its mode and device are restored afterwards.
        dataset: Samples at full size (side S = kappa * L), each with a reference of the same person.
        other_person: The same GTs in the same order, each with a reference of another person.
        out: Directory of the results; made if it is missing.
        batch_size: Pairs per step; results do not depend on it beyond rounding.
        grid_images: Faces in the grid, evenly spread over the pairs; 0 draws none.
        device: A torch device, or "auto": the GPU where there is one.
        perceptual: LPIPS: (B, 3, S, S) prediction and GT, both in [0, 1] on the device, to (B,).
        identity: Features of ArcFace: (B, 3, S, S) in [0, 1] on the device to (B, D); ISC is the cosine
            between those of output and GT. A row of NaN says that no face was found.
        protocol_extra: Further entries of the protocol, such as the names of data set and networks. They do
            not replace what is measured here.

    Returns:
        What `results.json` holds: "protocol"; "methods", the mean of every metric for every method; "counts",
        the number of images behind each mean; "per_image". None stands for a value that does not exist.

    Raises:
        ValueError: If the data sets are empty, differ in length or GTs, share a reference for a GT, or have
            other sides than the model; if an output is not finite; if a callable returns another shape.
        TypeError: If `protocol_extra` is not made of JSON types.
    """
    if batch_size < 1 or grid_images < 0:
        raise ValueError(f"expected batch_size >= 1 and grid_images >= 0, got {batch_size} and {grid_images}")
    extra = dict(protocol_extra or {})
    json.dumps(extra, allow_nan=False)  # fails now and not after the measurement
    count, others = (len(cast(Sized, data)) for data in (dataset, other_person))
    if count == 0 or count != others:
        raise ValueError(
            f"expected as many other-person pairs as pairs and at least one, got {others} and {count}"
        )
    if not isinstance(model, RPFModel):
        model = RPFModel.from_pretrained(model)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    training, home = model.training, next(model.parameters()).device
    model.eval().to(chosen)
    for network in (perceptual, identity):
        if isinstance(network, nn.Module):
            network.to(chosen)
    try:
        per_image = _measure_all(model, dataset, other_person, batch_size, chosen, perceptual, identity)
        shown = min(grid_images, count)
        rows = [picture_row(model, dataset[i * count // shown], chosen) for i in range(shown)]
    finally:
        model.train(training).to(home)

    methods, counts = _means(per_image)
    protocol = _protocol(model, per_image, chosen)
    for name, given in (("lpips", perceptual), ("isc", identity)):
        extra[name] = OFF if given is None else extra.get(name, "given by the caller")
    results = {
        "protocol": {**extra, **protocol},
        "methods": methods,
        "counts": counts,
        "per_image": per_image,
    }
    _write(Path(out), results, rows)
    return results


def _measure_all(
    model: RPFModel,
    dataset: Dataset[ReferenceBatch],
    other_person: Dataset[ReferenceBatch],
    batch_size: int,
    device: torch.device,
    perceptual: Perceptual | None,
    identity: Identity | None,
) -> list[dict[str, Any]]:
    """Measure all pairs; only one batch is in memory at a time."""
    loaders = [DataLoader(data, batch_size=batch_size) for data in (dataset, other_person)]
    steps = track(zip(*loaders, strict=True), description="evaluating", total=len(loaders[0]))
    per_image = []
    for batch, other in steps:
        _check_batch(model, batch, other)
        # The data sets run outside of inference mode: what they cache may be used for training later.
        with torch.inference_mode():
            values = {
                method: _measure(method, model, batch, other, device, perceptual, identity)
                for method in METHODS
            }
        for i, names in enumerate(zip(batch.id, batch.reference_id, other.reference_id, strict=True)):
            per_image.append(
                {
                    **dict(zip(("id", "reference_id", "other_id"), names, strict=True)),
                    "metrics": {
                        method: {metric: _number(column[i]) for metric, column in columns.items()}
                        for method, columns in values.items()
                    },
                }
            )
    return per_image


def _measure(
    method: str,
    model: RPFModel,
    batch: ReferenceBatch,
    other: ReferenceBatch,
    device: torch.device,
    perceptual: Perceptual | None,
    identity: Identity | None,
) -> dict[str, list[float]]:
    """Run one method on one batch; return every metric's values."""
    lr, gt, mask = (tensor.to(device) for tensor in (batch.lr, batch.gt, batch.gt_mask))
    if method == "bicubic":
        output = resize(lr, model.size).clamp(0, 1)
    elif method == "without_reference":
        output = model(lr)
    else:
        output = model(lr, (batch if method == "with_reference" else other).reference.to(device))
    if not output.isfinite().all():  # NaN would pass for an image without a value
        raise ValueError(f"{method}: the output is not finite for a photo among {', '.join(batch.id)}")
    output = output.float().clamp(0, 1)
    values = {
        "psnr": psnr(output, gt),
        "ssim": ssim(output, gt),
        "psnr_face": psnr_face(output, gt, mask),
        "detail_error": detail_error(output, gt, mask, lr.shape[-1]),
        "lr_consistency": lr_consistency(output, lr),
    }
    if perceptual is not None:
        values["lpips"] = perceptual(output, gt)
    if identity is not None:
        values["isc"] = F.cosine_similarity(identity(output), identity(gt), dim=1)
    for metric, value in values.items():
        if value.shape != (len(lr),):
            raise ValueError(f"{metric}: expected {len(lr)} values, one per image, got {tuple(value.shape)}")
    return {metric: value.double().tolist() for metric, value in values.items()}


def _check_batch(model: RPFModel, batch: ReferenceBatch, other: ReferenceBatch) -> None:
    for name, part in (("dataset", batch), ("other_person", other)):
        expected = {"lr": model.lr_size, "gt": model.size, "reference": model.size}
        for field, side in expected.items():
            got = tuple(getattr(part, field).shape[-2:])
            if got != (side, side):
                raise ValueError(f"{name}: expected {field} of side {side} as the model has, got {got}")
    for gt, other_gt, reference, other_reference in zip(
        batch.id, other.id, batch.reference_id, other.reference_id, strict=True
    ):
        if gt != other_gt:
            raise ValueError(f"other_person: expected the GT {gt!r} as in dataset, got {other_gt!r}")
        if reference == other_reference:
            raise ValueError(
                f"other_person: expected another reference for the GT {gt!r} than dataset's {reference!r}"
            )


def _means(
    per_image: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, int]]]:
    """Average over the images that have a value, and count them."""
    means: dict[str, dict[str, float | None]] = {method: {} for method in METHODS}
    counts: dict[str, dict[str, int]] = {method: {} for method in METHODS}
    for method in METHODS:
        for metric in per_image[0]["metrics"][method]:
            column = [row["metrics"][method][metric] for row in per_image]
            values = [math.nan if value is None else value for value in column]
            mean, counts[method][metric] = mean_and_count(torch.tensor(values, dtype=torch.float64))
            means[method][metric] = _number(mean)
    return means, counts


def _protocol(
    model: RPFModel, per_image: Sequence[Mapping[str, Any]], device: torch.device
) -> dict[str, Any]:
    """Say how it was measured, and identify the pairs, the weights and the software."""
    pairs = [[row["id"], row["reference_id"], row["other_id"]] for row in per_image]
    return {
        "range": "RGB in [0, 1], outputs clamped",
        "rounding": "outputs and GT unrounded; the LR input as the data set gives it, rounded to 8 bit",
        "crop": "none, the border counts; psnr_face and detail_error inside the facial mask of the GT",
        "averaging": "per image, then the mean over the images that have a value (counts)",
        "psnr": f"all pixels and channels of an image; squared error of at least {ERROR_FLOOR:g}, so at most "
        f"{-10 * math.log10(ERROR_FLOOR):g} dB",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, RGB, reflected borders",
        "detail_error": "mean absolute error of y - up(down(y, lr_size)) inside the face, bicubic",
        "lr_consistency": "PSNR of the output reduced to lr_size (bicubic) against the LR",
        "resize": "bicubic, a = -0.5, antialiased",
        "lr_size": model.lr_size,
        "size": model.size,
        "pairs": len(per_image),
        "pairs_sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
        "weights_sha256": storage.weights_hash(model.state_dict()),
        "model_config": model.config,
        "device": device.type,
        "torch": torch.__version__,
        "rpf_lightning": version("rpf-lightning"),
    }


def _write(out: Path, results: Mapping[str, Any], rows: Sequence[PictureRow]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    storage.write_atomically(out / "results.json", text.encode())
    storage.write_atomically(out / "table.md", table_markdown(results).encode())
    if rows:
        buffer = io.BytesIO()
        draw_grid(rows).save(buffer, format="PNG")
        storage.write_atomically(out / "grid.png", buffer.getvalue())
    else:
        (out / "grid.png").unlink(missing_ok=True)  # an earlier run's would not fit these results


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None
