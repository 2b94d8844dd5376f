"""Pictures of an evaluation: the grid of what a model does, and contact sheets of the best and worst results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from rpf_lightning.drawing import Row, cell, draw_rows
from rpf_lightning.evaluation.evaluation_batch import ENLARGED_LR, EvaluationBatch, collate
from rpf_lightning.evaluation.methods import Method, output_of, up_to
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel

PICTURE_TITLES = ("LR", "bicubic", "aligned reference", "synthesized", "output", "GT")
"""Columns of the grid; the reference comes last, under `reference_title`."""
SHEETS = ("worst", "median", "best")


def reference_title(sample: EvaluationBatch) -> str:
    """Say what the reference of a sample or a batch is."""
    if ENLARGED_LR in (sample.reference_id, sample.reference_id[0]):
        return f"reference ({ENLARGED_LR})"
    return "reference (masked)" if sample.masked else "reference (unmasked)"


def picture_row(model: RPFModel, sample: EvaluationBatch) -> Row:
    """Run the model on one sample and collect what the grid shows.

    Args:
        model: The model; it computes where it is.
        sample: One sample at the side where the model stops, without batch dimension.

    Returns:
        The pictures of `PICTURE_TITLES` and the reference; the aligned reference and the synthesized image are
        those of the last block.
    """
    device = next(model.parameters()).device
    lr, reference = sample.lr[None].to(device), sample.reference[None].to(device)
    with torch.inference_mode():
        size = reference.shape[-1]
        output, blocks = model(lr, return_intermediates=True, **up_to(model, reference, size))
        last = blocks[-1]
        bicubic = resize(lr, size)
        images = (lr, bicubic, last.aligned, last.synthesized, output, sample.gt[None], reference)
        titles = (*PICTURE_TITLES, reference_title(sample))
        cells = {title: cell(image[0]) for title, image in zip(titles, images, strict=True)}
    return Row(f"{sample.id}, reference {sample.reference_id}", cells)


def chosen_places(
    results: Mapping[str, Any], subject: str, wanted: int
) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Choose the images of the contact sheets.

    Args:
        results: The dictionary of `compare`.
        subject: The method whose values decide.
        wanted: Images per sheet; with 0 all sheets are empty.

    Returns:
        The metric that decides, LPIPS or else PSNR; for each of `SHEETS` the images' places and values, the
        worst or best first. Images without a value are on none.
    """
    rows = [row["metrics"][subject] for row in results["per_image"]]
    metric = "lpips" if "lpips" in rows[0] else "psnr"
    values = [(row[metric], place) for place, row in enumerate(rows) if row[metric] is not None]
    order = [(place, value) for value, place in sorted(values, reverse=metric == "lpips")]  # the worst first
    start = max(0, (len(order) - wanted) // 2)
    return metric, {
        "worst": order[:wanted],
        "median": order[start : start + wanted],
        "best": order[::-1][:wanted],
    }


def draw_sheet(
    methods: Sequence[Method],
    dataset: Dataset[EvaluationBatch],
    places: Sequence[tuple[int, float]],
    metric: str,
    device: torch.device,
) -> Image.Image:
    """Draw the LR, every method's output, the GT and the reference of some images.

    Args:
        methods: On `device`.
        dataset: What they were compared on.
        places: Places of the images and the values that are printed; at least one.
        metric: Name of the values.
        device: Where to compute.

    Returns:
        An RGB picture. A method has a white cell where it has no image.
    """
    rows = []
    for place, value in places:
        batch = collate([dataset[place]]).to(device)
        shown = {"LR": batch.lr}
        for method in methods:
            output = output_of(method, batch)
            fault = method.fault(batch.id[0])
            title = f"method {method.name}" if method.name in ("LR", "GT") else method.name
            shown[title] = torch.ones_like(output) if fault is not None and fault.fatal else output  # white
        shown |= {"GT": batch.gt, reference_title(batch): batch.reference}
        cells = {title: cell(image[0]) for title, image in shown.items()}
        rows.append(Row(f"{batch.id[0]}: {metric} {value:.4g}", cells))
    return draw_rows(rows)[0]
