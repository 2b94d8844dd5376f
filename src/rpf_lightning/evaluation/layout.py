"""What all figures share: their photos and methods, and the page.

A page has titled columns of pictures, a caption per row, and values under each picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rpf_lightning import metrics as measures
from rpf_lightning.data import PairsDataModule, ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset, collate
from rpf_lightning.data.pairing import Pair, nearest_references, other_person_references
from rpf_lightning.data.pairs import evenly
from rpf_lightning.data.reading import read_photo
from rpf_lightning.model import RPFModel
from rpf_lightning.model.rpf import BlockOutput
from rpf_lightning.model.storage import CONFIG_FILE, write_atomically

Model = RPFModel | str | Path
"""A model or its directory."""

Method = Model | Callable[[ReferenceBatch], Tensor]
"""What a comparison shows: what gives (B, 3, S, S) of a batch; a model or its directory; or a folder of results as
PNG, named after the GT photos as `rpf predict` names them."""

MEASURED: dict[str, Callable[[Tensor, ReferenceBatch], Tensor]] = {
    "psnr": lambda output, batch: measures.psnr(output, batch.gt),
    "psnr_face": lambda output, batch: measures.psnr_face(output, batch.gt, batch.gt_mask),
    "ssim": lambda output, batch: measures.ssim(output, batch.gt),
    "lr_consistency": lambda output, batch: measures.lr_consistency(output, batch.lr),
}

MAX_WIDTH = 3000  # pixels
SHOWN = 160  # smaller pictures are enlarged to at least this side
SMALLEST = 32  # side in pixels below which nothing is to be seen
READABLE = 192  # side of the cells from whose double on the text is larger
GAP = 8
CAPTION, TITLE, LINE = 22, 24, 16  # heights of a line of text
PRINTED = {
    "psnr": "PSNR {:.2f} dB",
    "psnr_face": "PSNR face {:.2f} dB",
    "ssim": "SSIM {:.4f}",
    "lr_consistency": "LR cons. {:.2f} dB",
    "isc": "ISC {:.4f}",
    "landmarks": "landmarks {:.2f} % off",
}


class Cell(NamedTuple):
    """One picture.

    Attributes:
        pixels: (s, s, 3) uint8.
        values: Metric -> value, printed under the picture as `PRINTED` says.
        notes: Lines of text above the values.
        points: (n, 2) in fractions of the side, drawn as dots.
    """

    pixels: NDArray[np.uint8]
    values: Mapping[str, float]
    notes: tuple[str, ...]
    points: Tensor | None


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
    image: Tensor, values: Mapping[str, float] | None = None, *notes: str, points: Tensor | None = None
) -> Cell:
    """Make a cell of an image (3, s, s), clamped to [0, 1]; it is kept in 8 bit, since a figure holds many."""
    pixels = (image.detach().float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return Cell(pixels.permute(1, 2, 0).cpu().numpy(), dict(values or {}), notes, points)


def write_figure(out: Path, rows: Sequence[Row]) -> list[FigureRow]:
    """Lay out rows on white and write the figure as PNG, whole or not at all.

    Pictures fill cells of one side: that of the largest picture, enlarged by a whole factor to at least 160
    pixels, or halved until the figure is at most 3000 pixels wide. Nothing is interpolated where a picture is
    enlarged. The same rows give the same bytes.

    Args:
        out: The PNG; its folder is made if it is missing.
        rows: The rows; titles stand in the order in which they first appear.

    Returns:
        What was printed, and where.

    Raises:
        ValueError: If there are more columns than can be seen side by side.
    """
    titles = list(dict.fromkeys(title for row in rows for title in row.cells))
    side = cell_side(max(len(c.pixels) for row in rows for c in row.cells.values()), len(titles))
    k = max(1, side // READABLE)  # text grows with large cells
    caption_height, title_height, line_height = k * CAPTION, k * TITLE, k * LINE
    heights = [
        caption_height + side + line_height * max(map(_lines, row.cells.values())) + GAP for row in rows
    ]
    width = GAP + len(titles) * (side + GAP)
    figure = Image.new("RGB", (width, GAP + title_height + sum(heights)), "white")
    draw = ImageDraw.Draw(figure)
    for column, title in enumerate(titles):
        _text(
            draw, _left(column, side) + side / 2, GAP + title_height / 2, title, side, 15 * k, "black", "mm"
        )
    placed = []
    for number, row in enumerate(rows):
        top = GAP + title_height + sum(heights[:number])
        _text(draw, GAP, top + caption_height / 2, row.caption, width - 2 * GAP, 13 * k, "dimgray", "lm")
        boxes = {}
        for title, shown in row.cells.items():
            left = _left(titles.index(title), side)
            boxes[title] = (left, top + caption_height, left + side, top + caption_height + side)
            figure.paste(_scaled(shown, side), boxes[title][:2])
            for line, text in enumerate(_texts(shown)):
                middle = boxes[title][3] + line_height * (line + 0.5) + 2
                _text(draw, left + side / 2, middle, text, side, 12 * k, "black", "mm")
        values = {title: dict(shown.values) for title, shown in row.cells.items() if shown.values}
        placed.append(FigureRow(row.caption, values, boxes))
    buffer = io.BytesIO()
    figure.save(buffer, "PNG")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())
    return placed


def cell_side(side: int, columns: int) -> int:
    """Side of the cells of a figure whose largest picture has this side.

    Raises:
        ValueError: If there are more columns than can be seen side by side.
    """
    widest = (MAX_WIDTH - GAP) // columns - GAP
    shown = side * math.ceil(SHOWN / side)
    while shown > widest:
        shown = shown - side if shown > side else shown // 2  # whole factors, or powers of two
    if shown < SMALLEST:
        raise ValueError(f"{columns} columns do not fit into {MAX_WIDTH} pixels; show fewer")
    return shown


def _left(column: int, side: int) -> int:
    return GAP + column * (side + GAP)


def _scaled(shown: Cell, side: int) -> Image.Image:
    """Bring a picture to the cell's side, with its dots."""
    picture = Image.fromarray(shown.pixels)
    if picture.width <= side and side % picture.width == 0:
        picture = picture.resize((side, side), Image.Resampling.NEAREST)
    else:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    if shown.points is not None:
        draw, radius = ImageDraw.Draw(picture), max(1.0, side / 160)
        for x, y in (shown.points * side).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(0, 255, 80))
    return picture


