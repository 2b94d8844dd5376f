"""`rpf predict --csv`: super-resolves a list of small faces, each with its reference, without any GT."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rpf_lightning.callbacks.predictions import png
from rpf_lightning.data.reading import read_photo
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize, resize_mask
from rpf_lightning.model.storage import write_atomically

COLUMNS = ("lr", "reference", "mask", "name")
Images = tuple[str, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Attributes:
        name: Name of the result, without suffix.
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

    Files are relative to the list's folder. Without `name` results are named after the LR's file.

    Raises:
        FileNotFoundError: If the list or a file that it names is missing.
        ValueError: If a column is missing or unknown, a field is empty, or two results have one name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a CSV file with the columns {', '.join(COLUMNS)}"
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
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
                f"{path}: lines {seen[row.name]} and {number} both write {row.name}.png; give them a column name"
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
    name = (line.get("name") or "").strip() or lr.stem
    if Path(name).name != name:
        raise ValueError(f"{path}, line {number}: name {name!r} is no plain file name")
    return Row(name, lr, reference, mask)


class ListedImages(Dataset[Images]):
    """The images of a list at the model's sides.

    Args:
        rows: The list.
        lr_size: L of the model.
        size: Its output side.
    """

    def __init__(self, rows: list[Row], lr_size: int, size: int) -> None:
        self.rows, self.lr_size, self.size = rows, lr_size, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Images:
        """Read the name, LR (3, l, l), reference (3, S, S) or None, and mask (1, S, S) or None.

        Raises:
            ValueError: If an image is broken, not square, or the LR has another side than the model takes.
        """
        row = self.rows[index]
        lr = _square(row.lr)
        sides = [self.lr_size]
        while sides[-1] < self.size // 2:
            sides.append(2 * sides[-1])
        if lr.shape[-1] not in sides:
            raise ValueError(f"{row.lr}: expected a side of {', '.join(map(str, sides))}, got {lr.shape[-1]}")
        reference = None if row.reference is None else resize(_square(row.reference)[None], self.size)[0]
        mask = None if row.mask is None else (_square(row.mask).amax(0, keepdim=True) > 0).float()
        if mask is not None:
            mask = (
                resize_mask(mask[None], self.size)[0]
                if mask.shape[-1] >= self.size
                else _enlarged(mask, self.size)
            )
        return row.name, lr, None if reference is None else reference.clamp(0, 1), mask


def _square(path: Path) -> Tensor:
    pixels = read_photo(path)
    if pixels.shape[0] != pixels.shape[1]:
        raise ValueError(f"{path}: expected a square image, got {pixels.shape[1]} x {pixels.shape[0]}")
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def _enlarged(mask: Tensor, side: int) -> Tensor:
    return torch.nn.functional.interpolate(mask[None], size=(side, side), mode="nearest")[0]


def predict_list(
    model: RPFModel | str | Path,
    rows: list[Row],
    out: str | Path,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Write a PNG of side S for every row; what is there already is not made again.

    Args:
        model: The model or its directory.
        rows: What `read_list` gave.
        out: Folder of the PNGs; made if it is missing.
        batch_size: Faces per step, where they have one side and all have a reference, or none has.
        num_workers: Processes that read images.
        device: A torch device, or "auto": the GPU where there is one.

    Returns:
        The files, in the order of the rows.

    Raises:
        ValueError: If an image does not fit; the file is named, and what was written before it stays.
    """
    if not isinstance(model, RPFModel):
        model = RPFModel.from_pretrained(model)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    model.eval().to(chosen)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{row.name}.png" for row in rows]
    todo = [row for row, file in zip(rows, files, strict=True) if not file.is_file()]
    images = ListedImages(todo, model.lr_size, model.size)
    loader = DataLoader(images, batch_size=None, num_workers=num_workers)
    steps = track(_batches(loader, batch_size), "super-resolving", total=None, disable=not todo)
    for names, lr, reference, mask in steps:
        with torch.inference_mode():
            given = (None if tensor is None else tensor.to(chosen) for tensor in (reference, mask))
            output = model(lr.to(chosen), *given)
        pixels = (output.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for name, image in zip(names, pixels, strict=True):
            write_atomically(folder / f"{name}.png", png(image))
    return files


def _batches(
    images: DataLoader[Images], batch_size: int
) -> Iterator[tuple[list[str], Tensor, Tensor | None, Tensor | None]]:
    """Gather neighbours that fit together."""
    held: list[Images] = []

    def kind(image: Images) -> tuple[int, bool, bool]:
        return image[1].shape[-1], image[2] is None, image[3] is None

    for image in images:
        if held and (len(held) == batch_size or kind(image) != kind(held[0])):
            yield _stack(held)
            held = []
        held.append(image)
    if held:
        yield _stack(held)


def _stack(held: list[Images]) -> tuple[list[str], Tensor, Tensor | None, Tensor | None]:
    names, lr, references, masks = (list(column) for column in zip(*held, strict=True))
    reference = None if references[0] is None else torch.stack(references)
    return names, torch.stack(lr), reference, None if masks[0] is None else torch.stack(masks)


def main(args: list[str] | None = None) -> None:
    """Run `rpf predict --csv`.

    Args:
        args: The command line after `rpf predict`; None takes the process's.
    """
    parser = argparse.ArgumentParser("rpf predict", description=__doc__)
    parser.add_argument("--csv", required=True, help="columns lr, and as needed reference, mask, name")
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--out", required=True, help="folder of the PNGs")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    known = parser.parse_args(args)
    try:
        rows = read_list(known.csv)
        there = sum((Path(known.out) / f"{row.name}.png").is_file() for row in rows)
        predict_list(known.model, rows, known.out, known.batch_size, known.num_workers, known.device)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{len(rows)} images in {known.out}, {len(rows) - there} of them new")
