"""The files of an evaluation: tables, values per image, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rpf_lightning.drawing import Row, draw_rows
from rpf_lightning.evaluation.contact import SHEETS
from rpf_lightning.evaluation.paper_tables import TABLE1, PaperTable, paper_latex, paper_markdown
from rpf_lightning.evaluation.progress import PROGRESS
from rpf_lightning.evaluation.result_tables import table_markdown
from rpf_lightning.files import write_atomically
from rpf_lightning.pictures import png


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
