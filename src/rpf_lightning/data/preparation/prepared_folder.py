"""The files of a prepared data set: how they are written, hashed, read and verified.

A prepared folder holds::

    images.parquet        a row per photo: file, identity, width, height, sha256 of the file (of aligned pixels)
    landmarks.parquet     file, x0, y0, ..., x67, y67 in pixels, a row per photo, in the same order
    masks.npy             (N, 512, 64) uint8: a facial mask of 512 x 512 bits per photo (eq. 1)
    thumbnails.npy        (N, 32, 32) uint8, grey, for the near-duplicate rule
    embeddings.npy        (N, D) float32, raw ArcFace features; only if they were asked for
    pairs_<split>.parquet gt, reference, rank (0 is the nearest), distance (fraction of the side)
    duplicates.csv        near-duplicates: file, other, and whether they carry one identity
    rejected.csv          file, reason
    prepare.json          arguments, versions, counts, SHA-256 over the content
    images/               aligned faces, only if the photos were aligned
"""

from __future__ import annotations

import hashlib
import io
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation.sources import LANDMARK_COLUMNS
from rpf_lightning.errors import DamagedError
from rpf_lightning.files import leads_out, read_json, write_atomically

FORMAT = 1
CHUNK = 2**24  # bytes written at a time
MASK_SIDE = 512  # BiSeNet's and CelebAMask-HQ's side
ALIGNED = "images"  # folder of faces that are aligned here
SUMMARY = "prepare.json"
PARTS = {"sha256": str, "splits": list, "images": str, "arguments": dict, "counts": dict}
IMAGES = "images.parquet"
LANDMARKS = "landmarks.parquet"
MASKS = "masks.npy"
THUMBNAILS = "thumbnails.npy"
EMBEDDINGS = "embeddings.npy"
DUPLICATES = "duplicates.csv"
DUPLICATES_HASH = "duplicates_sha256"


