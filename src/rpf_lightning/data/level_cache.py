"""What training reads: every level of every photo and pair, made once, as memory-mapped 8-bit arrays.

No photo is decoded in a training step. The rounding to 8 bit (the flow: to half precision) is 58.9 dB below
full scale; evaluation does not read from here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rpf_lightning.data.dataset import LevelDataset, fingerprint
from rpf_lightning.data.locking import locked
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation.tables import new_array
from rpf_lightning.data.prepared import PreparedPhotos
from rpf_lightning.data.records import FaceBatch, ReferenceBatch
from rpf_lightning.data.sample import (
    check_sizes,
    full_reference,
    gt_at,
    image_tensor,
    landmark_fractions,
    lr_of,
    mask_at,
    pyramid,
    warp_to,
)
from rpf_lightning.model.resize import resize_mask
from rpf_lightning.model.storage import write_atomically

FORMAT = 1
SAVE_EVERY = 64  # photos between two notes of how far it is
PROGRESS = "progress.json"


class LevelCache:
    """The levels of some photos and pairs of a prepared folder, on disk.

    Args:
        photos: The prepared photos.
        indices: Photos to hold.
        pairs: Pairs of these photos; without any, no references are held.
        lr_size: Side L of the LR in pixels.
        size: Full output side.
        sides: Sides S of the levels to hold.
        mask_reference: See `make_sample`.
        folder: Where caches lie; None: `cache/` in the prepared folder.

    Raises:
        ValueError: If a side is wrong or a pair's photo is not among `indices`.
    """

    def __init__(
        self,
        photos: PreparedPhotos,
        indices: Sequence[int],
        pairs: Sequence[Pair],
        *,
        lr_size: int,
        size: int,
        sides: Sequence[int],
        mask_reference: bool = True,
        folder: str | Path | None = None,
    ) -> None:
        for side in sides:
            check_sizes(lr_size, size, side)
        self.photos, self.indices, self.pairs = photos, list(indices), list(pairs)
        self.lr_size, self.size, self.sides = lr_size, size, sorted(sides)
        self.mask_reference = mask_reference
        self.row_of = {index: row for row, index in enumerate(self.indices)}
        if any(index not in self.row_of for pair in pairs for index in pair[:2]):
            raise ValueError("pairs: expected pairs of the photos in indices")
        self.folder = Path(folder) if folder is not None else photos.root / "cache"
        self._arrays: dict[str, NDArray[Any]] = {}

    @property
    def path(self) -> Path:
        """Folder of this cache: its name depends on everything that its contents depend on."""
        content = [
            FORMAT, self.photos.sha256, self.lr_size, self.size, self.sides, self.mask_reference,
            self.indices, [pair[:2] for pair in self.pairs],
        ]  # fmt: skip
        return self.folder / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name of an array -> shape and type; masks are bits."""
        n, m = len(self.indices), len(self.pairs)
        found: dict[str, tuple[tuple[int, ...], str]] = {"lr": ((n, 3, self.lr_size, self.lr_size), "u1")}
        for side in self.sides:
            image, bits = (3, side, side), (1, side, math.ceil(side / 8))
            found[f"gt_{side}"] = ((n, *image), "u1")
            found[f"mask_{side}"] = ((n, *bits), "u1")
            if m:
                found[f"reference_{side}"] = ((n, *image), "u1")
                found[f"reference_mask_{side}"] = ((n, *bits), "u1")
                found[f"warped_{side}"] = ((m, *image), "u1")
                found[f"flow_{side}"] = ((m, 2, side, side), "f2")
        return found

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
            f"cache of {len(self.indices):,} photos and {len(self.pairs):,} pairs at sides "
            f"{', '.join(map(str, self.sides))}: {self.gigabytes:.2f} GB in {self.path}"
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
                        shutil.rmtree(part)
                    raise OSError(
                        error.errno,
                        f"the disk is full: the cache takes {self.gigabytes:.2f} GB in {self.folder}. Make room, or "
                        "give cache_dir on another disk or a smaller cache_side; what was finished is kept",
                    ) from error

    def _build(self, part: Path, num_workers: int) -> None:
        start, arrays = self._open_part(part)
        levels = _PhotoLevels(self, start)
        loader = DataLoader(levels, batch_size=None, num_workers=num_workers, collate_fn=_nothing)
        steps = track(loader, "caching levels", total=len(self.indices), completed=start)
        for row, content in enumerate(steps, start=start):
            for name, places in content.items():
                for place, value in places:
                    arrays[name][place] = value
            if (row + 1) % SAVE_EVERY == 0:
                _save(part, arrays, row + 1)
        _save(part, arrays, len(self.indices))
        arrays.clear()
        part.rename(self.path)

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
        """
        if name not in self._arrays:
            path = self.path / f"{name}.npy"
            if not path.is_file():
                raise FileNotFoundError(f"{path}: the cache was not built, or was deleted")
            self._arrays[name] = np.load(path, mmap_mode="r")
        return self._arrays[name]

    def image(self, name: str, row: int) -> Tensor:
        """Read an image as float32 in [0, 1]."""
        return torch.from_numpy(self.array(name)[row].astype(np.float32)) / 255

    def mask(self, name: str, row: int, side: int) -> Tensor:
        """Read a mask (1, side, side) of 0 and 1."""
        return torch.from_numpy(np.unpackbits(self.array(name)[row], axis=-1, count=side).astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped arrays to each process: pickled, they would be read whole."""
        return {**self.__dict__, "_arrays": {}}