def _lines(shown: Cell) -> int:
    return len(_texts(shown))


def _texts(shown: Cell) -> list[str]:
    """The lines under a picture; a value that does not exist (no face was found) is a dash."""
    lines = list(shown.notes)
    for name, value in shown.values.items():
        text = PRINTED[name].format(value)
        lines.append(text if math.isfinite(value) else text.replace("nan", "-"))
    return lines


def _text(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    width: float,
    size: int,
    fill: str,
    anchor: str,
) -> None:
    """Write one line, smaller where it is too long, and cut where that does not suffice."""
    text = " ".join(text.split())[:500]
    while size > 9 and draw.textlength(text, ImageFont.load_default(size)) > width:
        size -= 1
    font = ImageFont.load_default(size)
    while len(text) > 4 and draw.textlength(text, font) > width:
        text = text.rstrip(".")[:-1] + "..."
    draw.text((x, y), text, fill=fill, font=font, anchor=anchor)


class Figure:
    """What all figures begin with: checked arguments, the model, and evenly spread validation pairs."""

    def __init__(
        self,
        model: Model | None,
        data: PairsDataModule,
        out: str | Path,
        rows: int,
        metrics: Sequence[str] = (),
    ) -> None:
        self.out = Path(out)
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"out: expected the name of a .png file, got {str(out)!r}")
        if rows < 1:
            raise ValueError(f"rows: expected 1 or more, got {rows}")
        if unknown := [name for name in metrics if name not in MEASURED]:
            raise ValueError(f"metrics: expected some of {', '.join(MEASURED)}, got {unknown[0]!r}")
        self.metrics = metrics
        if model is not None:
            self.model = load("model", model)
            data.lr_size, data.size = data.lr_size or self.model.lr_size, data.size or self.model.size
            if data.size != self.model.size:
                raise ValueError(f"data: its size {data.size} is not the model's, {self.model.size}")
        self.data = data
        self.dataset = data.val_dataset()
        if not len(self.dataset):
            raise ValueError("data: it has no validation pairs")
        self.places = evenly(list(range(len(self.dataset))), rows)

    def batches(self) -> Iterator[ReferenceBatch]:
        """The chosen pairs at full size, one at a time as a batch."""
        return (collate([self.dataset[place]]) for place in self.places)

    def like(self, pairs: Sequence[Pair], mask_reference: bool | None = None) -> PairsDataset:
        """Other pairs, made as the validation pairs are."""
        d = self.dataset
        masked = d.mask_reference if mask_reference is None else mask_reference
        return PairsDataset(
            d.photos, pairs, lr_size=d.lr_size, size=d.size, side=d.side, mask_reference=masked,
            source_side=d.source_side, degrade=d.degrade,
        )  # fmt: skip

    def measure(self, output: Tensor, batch: ReferenceBatch) -> dict[str, float]:
        """The values that are printed under an output (1, 3, S, S)."""
        return {name: float(MEASURED[name](output, batch)) for name in self.metrics}

    def same_person(self, gt: int, count: int) -> list[Pair]:
        """Up to `count` references of the same person, nearest landmarks first."""
        found = self.data.split_pairs()
        own = found.photos.identities[gt]
        names = [name if name == own else "" for name in found.photos.identities]
        pairs = nearest_references(names, found.photos.landmarks, found.duplicates, count)
        return [pair for pair in pairs if pair.gt == gt]

    def other_people(self, gt: int, count: int) -> list[Pair]:
        """Up to `count` references of other validation people, nearest landmarks first, one of each person."""
        found = self.data.split_pairs()
        names, left, pairs = found.photos.identities, list(found.others), []
        for _ in range(count):
            try:
                pairs += other_person_references([gt], left, names, found.photos.landmarks, found.duplicates)
            except ValueError as error:
                if not pairs:
                    raise ValueError(f"data: {error}") from error
                break
            left = [place for place in left if names[place] != names[pairs[-1].reference]]
        return pairs


