"""`rpf enhance --aligned --csv`: super-resolves a list of small faces, each with its reference, without any GT."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from rpf_lightning.data.dataset import fingerprint
from rpf_lightning.data.image_files import open_image, read_photo
from rpf_lightning.data.sample import bicubic, mask_to
from rpf_lightning.devices import place_of
from rpf_lightning.files import read_utf8, write_atomically
from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import weights_hash
from rpf_lightning.pictures import MOST_PIXELS, is_grey, png, result_file, to_grey, to_uint8

COLUMNS = ("lr", "reference", "mask", "name")
MADE_FROM = "rpf-lightning made from"
"""Key of the text in a PNG that says what it was made from, see `_origins`."""
logger = logging.getLogger(__name__)

Images = tuple[str, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Attributes:
        name: Name of the result, with its subfolders and `.png`.
        lr: The small face: square, its side L * 2^k of the model.
        reference: A square photo of the same person, aligned alike; None: the enlarged LR serves as one.
        mask: Where the reference shows the face (not black); None: the reference counts as masked already.
    """

    name: str
    lr: Path
    reference: Path | None
    mask: Path | None


def read_list(path: str | Path) -> list[Row]:
    """Read a CSV file with the columns `lr`, and as needed `reference`, `mask` and `name`.

    Files are relative to the list's folder. A result is named after `name`, without it after `lr` as it stands in
    the list, subfolders included; after the file alone where that leads out of the list's folder. The names are
    those by which a folder of results is matched: `a/1.jpg` gives `a/1.png`.

    Raises:
        FileNotFoundError: If the list or a file that it names is missing.
        ValueError: If a column is missing or unknown, a field is empty, a name leads out of the folder of results,
            or two results have one name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a CSV file with the columns {', '.join(COLUMNS)}"
        )
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    columns = reader.fieldnames or []
    if "lr" not in columns or set(columns) - set(COLUMNS):
        raise ValueError(
            f"{path}: expected the column lr and at most {', '.join(COLUMNS)}, got {', '.join(columns)}"
        )
    rows = [_row(path, number, line) for number, line in enumerate(reader, start=2)]
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if row.name in seen:
            raise ValueError(
                f"{path}: lines {seen[row.name]} and {number} both write {row.name}; give them a column name"
            )
        seen[row.name] = number
    return rows


def _row(path: Path, number: int, line: dict[str, str | None]) -> Row:
    def file(column: str) -> Path | None:
        text = (line.get(column) or "").strip()
        if not text:
            return None
        found = path.parent / text
        if not found.is_file():
            raise FileNotFoundError(f"{path}, line {number}: {column} {found} is not there")
        return found

    lr = file("lr")
    if lr is None:
        raise ValueError(f"{path}, line {number}: lr is empty")
    reference, mask = file("reference"), file("mask")
    if mask is not None and reference is None:
        raise ValueError(f"{path}, line {number}: mask without a reference; it masks the reference")
    listed = (line.get("lr") or "").strip()
    outside = Path(listed).is_absolute() or ".." in Path(listed).parts
    try:
        name = result_file(
            (line.get("name") or "").strip() or (lr.name if outside else Path(listed).as_posix())
        )
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: name {error}") from error
    return Row(name, lr, reference, mask)


def read_images(row: Row, size: int) -> Images:
    """Read a line's name, LR (3, l, l), reference (3, S, S) or None, and mask (1, S, S) or None; `size` is S.

    Raises:
        ValueError: If an image is broken or not square.
    """
    reference = None if row.reference is None else bicubic(_square(row.reference)[None], size)[0]
    mask = None if row.mask is None else (_square(row.mask).amax(0, keepdim=True) > 0).float()
    return row.name, _square(row.lr), reference, None if mask is None else mask_to(mask[None], size)[0]


def check_sides(rows: Sequence[Row], sides: Sequence[int]) -> None:
    """Check the sides of all images by their files' heads, before the first is super-resolved.

    Raises:
        ValueError: If one is no image, an LR has a side that the model does not take, or a reference or mask has more
            than 48 million pixels.
    """
    for path in dict.fromkeys(path for row in rows for path in (row.reference, row.mask) if path):
        with open_image(path) as file:
            pixels = file.width * file.height
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"{path} has {pixels / 1e6:.0f} million pixels, expected 48 at most: cut or reduce it"
            )
    for path in dict.fromkeys(row.lr for row in rows):
        with open_image(path) as file:
            width, height = file.size
        if width != height:
            raise ValueError(f"{path}: expected a square image, got {width} x {height}")
        if width not in sides:
            raise ValueError(f"{path}: expected a side of {', '.join(map(str, sides))}, got {width}")


def _square(path: Path) -> Tensor:
    notes: list[str] = []
    pixels = read_photo(path, notes=notes)
    for note in notes:
        logger.warning("warning: %s", note)
    if pixels.shape[0] != pixels.shape[1]:
        raise ValueError(f"{path}: expected a square image, got {pixels.shape[1]} x {pixels.shape[0]}")
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def predict_list(
    model: RPFModel | str | Path,
    rows: list[Row],
    out: str | Path,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write a PNG of side S for every row.

    Every PNG says what it was made from. One that is there already and was made from the same model and the same
    images is not made again; any other is replaced.

    Args:
        model: The model or its directory.
        rows: What `read_list` gave.
        out: Folder of the PNGs; made if it is missing.
        batch_size: Faces per step, where they have one side and all have a reference, or none has.
        num_workers: Processes that read images.
        device: A torch device, or "auto": the GPU where there is one.
        say: Takes the line that says how many were made now.

    Returns:
        The files, in the order of the rows.

    Raises:
        ValueError: If an argument or an image does not fit, or the model makes values that are not finite; the files
            are named, and what was written before stays.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
    chosen = place_of(device)
    if not isinstance(model, RPFModel):
        model = RPFModel.from_pretrained(model)
    sides = model.config.entry_sides
    check_sides(rows, sides)
    model.eval().to(chosen)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    origins = _origins(model, rows)
    todo = [row for row in rows if _origin_of(folder / row.name) != origins[row.name]]
    read: Any = partial(read_images, size=model.size)
    loader: Any = DataLoader(todo, batch_size=None, num_workers=num_workers, collate_fn=read)  # type: ignore[arg-type]
    steps = track(_batches(loader, batch_size), "super-resolving", total=None, disable=not todo)
    for names, lr, reference, mask in steps:
        with torch.inference_mode():
            given = (None if tensor is None else tensor.to(chosen) for tensor in (reference, mask))
            try:
                output = model(lr.to(chosen), *given)
            except ValueError as error:
                raise ValueError(f"{', '.join(names)}: {error}") from error
        for name, image, small in zip(names, to_uint8(output), to_uint8(lr), strict=True):
            if is_grey(small):
                image = to_grey(image)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, png(image, {MADE_FROM: origins[name]}))
    say(f"{len(rows)} images in {out}, {len(todo)} of them new")
    return [folder / row.name for row in rows]


def _origins(model: RPFModel, rows: Sequence[Row]) -> dict[str, str]:
    """Say for every result what it is made from: a SHA-256 over the model and over the images' files."""
    network = [asdict(model.config), weights_hash(model.state_dict())]

    @cache  # a reference may serve many LRs
    def content(path: Path | None) -> str | None:
        if path is None:
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {
        row.name: fingerprint(network, [content(path) for path in (row.lr, row.reference, row.mask)])
        for row in rows
    }


def _origin_of(file: Path) -> str | None:
    """Read what a PNG was made from; None where there is none, or it is not one of ours."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return image.info.get(MADE_FROM)
    except (OSError, Image.DecompressionBombError):  # missing, or not one of ours: it is made
        return None


def _batches(images: Iterable[Images], batch_size: int) -> Iterator[tuple[Any, ...]]:
    """Gather neighbours that fit together: names, LRs, references or None, masks or None."""
    for _, alike in groupby(images, lambda image: (image[1].shape[-1], image[2] is None, image[3] is None)):
        while held := list(islice(alike, batch_size)):
            names, *columns = (list(column) for column in zip(*held, strict=True))
            yield names, *(None if column[0] is None else torch.stack(column) for column in columns)
