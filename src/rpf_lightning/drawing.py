"""Rows of pictures: titled columns, a caption per row, and lines of text under each picture.

The paper's figures, contact sheets, panels of a training and the sheet of a preparation are all drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rpf_lightning.files import write_atomically
from rpf_lightning.pictures import png, to_uint8

MAX_WIDTH = 3000  # pixels
SHOWN = 160  # smaller pictures are enlarged to at least this side
ENOUGH = 256  # larger ones are reduced no further than to this side
READABLE = 192  # side of the cells from whose double on the text is larger
GAP = 8
CAPTION, TITLE, LINE = 22, 24, 16  # heights of a line of text


class Cell(NamedTuple):
    """One picture.

    Attributes:
        pixels: (s, s, 3) uint8.
        lines: Text under the picture.
        values: What of it was measured, by metric.
        points: (n, 2) in fractions of the side, drawn as dots.
    """

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...] = ()
    values: Mapping[str, float] = {}
    points: Tensor | None = None


class Row(NamedTuple):
    """Pictures beside each other, titles as keys; a title without a picture stays blank."""

    caption: str
    cells: Mapping[str, Cell]


class FigureRow(NamedTuple):
    """What a row of a written figure says.

    Attributes:
        caption: Its text.
        values: Title -> metric -> the value before it was rounded for printing, where the picture has any.
        boxes: Title -> the picture's place in the figure, (left, top, right, bottom) in pixels.
    """

    caption: str
    values: dict[str, dict[str, float]]
    boxes: dict[str, tuple[int, int, int, int]]


def cell(
    image: Tensor, *lines: str, values: Mapping[str, float] | None = None, points: Tensor | None = None
) -> Cell:
    """Make a cell of an image (3, s, s), clamped to [0, 1]; it is kept in 8 bit, since a figure holds many."""
    return Cell(to_uint8(image), lines, dict(values or {}), points)


def write_figure(out: Path, rows: Sequence[Row]) -> list[FigureRow]:
    """Draw rows into a PNG, whole or not at all; its folder is made if it is missing. See `draw_rows`."""
    figure, placed = draw_rows(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, png(figure))
    return placed


def draw_rows(rows: Sequence[Row]) -> tuple[Image.Image, list[FigureRow]]:
    """Lay out rows on white. The same rows give the same pixels.

    Pictures fill cells of one side, see `cell_side`. Nothing is interpolated where a picture is enlarged by a whole
    factor.

    Args:
        rows: The rows, at least one; titles stand in the order in which they first appear.

    Returns:
        The picture, and what it shows where.
    """
    titles = list(dict.fromkeys(title for row in rows for title in row.cells))
    side = cell_side(max(len(c.pixels) for row in rows for c in row.cells.values()), len(titles))
    k = max(1, side // READABLE)  # text grows with large cells
    caption_height, title_height, line_height = k * CAPTION, k * TITLE, k * LINE
    heights = [
        caption_height + side + line_height * max(len(c.lines) for c in row.cells.values()) + GAP
        for row in rows
    ]
    width = GAP + len(titles) * (side + GAP)
    figure = Image.new("RGB", (width, GAP + title_height + sum(heights)), "white")
    draw = ImageDraw.Draw(figure)
    for column, title in enumerate(titles):
        middle = _left(column, side) + side / 2, GAP + title_height / 2
        _text(draw, middle, title, side, 15 * k)
    placed = []
    for number, row in enumerate(rows):
        top = GAP + title_height + sum(heights[:number])
        _text(draw, (GAP, top + caption_height / 2), row.caption, width - 2 * GAP, 13 * k, "dimgray", "lm")
        boxes = {}
        for title, shown in row.cells.items():
            left = _left(titles.index(title), side)
            boxes[title] = (left, top + caption_height, left + side, top + caption_height + side)
            figure.paste(_scaled(shown, side), boxes[title][:2])
            for line, text in enumerate(shown.lines):
                middle = left + side / 2, boxes[title][3] + line_height * (line + 0.5) + 2
                _text(draw, middle, text, side, 12 * k)
        values = {title: dict(shown.values) for title, shown in row.cells.items() if shown.values}
        placed.append(FigureRow(row.caption, values, boxes))
    return figure, placed


def cell_side(side: int, columns: int) -> int:
    """Side of the cells of a figure whose largest picture has this side.

    Small ones are enlarged by a whole factor to at least 160 pixels, large ones halved until the figure is at most 3000
    pixels wide or they have at most 256.
    """
    widest = max((MAX_WIDTH - GAP) // columns - GAP, ENOUGH)
    shown = side * math.ceil(SHOWN / side)
    while shown > widest:
        shown = shown - side if shown > side else shown // 2  # whole factors, or powers of two
    return shown


def _left(column: int, side: int) -> int:
    return GAP + column * (side + GAP)


def _scaled(shown: Cell, side: int) -> Image.Image:
    """Bring a picture to the cell's side, with its dots."""
    picture = Image.fromarray(shown.pixels)
    how = Image.Resampling.NEAREST if side % picture.width == 0 else Image.Resampling.LANCZOS
    picture = picture.resize((side, side), how)
    if shown.points is not None:
        draw, radius = ImageDraw.Draw(picture), max(1.0, side / 160)
        for x, y in (shown.points * side).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(0, 255, 80))
    return picture


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    width: float,
    size: int,
    fill: str = "black",
    anchor: str = "mm",
) -> None:
    """Write one line, smaller where it is too long, and cut where that does not suffice."""
    text = " ".join(text.split())[:500]
    while size > 9 and draw.textlength(text, ImageFont.load_default(size)) > width:
        size -= 1
    font = ImageFont.load_default(size)
    while len(text) > 4 and draw.textlength(text, font) > width:
        text = text.rstrip(".")[:-1] + "..."
    draw.text(place, text, fill=fill, font=font, anchor=anchor)