def load(argument: str, model: Model) -> RPFModel:
    """Load a model where it is none yet; errors begin with the argument's name.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If its files do not fit each other.
    """
    if isinstance(model, RPFModel):
        return model
    try:
        return RPFModel.from_pretrained(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{argument}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def method_of(name: str, method: Method) -> Callable[[ReferenceBatch], Tensor]:
    """Make a function of a method.

    Raises:
        FileNotFoundError: If it is neither a model directory nor a folder.
    """
    if callable(method) and not isinstance(method, RPFModel):
        return lambda batch: method(batch).detach().cpu()
    if (
        isinstance(method, str | Path)
        and Path(method).is_dir()
        and not (Path(method) / CONFIG_FILE).is_file()
    ):
        folder = Path(method)
        return lambda batch: torch.stack([_result(name, folder, gt) for gt in batch.id])
    model = load(f"methods: {name}", method)
    return lambda batch: output_of(model, batch)


def _result(name: str, folder: Path, gt: str) -> Tensor:
    path = folder / f"{Path(gt).stem}.png"
    if not path.is_file():
        raise FileNotFoundError(f"methods: {name} has no result {path}")
    return torch.from_numpy(read_photo(path)).permute(2, 0, 1).float() / 255


def blocks_of(model: RPFModel, batch: ReferenceBatch) -> list[BlockOutput]:
    """What every block makes of a batch at full size, on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        blocks = model(batch.lr.to(device), batch.reference.to(device), return_intermediates=True)[1]
    return [BlockOutput(*(image.cpu() for image in block)) for block in blocks]


def output_of(model: RPFModel, batch: ReferenceBatch) -> Tensor:
    """What a model makes of a batch at full size, on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model(batch.lr.to(device), batch.reference.to(device)).cpu()


def caption(batch: ReferenceBatch) -> str:
    """Name the two photos of a batch of one."""
    return f"{batch.id[0]}, reference {batch.reference_id[0]}"
