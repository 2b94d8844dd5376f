"""A folder of aligned photos with identities, landmarks and parsing labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from rpf_lightning.data.labels import facial_mask, label_names
from rpf_lightning.data.records import Photo

POINTS = 68


class PhotoFolder:
    """Photos listed in a folder's `identities.csv`, in the order of its rows.

    The folder holds::

        images/            square photos, any format Pillow reads
        identities.csv     header `file,identity`, more columns are ignored; empty identity = unknown
        landmarks.csv      header `file,x0,y0,...,x67,y67`, in pixels of the photo; no row = none found
        labels/            one parsing map `<stem>.png` per photo, at any size

    Rows of `landmarks.csv` for other files are ignored.

    Attributes:
        root: The folder.
        label_scheme: Order of the label values, "bisenet" or "celebamask-hq".
        ids: File names of the photos.
        identities: Names of the people, empty if unknown.
        landmarks: (68, 2) float64 per photo as fractions of its side, or None.

    Args:
        root: The folder.
        label_scheme: "bisenet" or "celebamask-hq".

    Raises:
        FileNotFoundError: if a file or folder above is missing.
        ValueError: if the label scheme is unknown, a column is missing, a row is wrong, or a photo with
            landmarks is not square.
    """

    def __init__(self, root: str | Path, label_scheme: str) -> None:
        label_names(label_scheme)  # fails now and not at the first photo
        self.root = Path(root)
        self.label_scheme = label_scheme
        images = _names(self.root / "images", "the photos")
        labels = _names(self.root / "labels", "the parsing maps (<stem>.png)")

        self.ids: list[str] = []
        self.identities: list[str] = []
        path = self.root / "identities.csv"
        seen: set[str] = set()
        for line, row in _rows(path, ["file", "identity"]):
            name, identity = row["file"], row["identity"]
            if name in seen:
                raise ValueError(f"{path}, line {line}: {name!r} is listed twice")
            if name not in images:
                raise FileNotFoundError(f"{self.root / 'images' / name}, listed in {path}, line {line}")
            if (label := f"{Path(name).stem}.png") not in labels:
                raise FileNotFoundError(f"{self.root / 'labels' / label}, the parsing map of {name!r}")
            seen.add(name)
            self.ids.append(name)
            self.identities.append(identity.strip())
        points = self._read_landmarks(seen)
        self.landmarks: list[NDArray[np.float64] | None] = [points.get(name) for name in self.ids]

    def _read_landmarks(self, files: set[str]) -> dict[str, NDArray[np.float64]]:
        """Read `landmarks.csv` for the listed files, as fractions of each photo's side."""
        columns = [f"{axis}{i}" for i in range(POINTS) for axis in "xy"]
        path = self.root / "landmarks.csv"
        landmarks: dict[str, NDArray[np.float64]] = {}
        for line, row in _rows(path, ["file", *columns]):
            name = row["file"]
            if name not in files:
                continue
            if name in landmarks:
                raise ValueError(f"{path}, line {line}: {name!r} is listed twice")
            try:
                points = np.array([float(row[column]) for column in columns]).reshape(POINTS, 2)
            except ValueError as error:
                raise ValueError(f"{path}, line {line} ({name!r}): {error}; expected 136 numbers") from error
            if not np.isfinite(points).all():
                raise ValueError(f"{path}, line {line} ({name!r}): expected 136 finite numbers")
            image = self.root / "images" / name
            with _open(image) as header:
                width, height = header.size
            if width != height:
                raise ValueError(f"{image}: the photo must be square, got {width} x {height}")
            landmarks[name] = points / width
        return landmarks

    def __len__(self) -> int:
        return len(self.ids)

    def photo(self, index: int) -> Photo:
        """Read a photo with its annotations.

        Args:
            index: Position in `ids`.

        Returns:
            The photo at its file's size, upright (EXIF orientation applied), RGB.

        Raises:
            ValueError: if the photo or its parsing map cannot be read; the message names the file.
        """
        name = self.ids[index]
        path = self.root / "images" / name
        with _open(path) as file:
            try:
                image = np.array(ImageOps.exif_transpose(file).convert("RGB"))
            except OSError as error:
                raise ValueError(f"{path}: cannot be decoded: {error}") from error
        height, width = image.shape[:2]
        landmarks = self.landmarks[index]
        return Photo(
            id=name,
            identity=self.identities[index],
            image=image,
            landmarks=None if landmarks is None else landmarks * width,
            mask=self._mask(Path(name).stem, (width, height)),
        )

    def _mask(self, stem: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a parsing map as a facial mask of the photo's (width, height)."""
        path = self.root / "labels" / f"{stem}.png"
        with _open(path) as file:
            if file.mode not in ("L", "P"):
                raise ValueError(f"{path}: expected one 8-bit label per pixel (mode L or P), got {file.mode}")
            try:
                labels = np.array(file)
            except OSError as error:
                raise ValueError(f"{path}: cannot be decoded: {error}") from error
        try:
            mask = facial_mask(labels, self.label_scheme)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if (mask.shape[1], mask.shape[0]) != size:
            mask = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        return mask


def _names(folder: Path, what: str) -> set[str]:
    """Return the names of the files in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {what} there")
    return {path.name for path in folder.iterdir()}


def _rows(path: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header as (line number, row), checking that the columns are there."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a CSV file with the columns {_short(columns)}"
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path}: the header lacks {_short(missing)}; expected the columns {_short(columns)}, "
                f"found {_short(list(reader.fieldnames or []))}"
            )
        rows = []
        for row in reader:
            short = [column for column in columns if row[column] is None]
            if short:
                raise ValueError(f"{path}, line {reader.line_num}: no value for {_short(short)}")
            rows.append((reader.line_num, row))
        return rows


def _short(names: list[str]) -> str:
    """Join names, leaving out the middle of a long list."""
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])


def _open(path: Path) -> Image.Image:
    """Open an image, naming the file if it is not one."""
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
