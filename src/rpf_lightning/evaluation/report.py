"""Tables and the picture grid of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from torch import Tensor

from rpf_lightning.data.records import ReferenceBatch
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel


class Column(NamedTuple):
    """How a metric is printed.

    Attributes:
        title: Name with unit.
        higher_is_better: Direction of the arrow, and which value is the best.
        digits: Digits after the point.
    """

    title: str
    higher_is_better: bool
    digits: int


# no square brackets: rich takes them for markup
COLUMNS = {
    "psnr": Column("PSNR (dB)", True, 2),
    "ssim": Column("SSIM", True, 4),
    "psnr_face": Column("PSNR face (dB)", True, 2),
    "detail_error": Column("detail error", False, 5),
    "lr_consistency": Column("LR consistency (dB)", True, 2),
    "lpips": Column("LPIPS", False, 4),
    "isc": Column("ISC", True, 4),
}

PICTURE_TITLES = (
    "LR (nearest)", "bicubic", "aligned reference", "synthesized", "output", "GT", "reference (masked)",
)  # fmt: skip
CELL = 256  # side of a picture
GAP = 8
TEXT = 26  # height of a line of text


class PictureRow(NamedTuple):
    """One face of the grid.

    Attributes:
        caption: Names of the photos.
        pictures: One per title of `PICTURE_TITLES`, of side `CELL`: enlarged, or reduced, at once, so that
            large faces do not pile up.
    """

    caption: str
    pictures: Sequence[Image.Image]


def table_markdown(results: Mapping[str, Any]) -> str:
    """Format what `evaluate` returned as a Markdown table with the best values in bold.

    Args:
        results: The dictionary of `evaluate`.

    Returns:
        The table, and below it the number of pairs, what the own reference gives more than another person's,
        and where images had no value.
    """
    headers, rows = _cells(results)
    lines = [
        "| " + " | ".join(headers) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(headers) - 1)) + "|",
    ]
    for name, cells in rows:
        texts = [f"**{text}**" if best else text for text, best in cells]
        lines.append("| " + " | ".join([name, *texts]) + " |")
    return "\n".join([*lines, "", "\n\n".join(_notes(results))]) + "\n"


def table_for_console(results: Mapping[str, Any]) -> Table:
    """Format what `evaluate` returned for printing with rich.

    Args:
        results: The dictionary of `evaluate`.

    Returns:
        The table with the best values in bold; its caption holds the notes of `table_markdown`.
    """
    headers, rows = _cells(results)
    table = Table(caption="\n".join(_notes(results)))
    table.add_column(headers[0])
    for header in headers[1:]:
        table.add_column(header, justify="right")
    for name, cells in rows:
        table.add_row(name, *(f"[bold]{text}[/bold]" if best else text for text, best in cells))
    return table


def picture_row(model: RPFModel, sample: ReferenceBatch, device: torch.device) -> PictureRow:
    """Run the model on one sample and collect what the grid shows.

    Args:
        model: The model, on `device`.
        sample: One sample at full size, without batch dimension.
        device: Where to compute.

    Returns:
        The pictures; the aligned reference and the synthesized image are those of the last block. The LR is
        enlarged without interpolation, the others with Lanczos.
    """
    lr, reference = sample.lr[None].to(device), sample.reference[None].to(device)
    with torch.inference_mode():
        output, blocks = model(lr, reference, return_intermediates=True)
        last = blocks[-1]
        bicubic = resize(lr, model.size)
        images = (lr, bicubic, last.aligned, last.synthesized, output, sample.gt[None], reference)
        pictures = [_picture(image, nearest=image is lr) for image in images]
    return PictureRow(f"{sample.id}, reference {sample.reference_id}", pictures)


def draw_grid(rows: Sequence[PictureRow]) -> Image.Image:
    """Draw one row per face under titled columns, on white.

    Args:
        rows: The faces.

    Returns:
        An RGB picture.
    """
    width = len(PICTURE_TITLES) * (CELL + GAP) + GAP
    row_height = TEXT + CELL + GAP
    grid = Image.new("RGB", (width, GAP + TEXT + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(grid)
    title_font, caption_font = ImageFont.load_default(20), ImageFont.load_default(15)
    for column, title in enumerate(PICTURE_TITLES):
        x = GAP + column * (CELL + GAP) + CELL // 2
        draw.text((x, GAP + TEXT // 2), title, fill="black", font=title_font, anchor="mm")
    for number, row in enumerate(rows):
        y = GAP + TEXT + number * row_height
        draw.text((GAP, y + TEXT // 2), row.caption, fill="dimgray", font=caption_font, anchor="lm")
        for column, picture in enumerate(row.pictures):
            grid.paste(picture, (GAP + column * (CELL + GAP), y + TEXT))
    return grid


def _cells(results: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """Return the headers, and for each method its name and the texts with whether each is the best."""
    methods = results["methods"]
    metrics = [name for name in COLUMNS if name in next(iter(methods.values()))]
    headers = ["method"]
    rows: dict[str, list[tuple[str, bool]]] = {name: [] for name in methods}
    for metric in metrics:
        title, higher, digits = COLUMNS[metric]
        headers.append(f"{title} {'↑' if higher else '↓'}")
        texts = {
            name: "–" if means[metric] is None else f"{means[metric]:.{digits}f}"
            for name, means in methods.items()
        }
        numbers = [float(text) for text in texts.values() if text != "–"]
        best = (max(numbers) if higher else min(numbers)) if numbers else None
        for name, text in texts.items():
            # as printed: what looks equal is equally good
            rows[name].append((text, text != "–" and float(text) == best))
    return headers, [(name.replace("_", " "), cells) for name, cells in rows.items()]


def _notes(results: Mapping[str, Any]) -> list[str]:
    protocol, methods = results["protocol"], results["methods"]
    notes = [f"{protocol['pairs']} pairs, {protocol['lr_size']} -> {protocol['size']} pixels."]
    gains = []
    for metric, column in COLUMNS.items():
        own, other = (methods[name].get(metric) for name in ("with_reference", "other_person"))
        if own is not None and other is not None:
            gains.append(f"{column.title} {own - other:+.{column.digits}f}")
    if gains:
        notes.append(f"Own minus another person's reference: {', '.join(gains)}.")
    for name, counts in results["counts"].items():
        missing = [f"{metric} {n}" for metric, n in counts.items() if n < protocol["pairs"]]
        if missing:
            notes.append(f"Images with a value, {name.replace('_', ' ')}: {', '.join(missing)}.")
    return notes


def _picture(image: Tensor, nearest: bool) -> Image.Image:
    pixels = (image[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    filtering = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((CELL, CELL), filtering)
