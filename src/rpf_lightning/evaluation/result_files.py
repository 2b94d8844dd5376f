"""The files of an evaluation: tables, values per image, and pictures: the grid of what a model does, contact sheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from rpf_lightning.drawing import Row, cell, draw_rows
from rpf_lightning.evaluation.evaluation_batch import ENLARGED_LR, EvaluationBatch, collate
from rpf_lightning.evaluation.methods import Method, output_of, up_to
from rpf_lightning.evaluation.paper_tables import TABLE1, PaperTable, paper_latex, paper_markdown
from rpf_lightning.evaluation.progress import PROGRESS
from rpf_lightning.evaluation.result_tables import table_markdown
from rpf_lightning.files import write_atomically
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel
from rpf_lightning.pictures import png

SHEETS = ("worst", "median", "best")


def write_results(
    out: Path,
    results: Mapping[str, Any],
    rows: Sequence[Row] = (),
    sheets: Mapping[str, Image.Image] | None = None,
    table: PaperTable = TABLE1,
) -> list[Path]:
    """Write all files, each whole or not at all; then what a killed comparison would go on from is removed.

    Args:
        out: Their folder; made if it is missing.
        results: The dictionary of `compare`.
        rows: Of `grid.png`.
        sheets: Contact sheets by the names of `SHEETS`.
        table: The paper's, whose numbers stand beside ours.

    Returns:
        The files. A picture of an earlier evaluation that has no successor is removed: it would not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    contents = {
        "results.json": text.encode(),
        "table.md": f"{table_markdown(results)}\n{paper_markdown(results, table)}".encode(),
        "table.tex": paper_latex(results, table).encode(),
        "per_image.csv": _csv(results).encode(),
    }
    pictures = {"grid": draw_rows(rows)[0]} if rows else {}
    pictures |= sheets or {}
    for name, picture in pictures.items():
        contents[f"{name}.png"] = png(picture)
    for name, content in contents.items():
        write_atomically(out / name, content)
    for name in ("grid", *SHEETS):
        if name not in pictures:
            (out / f"{name}.png").unlink(missing_ok=True)
    (out / PROGRESS).unlink(missing_ok=True)
    return [out / name for name in contents]


def _csv(results: Mapping[str, Any]) -> str:
    """A row per image and method; an empty cell where there is no value."""
    metrics = list(next(iter(results["methods"].values())))
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["id", "reference_id", "other_id", "method", *metrics, "fault"])
    for row in results["per_image"]:
        names = [row["id"], row["reference_id"], row.get("other_id", "")]
        for method, values in row["metrics"].items():
            fault = ": ".join(row.get("faults", {}).get(method, []))
            table.writerow([*names, method, *(values[metric] for metric in metrics), fault])
    return file.getvalue()


def reference_title(sample: EvaluationBatch) -> str:
    """Say what the reference of a sample or a batch is."""
    if ENLARGED_LR in (sample.reference_id, sample.reference_id[0]):
        return f"reference ({ENLARGED_LR})"
    return "reference (masked)" if sample.masked else "reference (unmasked)"


def picture_row(model: RPFModel, sample: EvaluationBatch) -> Row:
    """Run the model where it is on one sample without batch dimension, and collect what the grid shows.

    The aligned reference and the synthesized image are those of the block at whose side it stops.
    """
    device = next(model.parameters()).device
    lr, reference = sample.lr[None].to(device), sample.reference[None].to(device)
    with torch.inference_mode():
        size = reference.shape[-1]
        output, blocks = model(lr, return_intermediates=True, **up_to(model, reference, size))
        images = {
            "LR": lr,
            "bicubic": resize(lr, size),
            "aligned reference": blocks[-1].aligned,
            "synthesized": blocks[-1].synthesized,
            "output": output,
            "GT": sample.gt[None],
            reference_title(sample): reference,
        }
        cells = {title: cell(image[0]) for title, image in images.items()}
    return Row(f"{sample.id}, reference {sample.reference_id}", cells)


def chosen_places(
    results: Mapping[str, Any], subject: str, wanted: int
) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Choose the images of the contact sheets, `wanted` of each, by the values of the method `subject`.

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
        A picture. A method has a white cell where it has no image.
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
