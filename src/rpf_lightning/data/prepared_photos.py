"""Photos and pairs of a folder that `rpf prepare` has written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.data.batches import Photo
from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.pairing import Pair, split_by_identity
from rpf_lightning.data.preparation import prepared_folder as tables
from rpf_lightning.errors import DamagedError
from rpf_lightning.files import read_csv

PARTS = ("train", "val", "test")


class PreparedPhotos:
    """The photos of a prepared folder; the tables are read at once, photos when they are asked for.

    Both are compared with the hashes of `rpf prepare`: the tables and masks at once (1 GB for 30,000 photos: 0.6 s and
    the time of the disk), each photo whenever it is read (0.6 s a GB, a fraction of what decoding takes).

    Attributes:
        root: The folder.
        sha256: Its content hash.
        ids: File names of the photos.
        identities: Names of the people, empty if unknown.
        landmarks: (68, 2) float64 per photo as fractions of its side.

    Args:
        root: The prepared folder.
        images: Where the photos lie; None as recorded.

    Raises:
        FileNotFoundError: If the folder is no prepared one, or a table or the photos' folder is missing.
        ValueError: If a table is broken.
        DamagedError: If the tables or the masks are not those that `prepare.json` has the hash of.
    """

    def __init__(self, root: str | Path, images: str | Path | None = None) -> None:
        self.root = Path(root)
        summary = tables.read_summary(self.root)
        self.sha256: str = summary["sha256"]
        self.splits: list[str] = summary["splits"]
        self.images = tables.image_folder(self.root, summary, images)
        if not self.images.is_dir():
            raise FileNotFoundError(
                f"{self.images}: the photos of {self.root} were there; say where they lie now (images=...)"
            )
        table = tables.read_table(self.root / tables.IMAGES, ["file", "identity", "width", "sha256"])
        self.ids: list[str] = table["file"]
        self.identities: list[str] = table["identity"]
        self._hashes: list[str] = table["sha256"]
        self.aligned = summary["images"] == tables.ALIGNED
        files, points = tables.read_landmarks(self.root / tables.LANDMARKS)
        self._masks: NDArray[np.uint8] | None = None
        if files != self.ids or len(self._mask_array()) != len(files):
            raise ValueError(f"{self.root}: the tables do not hold the same photos; prepare it anew")
        fractions = points / np.array(table["width"], dtype=np.float64)[:, None, None]
        if tables.content_hash(self.root, self.splits) != self.sha256:
            raise DamagedError(
                f"{self.root}: names, people, landmarks, masks or pairs are not those that were prepared: their "
                f"SHA-256 is another than in {tables.SUMMARY}. Put them back, or prepare the photos anew"
            )
        self.landmarks: list[NDArray[np.float64] | None] = list(fractions)
        self.places = {file: place for place, file in enumerate(files)}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped masks to each process: pickled, they would be read whole."""
        return {**self.__dict__, "_masks": None}

    def _mask_array(self) -> NDArray[np.uint8]:
        if self._masks is None:
            self._masks = tables.read_array(self.root / tables.MASKS)
        return self._masks

    def photo(self, index: int) -> Photo:
        """Read a photo with its annotations.

        Args:
            index: Position in `ids`.

        Returns:
            The photo at its file's size, its mask brought to that size with nearest.

        Raises:
            FileNotFoundError: If the photo is missing.
            DamagedError: If it is another photo than was prepared.
            ValueError: If it cannot be read.
        """
        name = self.ids[index]
        path = tables.find_file(self.images, name)
        if path is None:
            raise FileNotFoundError(f"{self.images / name}: no such file; {self.root} was prepared with it")
        content = path.read_bytes()
        if not self.aligned:
            self._compare(content, index, path)
        image = read_photo(path, content)
        if self.aligned:
            self._compare(image.tobytes(), index, path)
        height, width = image.shape[:2]
        points = self.landmarks[index]
        assert points is not None
        mask = tables.unpack_mask(self._mask_array()[index])
        if len(mask) != height:
            mask = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        return Photo(name, self.identities[index], image, points * width, mask)

    def _compare(self, content: bytes, index: int, path: Path) -> None:
        if hashlib.sha256(content).hexdigest() != self._hashes[index]:
            raise DamagedError(
                f"{path}: is not the photo that was prepared. Put that one back, or prepare the photos anew"
            )

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Pairs of photos that are the same photo twice, as `rpf prepare` found them.

        Raises:
            FileNotFoundError: If `duplicates.csv` is missing.
            ValueError: If it is broken.
            DamagedError: If it is not the one that was written; see `check_duplicates`.
        """
        path = self.root / tables.DUPLICATES
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; `rpf prepare` writes it")
        tables.check_duplicates(self.root)
        try:
            return [
                (self.places[row["file"] or ""], self.places[row["other"] or ""])
                for _, row in read_csv(path)[1]
            ]
        except KeyError as error:
            raise ValueError(
                f"{path}: expected file and other, of {tables.IMAGES}; there is no {error}"
            ) from error

    def pairs(self, split: str) -> list[Pair]:
        """Read the pairs of a split, nearest references only.

        Args:
            split: Such as "all", "train" or "paper_test".

        Raises:
            FileNotFoundError: If there is no such split.
            ValueError: If a pair names a photo that is not in the folder.
        """
        path = self.root / tables.pairs_file(split)
        if split not in self.splits:
            raise FileNotFoundError(f"{path}: no such split; {self.root} has {', '.join(self.splits)}")
        table = tables.read_table(path, ["gt", "reference", "rank", "distance"])
        try:
            return [
                Pair(self.places[gt], self.places[reference], distance)
                for gt, reference, rank, distance in zip(*table.values(), strict=True)
                if rank == 0
            ]
        except KeyError as error:
            raise ValueError(f"{path}: names {error}, which is not in {tables.IMAGES}") from error


class Parts:
    """Which pairs and photos are for training, validation and testing.

    Parts that were written are used as they are. Where there is no validation part, people are held out of
    the training part; where there is no test part, validation stands in for it.

    Attributes:
        pairs: Part -> pairs.
        photos: Part -> photos, for training without references (stage 1). Training has all photos, also those
            of unknown people, but those that the other parts show and those of people in no other part.

    Args:
        prepared: The prepared photos.
        split: "" for `pairs_train`, `pairs_val` or `pairs_all`; else the beginning of the names: "paper",
            "disjoint".
        val_fraction: Share of the people held out where no validation part was written; of the photos, where
            no pair names a person to hold out.
        seed: Seed of that draw.

    Raises:
        FileNotFoundError: If there is no such split.
    """

    def __init__(self, prepared: PreparedPhotos, split: str, val_fraction: float, seed: int) -> None:
        beginning = f"{split}_" if split else ""
        found = {part: f"{beginning}{part}" for part in PARTS if f"{beginning}{part}" in prepared.splits}
        if not found and not split and "all" in prepared.splits:
            found = {"train": "all"}
        if "train" not in found:
            raise FileNotFoundError(
                f"{prepared.root / tables.pairs_file(beginning + 'train')}: no such split; "
                f"{prepared.root} has {', '.join(prepared.splits)}"
            )
        self.pairs = {part: prepared.pairs(name) for part, name in found.items()}
        if "val" not in found:
            people = {prepared.identities[pair.gt] for pair in self.pairs["train"]}
            names = [name if name in people else "" for name in prepared.identities]
            held_out = set(split_by_identity(names, val_fraction, seed)[1]) if people else set()
            train = self.pairs["train"]
            self.pairs["val"] = [pair for pair in train if pair.gt in held_out]
            self.pairs["train"] = [pair for pair in train if pair.gt not in held_out]
        self.photos = self._photos(prepared, val_fraction, seed)
        self.pairs.setdefault("test", self.pairs["val"])

    def _photos(self, prepared: PreparedPhotos, val_fraction: float, seed: int) -> dict[str, list[int]]:
        names = prepared.identities
        val, test = ({pair.gt for pair in self.pairs.get(part, [])} for part in ("val", "test"))
        people = {names[gt] for gt in val | test} - {names[pair.gt] for pair in self.pairs["train"]}
        if not val | test and val_fraction > 0:
            photos = [f"{place:08d}" for place in range(len(prepared))]  # as if each showed another person
            val = set(split_by_identity(photos, val_fraction, seed)[1])
        out = val | test
        train = [place for place, name in enumerate(names) if place not in out and name not in people]
        return {"train": train, "val": sorted(val), "test": sorted(test or val)}
