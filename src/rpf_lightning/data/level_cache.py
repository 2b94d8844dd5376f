"""What training reads: every level of every photo, made once, as memory-mapped 8-bit arrays.

No photo is decoded in a training step; flows come from landmarks in the step, so that any photo may be the reference
of any other. The rounding to 8 bit is 58.9 dB below full scale; evaluation does not read from here.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from rpf_lightning.data.batches import FaceBatch
from rpf_lightning.data.dataset import ReferenceDataset, fingerprint
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation.prepared_folder import new_array
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import (
    ReferenceLevel,
    check_sizes,
    gt_at,
    image_tensor,
    lr_of,
    mask_at,
    reference_levels,
)
from rpf_lightning.errors import DamagedError
from rpf_lightning.files import locked, write_atomically

FORMAT = 3
SAVE_EVERY = 64  # photos between two notes of how far it is
PROGRESS = "progress.json"
CHECKSUMS = "checksums"


class LevelCache:
    """The levels of some photos of a prepared folder, on disk: each as a GT and as a reference.

    Every row of every array has a checksum, which is compared in every read (0.3 s a GB).

    Args:
        photos: The prepared photos.
        indices: Photos to hold.
        references: Whether to hold them as references, too.
        lr_size: Side L of the LR in pixels.
        size: Full output side.
        sides: Sides S of the levels to hold.
        mask_reference: See `PairsDataset`.
        folder: Where caches lie; None: `cache/` in the prepared folder.

    Raises:
        ValueError: If a side is wrong.
    """

    def __init__(
        self,
        photos: PreparedPhotos,
        indices: Sequence[int],
        *,
        references: bool = True,
        lr_size: int,
        size: int,
        sides: Sequence[int],
        mask_reference: bool = True,
        folder: str | Path | None = None,
    ) -> None:
        for side in sides:
            check_sizes(lr_size, size, side)
        self.photos, self.indices, self.references = photos, list(indices), references
        self.lr_size, self.size, self.sides = lr_size, size, sorted(sides)
        self.mask_reference = mask_reference
        self.row_of = {index: row for row, index in enumerate(self.indices)}
        self.folder = Path(folder) if folder is not None else photos.root / "cache"
        self._arrays: dict[str, NDArray[Any]] = {}

    @property
    def path(self) -> Path:
        """Folder of this cache: its name depends on everything that its contents depend on."""
        name = fingerprint(
            FORMAT, self.photos.sha256, self.lr_size, self.size, self.sides, self.mask_reference,
            self.indices, self.references,
        )  # fmt: skip
        return self.folder / name[:16]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name of an array -> shape and type; masks are bits; the checksums have a column for each of the others."""
        n = len(self.indices)
        found: dict[str, tuple[tuple[int, ...], str]] = {"lr": ((n, 3, self.lr_size, self.lr_size), "u1")}
        for side in self.sides:
            image, bits = (3, side, side), (1, side, math.ceil(side / 8))
            found[f"gt_{side}"] = ((n, *image), "u1")
            found[f"mask_{side}"] = ((n, *bits), "u1")
            if self.references:
                found[f"reference_{side}"] = ((n, *image), "u1")
                found[f"reference_mask_{side}"] = ((n, *bits), "u1")
                found[f"ok_{side}"] = ((n, *bits), "u1")
        return {**found, CHECKSUMS: ((n, len(found)), "<u4")}

    @property
    def gigabytes(self) -> float:
        """Space that it takes, in GB of 10^9 bytes."""
        return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in self.shapes().values()) / 1e9

    def build(self, num_workers: int = 0, say: Callable[[str], None] = print) -> None:
        """Make what is missing; says how much space it takes before it writes anything.

        A later call continues where an earlier one was stopped.

        Args:
            num_workers: Processes that read photos.
            say: Takes the line.

        Raises:
            OSError: If the disk is too full.
            FileNotFoundError: If a photo is missing.
        """
        if self.path.is_dir():
            return
        say(
            f"cache of {len(self.indices):,} photos at sides {', '.join(map(str, self.sides))}: "
            f"{self.gigabytes:.2f} GB in {self.path}"
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock")):
            if not self.path.is_dir():  # another process may have made it meanwhile
                part = self.path.with_suffix(".part")
                try:
                    self._build(part, num_workers)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    if not (part / PROGRESS).is_file():
                        shutil.rmtree(part, ignore_errors=True)  # not even the folder may be there
                    raise OSError(
                        error.errno,
                        f"the disk is full: the cache takes {self.gigabytes:.2f} GB in {self.folder}. Make room, or "
                        "give cache_dir on another disk or a smaller cache_side; what was finished is kept",
                    ) from error

    def _build(self, part: Path, num_workers: int) -> None:
        start, arrays = self._open_part(part)
        rest: Any = range(start, len(self.indices))
        loader = DataLoader(rest, batch_size=None, num_workers=num_workers, collate_fn=self._of_photo)
        steps = track(loader, "caching levels", total=len(self.indices), completed=start)
        for row, content in enumerate(steps, start=start):
            for name, value in content.items():
                arrays[name][row] = value
                arrays[CHECKSUMS][row, self._column(name)] = zlib.crc32(value.tobytes())
            if (row + 1) % SAVE_EVERY == 0:
                _save(part, arrays, row + 1)
        _save(part, arrays, len(self.indices))
        arrays.clear()
        part.rename(self.path)

    def _of_photo(self, row: Any) -> dict[str, NDArray[np.uint8]]:
        """Make everything that comes from one photo, which is read once."""
        photo = self.photos.photo(self.indices[row])
        y = image_tensor(photo)
        found = {"lr": _bytes(lr_of(y, self.size, self.lr_size))}
        for side in self.sides:
            found[f"gt_{side}"] = _bytes(gt_at(y, side))
            found[f"mask_{side}"] = _bits(mask_at(photo, self.size, side))
        if self.references:
            levels = reference_levels(photo, self.size, self.sides, self.mask_reference)
            for side, level in levels.items():
                found[f"reference_{side}"] = _bytes(level.image)
                found[f"reference_mask_{side}"] = _bits(level.mask)
                found[f"ok_{side}"] = _bits(level.ok)
        return found

    def _open_part(self, part: Path) -> tuple[int, dict[str, NDArray[Any]]]:
        """Open a cache that was begun, or begin one; return the number of photos done."""
        if (part / PROGRESS).is_file():
            done = int(json.loads((part / PROGRESS).read_text())["photos"])
            return done, {name: np.load(part / f"{name}.npy", mmap_mode="r+") for name in self.shapes()}
        part.mkdir(exist_ok=True)
        arrays = {
            name: new_array(part / f"{name}.npy", shape, kind)
            for name, (shape, kind) in self.shapes().items()
        }
        _save(part, arrays, 0)
        return 0, arrays

    def array(self, name: str) -> NDArray[Any]:
        """Map one of the arrays into memory.

        Raises:
            FileNotFoundError: If the cache was not built.
            DamagedError: If the file is no array of the shape and type that was written.
        """
        if name not in self._arrays:
            path = self.path / f"{name}.npy"
            if not path.is_file():
                raise FileNotFoundError(f"{path}: the cache was not built, or was deleted")
            try:
                array = np.load(path, mmap_mode="r")
                found = array.shape, array.dtype
            except (ValueError, OSError, EOFError) as error:
                raise self._damaged(name, str(error)) from error
            shape, kind = self.shapes()[name]
            if found != (shape, np.dtype(kind)):
                raise self._damaged(
                    name, f"expected {shape} of {np.dtype(kind)}, got {found[0]} of {found[1]}"
                )
            self._arrays[name] = array
        return self._arrays[name]

    def row(self, name: str, row: int) -> NDArray[Any]:
        """Read a row of one of the arrays.

        Raises:
            DamagedError: If it is not as it was written.
        """
        values: NDArray[Any] = self.array(name)[row]
        if zlib.crc32(values.tobytes()) != self.array(CHECKSUMS)[row, self._column(name)]:
            raise self._damaged(name, f"the checksum of {self.photos.ids[self.indices[row]]} does not fit")
        return values

    def image(self, name: str, row: int) -> Tensor:
        """Read an image as float32 in [0, 1]."""
        return torch.from_numpy(self.row(name, row).astype(np.float32)) / 255

    def mask(self, name: str, row: int, side: int) -> Tensor:
        """Read a mask (1, side, side) of 0 and 1."""
        return torch.from_numpy(np.unpackbits(self.row(name, row), axis=-1, count=side).astype(np.float32))

    def _column(self, name: str) -> int:
        return list(self.shapes()).index(name)

    def _damaged(self, name: str, why: str) -> DamagedError:
        return DamagedError(f"{self.path / name}.npy: damaged, {why}. Delete {self.path}: it is made anew")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped arrays to each process: pickled, they would be read whole."""
        return {**self.__dict__, "_arrays": {}}


class CachedPairs(ReferenceDataset):
    """Pairs of one level from a cache.

    Args:
        cache: A built cache.
        pairs: Pairs of its photos.
        side: One of its sides.
        source_side: See `PairsDataset`; one of its sides.
        kwargs: `warped`, `flow_rest` and `references` of `ReferenceDataset`; r_warp is warped at the cache's largest
            side.
    """

    def __init__(
        self,
        cache: LevelCache,
        pairs: Sequence[Pair],
        side: int,
        source_side: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cache.photos, pairs, side, cache.sides, **kwargs)
        self.cache = cache
        self.source = "lr" if source_side is None else f"gt_{source_side}"  # what stands for the LR

    def face(self, photo: int) -> FaceBatch:
        """Read a GT."""
        cache, side, row = self.cache, self.side, self.cache.row_of[photo]
        return FaceBatch(
            lr=cache.image(self.source, row),
            gt=cache.image(f"gt_{side}", row),
            gt_mask=cache.mask(f"mask_{side}", row, side),
            id=self.photos.ids[photo],
        )

    def levels(self, photo: int, sides: set[int]) -> dict[int, ReferenceLevel]:
        """Read a reference."""
        cache, row = self.cache, self.cache.row_of[photo]
        return {
            side: ReferenceLevel(
                cache.image(f"reference_{side}", row),
                cache.mask(f"reference_mask_{side}", row, side),
                cache.mask(f"ok_{side}", row, side),
            )
            for side in sides
        }

    def fingerprint(self) -> str | None:
        """Hash of everything that LR, references, masks and flow depend on, and of their order; None: random."""
        if self.random:
            return None
        pairs = [pair[:2] for pair in self.pairs]
        return fingerprint(
            type(self).__name__, self.cache.path.name, pairs, self.side, self.source, self.flow_rest
        )


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().byte().numpy()


def _bits(mask: Tensor) -> NDArray[np.uint8]:
    return np.packbits(mask.numpy().astype(np.uint8), axis=-1)


def _save(part: Path, arrays: dict[str, NDArray[Any]], photos: int) -> None:
    """Note how far the arrays are, after they are on the disk."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    write_atomically(part / PROGRESS, json.dumps({"photos": photos}).encode())