class CachedPairs(LevelDataset[ReferenceBatch]):
    """Pairs of one level from a cache.

    Args:
        cache: A built cache.
        pairs: Some of its pairs.
        side: One of its sides.
        source_side: See `make_sample`; one of its sides.
    """

    def __init__(
        self, cache: LevelCache, pairs: Sequence[Pair], side: int, source_side: int | None = None
    ) -> None:
        self.cache, self.pairs, self.side = cache, list(pairs), side
        self.source = "lr" if source_side is None else f"gt_{source_side}"
        place = {pair[:2]: row for row, pair in enumerate(cache.pairs)}
        self.rows = [place[pair[:2]] for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int) -> ReferenceBatch:
        """Return one sample without batch dimension."""
        cache, side, photos = self.cache, self.side, self.cache.photos
        pair, row = self.pairs[index], self.rows[index]
        gt, reference = cache.row_of[pair.gt], cache.row_of[pair.reference]
        return ReferenceBatch(
            lr=cache.image(self.source, gt),
            gt=cache.image(f"gt_{side}", gt),
            reference=cache.image(f"reference_{side}", reference),
            gt_mask=cache.mask(f"mask_{side}", gt, side),
            reference_mask=cache.mask(f"reference_mask_{side}", reference, side),
            warped_reference=cache.image(f"warped_{side}", row),
            flow=torch.from_numpy(cache.array(f"flow_{side}")[row].astype(np.float32)),
            gt_landmarks=_landmarks(photos, pair.gt),
            reference_landmarks=_landmarks(photos, pair.reference),
            id=photos.ids[pair.gt],
            reference_id=photos.ids[pair.reference],
        )

    def fingerprint(self) -> str:
        """Hash of everything that LR, references and masks depend on, and of their order."""
        return fingerprint(type(self).__name__, self.cache.path.name, self.rows, self.side, self.source)


class CachedFaces(LevelDataset[FaceBatch]):
    """Photos of one level from a cache, without references.

    Args:
        cache: A built cache.
        indices: Some of its photos.
        side: One of its sides.
        source_side: See `make_sample`; one of its sides.
    """

    def __init__(
        self, cache: LevelCache, indices: Sequence[int], side: int, source_side: int | None = None
    ) -> None:
        self.cache, self.indices, self.side = cache, list(indices), side
        self.source = "lr" if source_side is None else f"gt_{source_side}"

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int) -> FaceBatch:
        """Return one sample without batch dimension."""
        photo = self.indices[index]
        row = self.cache.row_of[photo]
        return FaceBatch(
            lr=self.cache.image(self.source, row),
            gt=self.cache.image(f"gt_{self.side}", row),
            gt_mask=self.cache.mask(f"mask_{self.side}", row, self.side),
            id=self.cache.photos.ids[photo],
        )


Places = list[tuple[int, NDArray[Any]]]


class _PhotoLevels(Dataset[dict[str, Places]]):
    """Everything that comes from one photo: read once, as a GT and as the reference of others."""

    def __init__(self, cache: LevelCache, start: int) -> None:
        self.cache, self.start = cache, start
        self.uses: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, pair in enumerate(cache.pairs):
            self.uses[pair.reference].append((row, pair.gt))

    def __len__(self) -> int:
        return len(self.cache.indices) - self.start

    def __getitem__(self, position: int) -> dict[str, Places]:
        cache, row = self.cache, self.start + position
        index = cache.indices[row]
        photo = cache.photos.photo(index, check=True)  # a cache of other photos would never be noticed
        y = image_tensor(photo)
        found: dict[str, Places] = {"lr": [(row, _bytes(lr_of(y, cache.size, cache.lr_size)))]}
        for side in cache.sides:
            found[f"gt_{side}"] = [(row, _bytes(gt_at(y, side)))]
            found[f"mask_{side}"] = [(row, _bits(mask_at(photo, cache.size, side)))]
        if not cache.pairs:
            return found
        masked, mask = full_reference(photo, cache.size, cache.mask_reference)
        levels = pyramid(masked, cache.sides)
        for side in cache.sides:
            found[f"reference_{side}"] = [(row, _bytes(levels[side]))]
            found[f"reference_mask_{side}"] = [(row, _bits(resize_mask(mask, side)[0]))]
            found[f"warped_{side}"], found[f"flow_{side}"] = [], []
        points = landmark_fractions(photo)
        for pair_row, gt in self.uses[index]:
            gt_points = cache.photos.landmarks[gt]
            assert gt_points is not None
            for side, (warped, flow) in warp_to(masked, gt_points, points, cache.sides).items():
                found[f"warped_{side}"].append((pair_row, _bytes(warped)))
                found[f"flow_{side}"].append((pair_row, flow.numpy().astype(np.float16)))
        return found


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().byte().numpy()


def _bits(mask: Tensor) -> NDArray[np.uint8]:
    return np.packbits(mask.numpy().astype(np.uint8), axis=-1)


def _landmarks(photos: PreparedPhotos, index: int) -> Tensor:
    points = photos.landmarks[index]
    assert points is not None
    return torch.from_numpy(points).float()


def _save(part: Path, arrays: dict[str, NDArray[Any]], photos: int) -> None:
    """Note how far the arrays are, after they are on the disk."""
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    write_atomically(part / PROGRESS, json.dumps({"photos": photos}).encode())


def _nothing(content: Any) -> Any:
    """Collate nothing: torch's default would turn the arrays into tensors."""
    return content
