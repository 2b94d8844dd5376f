"""What lies in a folder of photos, and annotations that exist already."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.data.image_files import KINDS
from rpf_lightning.data.pairing import POINTS
from rpf_lightning.files import read_csv
from rpf_lightning.pictures import IMAGES

PICTURES = ("distances.png", "contact_sheet.png")  # drawn for a person to look at
LANDMARK_COLUMNS = [f"{axis}{i}" for i in range(POINTS) for axis in "xy"]


@dataclass(frozen=True)
class Source:
    """A photo that is to be prepared.

    Attributes:
        file: Its name: the path relative to the folder, with `/`, in Unicode's composed form.
        path: Where it lies.
        identity: Name of the person; empty if unknown.
        landmarks: (68, 2) in pixels of the upright photo, or None where they are to be found.
        label: Its parsing map, or None where the mask is to be found.
    """

    file: str
    path: Path
    identity: str = ""
    landmarks: NDArray[np.float64] | None = None
    label: Path | None = None


def list_photos(folder: str | Path, out: str | Path | None = None) -> dict[str, Path]:
    """List the photos in a folder and below, told by their suffix, sorted by name.

    Args:
        folder: The folder.
        out: Prepared folder; what it holds, if it lies in the other one, is no photo.

    Raises:
        FileNotFoundError: If there is no such folder, or no photo in it.
        ValueError: If two names differ only in their Unicode form.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected photos there ({KINDS})")
    found: dict[str, Path] = {}
    for path in _files(root, out):
        if path.suffix.lower() in IMAGES:
            file = composed(path.relative_to(root).as_posix())
            if file.encode(errors="replace").decode() != file:
                raise ValueError(f"{str(path)!r}: the name is no UTF-8; rename the file")
            if file in found:
                raise ValueError(f"{path} and {found[file]} have the same name in two Unicode forms")
            found[file] = path
    if not found:
        raise FileNotFoundError(f"{root}: holds no photo; expected {KINDS} files there or below")
    return dict(sorted(found.items()))


def no_photos(
    folder: str | Path, out: str | Path | None = None, used: Iterable[str | Path | None] = ()
) -> dict[str, str]:
    """List what lies in a folder of photos and is none, with the reason.

    Args:
        folder: The folder.
        out: Prepared folder, as in `list_photos`.
        used: Files that may lie there too and are read, such as the list of people.
    """
    root, read = Path(folder), {Path(file).resolve() for file in used if file is not None}
    return {
        composed(path.relative_to(root).as_posix()): f"no photo by its suffix; expected {KINDS}"
        for path in sorted(_files(root, out))
        if path.suffix.lower() not in IMAGES and path.resolve() not in read
    }


def _files(root: Path, out: str | Path | None) -> Iterator[Path]:
    """All files but those of the system and those that `rpf prepare` wrote."""
    ours = None if out is None else Path(out).resolve()
    for path in root.rglob("*"):
        if ours is not None and _is_ours(path.resolve(), ours, root.resolve()):
            continue
        # names that begin with a dot are the system's, such as macOS's ._ files
        if not path.name.startswith(".") and path.is_file():
            yield path


def _is_ours(path: Path, out: Path, root: Path) -> bool:
    """Tell whether `rpf prepare` wrote a picture."""
    if root.is_relative_to(out):  # the photos lie in the prepared folder
        return path.parent == out and path.name in PICTURES
    return path.is_relative_to(out)


def composed(name: str) -> str:
    """Return a name in Unicode's composed form: file systems and CSV files may spell it differently."""
    return unicodedata.normalize("NFC", name)


def identities_from_csv(path: str | Path) -> dict[str, str]:
    """Read a CSV file with the columns `file` and `identity`; an empty identity is an unknown person.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If a column is missing, a row is short or a file is listed twice.
    """
    return {file: row["identity"].strip() for file, _, row in _rows(Path(path), ["file", "identity"])}


def identities_from_folders(files: Iterable[str]) -> dict[str, str]:
    """Take the folder that holds a photo as the name of the person; photos beside the folders are unknown."""
    parents = {file: PurePosixPath(file).parent.as_posix() for file in files}
    return {file: "" if parent == "." else parent for file, parent in parents.items()}


def landmarks_from_csv(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Read a CSV file with the columns `file, x0, y0, ..., x67, y67`, in pixels of the upright photo.

    Coordinates are continuous: the photo spans 0 .. width, pixel i has its centre at i + 0.5.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If a column is missing, a value is no finite number or a file is listed twice.
    """
    path = Path(path)
    found: dict[str, NDArray[np.float64]] = {}
    for file, line, row in _rows(path, ["file", *LANDMARK_COLUMNS]):
        try:
            points = np.array([float(row[column]) for column in LANDMARK_COLUMNS]).reshape(POINTS, 2)
        except ValueError as error:
            raise ValueError(f"{path}, line {line} ({file!r}): {error}; expected 136 numbers") from error
        if not np.isfinite(points).all():
            raise ValueError(f"{path}, line {line} ({file!r}): expected 136 finite numbers")
        found[file] = points
    return found


def refuse_strangers(path: str | Path, listed: Collection[str], photos: Collection[str]) -> None:
    """Refuse a CSV file that lists not one of the photos: its names are relative to another folder.

    Raises:
        ValueError: With an example of both.
    """
    if listed and not set(listed) & set(photos):
        raise ValueError(
            f"{path}: lists {next(iter(listed))!r} and others, but not one of the photos, such as "
            f"{next(iter(photos))!r}; names are relative to the folder of the photos"
        )


def label_files(folder: str | Path, files: Iterable[str]) -> dict[str, Path]:
    """Find the parsing map of every photo: the photo's name with `.png`, photos without one are left out.

    Raises:
        FileNotFoundError: If there is no such folder, or no map for any photo.
        ValueError: If two photos would share a map.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected parsing maps <name of the photo>.png")
    present = {composed(path.relative_to(root).as_posix()): path for path in root.rglob("*.png")}
    wanted = {file: PurePosixPath(file).with_suffix(".png").as_posix() for file in files}
    twice = [label for label, times in Counter(wanted.values()).items() if times > 1 and label in present]
    if twice:
        raise ValueError(f"{root / twice[0]}: would be the parsing map of two photos")
    found = {file: present[label] for file, label in wanted.items() if label in present}
    if not found:
        example = next(iter(wanted.values()))
        raise FileNotFoundError(f"{root}: holds no parsing map <name of a photo>.png, such as {example}")
    return found


def _rows(path: Path, columns: list[str]) -> list[tuple[str, int, dict[str, str]]]:
    """Read a CSV file with a header as (file, line number, row), checking columns and names."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a CSV file with the columns {_short(columns)}"
        )
    rows: dict[str, tuple[str, int, dict[str, str]]] = {}
    header, listed = read_csv(path)
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(
            f"{path}: the header lacks {_short(missing)}; expected the columns {_short(columns)}, "
            f"found {_short(header)}"
        )
    for line, row in listed:
        given = {column: value for column in columns if (value := row[column]) is not None}
        if short := [column for column in columns if column not in given]:
            raise ValueError(f"{path}, line {line}: no value for {_short(short)}")
        name = composed(given["file"])
        if name in rows:
            raise ValueError(f"{path}, line {line}: {name!r} is listed twice")
        rows[name] = (name, line, given)
    return list(rows.values())


def _short(names: list[str]) -> str:
    """Join names, leaving out the middle of a long list."""
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])