def write_table(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    """Write a Parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), buffer)
    write_atomically(path, buffer.getvalue())


def read_table(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a Parquet file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is broken or a column is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rpf prepare` writes it")
    try:
        return pq.read_table(path, columns=list(columns)).to_pydict()
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise ValueError(f"{path}: expected a Parquet file with {', '.join(columns[:6])}: {error}") from error


def write_landmarks(path: Path, files: Sequence[str], landmarks: NDArray[np.float64]) -> None:
    """Write (N, 68, 2) landmarks in pixels."""
    flat = landmarks.reshape(len(files), len(LANDMARK_COLUMNS))
    write_table(path, {"file": files, **dict(zip(LANDMARK_COLUMNS, flat.T, strict=True))})


def read_landmarks(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Read (N, 68, 2) landmarks in pixels, and the names of the photos."""
    table = read_table(path, ["file", *LANDMARK_COLUMNS])
    flat = np.array([table[column] for column in LANDMARK_COLUMNS], dtype=np.float64).T
    return table["file"], np.ascontiguousarray(flat).reshape(-1, len(LANDMARK_COLUMNS) // 2, 2)


def pairs_file(split: str) -> str:
    """Return the name of the file with the pairs of a split."""
    return f"pairs_{split}.parquet"


def write_pairs(path: Path, pairs: Sequence[Pair], files: Sequence[str]) -> None:
    """Write pairs, ordered by GT and then by distance."""
    ranks = [rank for _, of_one in groupby(pairs, lambda pair: pair.gt) for rank, _ in enumerate(of_one)]
    columns: dict[str, Sequence[Any]] = {
        "gt": [files[pair.gt] for pair in pairs],
        "reference": [files[pair.reference] for pair in pairs],
        "rank": ranks,
        "distance": [pair.distance for pair in pairs],
    }
    write_table(path, columns)


@contextmanager
def array_file(path: Path, shape: tuple[int, ...], dtype: str = "uint8") -> Iterator[NDArray[Any]]:
    """Give a memory-mapped array to fill; the file gets its name when that has succeeded.

    Raises:
        OSError: If the disk is too full for it; nothing is left then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        array = new_array(temporary, shape, dtype)
        yield array
        array.flush()  # type: ignore[attr-defined]  # a memmap
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array file and map it into memory, with its space on the disk taken.

    A mapped file has no space of its own before it is written, and a full disk would then end the process.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        else:
            file.seek(array.offset)
            for start in range(0, array.nbytes, CHUNK):
                file.write(bytes(min(CHUNK, array.nbytes - start)))
    return array


def pack_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring a square mask of 0 and 1 to 512 x 512 (nearest) and pack it to (512, 64) bits."""
    side = mask.shape[0]
    if side != MASK_SIDE:
        nearest = ((np.arange(MASK_SIDE) + 0.5) * side / MASK_SIDE).astype(np.int64)
        mask = mask[nearest][:, nearest]
    return np.packbits(mask, axis=1)


def unpack_mask(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `pack_mask`: (512, 64) bits to (512, 512) of 0 and 1."""
    return np.unpackbits(packed, axis=1)


def content_hash(folder: Path, splits: Sequence[str]) -> str:
    """Compute the SHA-256 over what a prepared folder says: photos, people, landmarks, masks and pairs.

    It covers the values and not the files' bytes, so it depends on no library's release and on no path.
    Embeddings are left out: pairs do not depend on them, and their last digits differ between processors.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken or the files name different photos.
    """
    digest = hashlib.sha256()
    images = read_table(folder / IMAGES, ["file", "identity", "width", "height", "sha256"])
    for row in zip(*images.values(), strict=True):
        _add(digest.update, *row)
    files, landmarks = read_landmarks(folder / LANDMARKS)
    masks = read_array(folder / MASKS)
    if files != images["file"] or len(masks) != len(files):
        raise ValueError(f"{folder}: {IMAGES}, {LANDMARKS} and {MASKS} do not hold the same photos")
    digest.update(np.rint(landmarks * 100).astype("<i8").tobytes())
    for mask in masks:
        digest.update(np.ascontiguousarray(mask).tobytes())
    for split in sorted(splits):
        _add(digest.update, split)
        pairs = read_table(folder / pairs_file(split), ["gt", "reference", "rank"])
        for row in zip(*pairs.values(), strict=True):
            _add(digest.update, *row)
    return digest.hexdigest()


def read_array(path: Path) -> NDArray[Any]:
    """Map an array file into memory.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rpf prepare` writes it")
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a whole array file: {error}") from error


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `prepare.json`.

    Raises:
        FileNotFoundError: If the folder is no prepared one.
        ValueError: If it is of another format, or lacks a part.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `rpf prepare ... --out {folder}` writes it")
    summary = read_json(path)
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        got = repr(summary.get("format")) if isinstance(summary, dict) else type(summary).__name__
        raise ValueError(f"{path}: expected format {FORMAT}, got {got}")
    for name, kind in PARTS.items():
        if not isinstance(summary.get(name), kind):
            raise ValueError(f"{path}: expected {name} ({kind.__name__}) in it; prepare the photos anew")
    return summary


def check_duplicates(folder: Path) -> None:
    """Compare the list of near-duplicates with its hash in `prepare.json`; older folders have none.

    It is not part of the content's hash, so that folders that were prepared before keep theirs.

    Raises:
        DamagedError: If it is not the list that was written.
    """
    recorded = read_summary(folder).get(DUPLICATES_HASH)
    if recorded is not None and recorded != file_hash(folder / DUPLICATES):
        raise DamagedError(
            f"{folder / DUPLICATES}: is not the list that was prepared. Put that one back, or prepare the photos anew"
        )


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def photo_hash(path: Path, aligned: bool) -> str:
    """Compute what `images.parquet` holds: a hash of the file, or of the pixels of a face that was aligned here."""
    if not aligned:
        return file_hash(path)
    try:
        return hashlib.sha256(read_photo(path).tobytes()).hexdigest()
    except ValueError as error:
        return str(error)


def verify(folder: str | Path, images: str | Path | None = None) -> list[str]:
    """Check a prepared folder and its photos against the recorded hashes.

    Args:
        folder: The prepared folder.
        images: Where the photos lie; None as recorded.

    Returns:
        What is wrong, a line each; empty if all is as it was written.

    Raises:
        FileNotFoundError: If the folder is no prepared one.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    problems = []
    try:
        found = content_hash(folder, summary["splits"])
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    if found != summary["sha256"]:
        problems.append(f"{folder}: the tables' SHA-256 is {found}, {SUMMARY} says {summary['sha256']}")
    try:
        check_duplicates(folder)
    except (OSError, DamagedError) as error:
        problems.append(str(error))
    root = image_folder(folder, summary, images)
    table = read_table(folder / IMAGES, ["file", "sha256"])
    for file, recorded in zip(table["file"], table["sha256"], strict=True):
        path = find_file(root, file)
        if path is None:
            problems.append(f"{root / file}: is missing")
        elif photo_hash(path, summary["images"] == ALIGNED) != recorded:
            problems.append(f"{path}: is not the photo that was prepared")
    return problems


def image_folder(folder: Path, summary: dict[str, Any], images: str | Path | None = None) -> Path:
    """Return where the photos lie: as given, inside the prepared folder, or as recorded."""
    return Path(images) if images is not None else folder / summary["images"]


def find_file(root: Path, file: str) -> Path | None:
    """Find a photo whose name, or a folder's, may be spelled in another Unicode form on this file system.

    Raises:
        ValueError: If the name leads out of the folder.
    """
    if leads_out(file):
        raise ValueError(f"{IMAGES} names {file!r}: expected a relative name without '..'")
    path = root / file
    if path.is_file():
        return path
    places = [root]
    for part in Path(file).parts:
        forms = {part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)}
        places = [place / form for place in places for form in forms if (place / form).exists()]
    return places[0] if places else None


def _add(update: Callable[[bytes], None], *fields: object) -> None:
    """Feed fields into a hash so that no two rows run together."""
    update(("\0".join(str(field) for field in fields) + "\n").encode())
