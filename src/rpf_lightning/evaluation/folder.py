"""Result images of other systems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning.data.image_files import read_photo
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch, Fault
from rpf_lightning.evaluation.methods import Method
from rpf_lightning.pictures import results_in, stem


class Folder(Method):
    """Result images of another system; an image belongs to the GT of the same name, whatever their suffixes.

    Images that are missing, cannot be decoded, or have another side get no values and are named. Grey ones are
    measured and named; so are images that belong to no GT.

    Args:
        name: See `Method`.
        root: The folder, with the subfolders that the GTs' names have.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If two images have one name.
    """

    kind = "folder"

    def __init__(self, name: str, root: str | Path) -> None:
        super().__init__(name)
        self.root = Path(root)
        if not self.root.is_dir():
            raise NotADirectoryError(f"{name}: {self.root}: no such folder")
        try:
            self.files = results_in(self.root)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._extra: list[Fault] = []
        self._faults: dict[str, Fault | None] = {}

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Read the images; black where there is none."""
        images = []
        for photo in batch.id:
            image, self._faults[photo] = self._read(photo, batch.gt.shape[-1])
            images.append(image)
        pixels = torch.from_numpy(np.stack(images)).to(batch.gt.device)
        return pixels.permute(0, 3, 1, 2).float() / 255

    def _read(self, photo: str, side: int) -> tuple[NDArray[np.uint8], Fault | None]:
        nothing = np.zeros((side, side, 3), np.uint8)
        path = self.files.get(stem(photo))
        if path is None:
            return nothing, Fault("missing", photo)
        name = path.relative_to(self.root).as_posix()
        try:
            image = read_photo(path)
        except (OSError, ValueError) as error:
            return nothing, Fault("corrupt", str(error).replace(str(path), name))
        height, width = image.shape[:2]
        if (height, width) != (side, side):
            return nothing, Fault("wrong size", f"{name}: {width} x {height} instead of {side} x {side}")
        return image, Fault("grey", name) if (image == image[..., :1]).all() else None

    def describe(self) -> dict[str, Any]:
        """Return the folder's name and a hash over its images."""
        digest = hashlib.sha256()
        for key, path in self.files.items():
            digest.update(json.dumps([key, path.name]).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {
            **super().describe(),
            "folder": self.root.name,
            "images": len(self.files),
            "images_sha256": digest.hexdigest(),
        }

    def prepare(self, ids: Sequence[str] | None, lr_size: int, size: int) -> None:
        """Find the images that belong to no GT.

        Raises:
            ValueError: If no image belongs to any, or one belongs to two.
        """
        if ids is None:
            return
        owners: dict[str, str] = {}
        for photo in ids:
            if owners.setdefault(stem(photo), photo) != photo:
                one, two = owners[stem(photo)], photo
                raise ValueError(f"{self.name}: one image would stand for two photos, {one} and {two}")
        if not owners.keys() & self.files.keys():
            found = ", ".join(path.name for path in list(self.files.values())[:3]) or "no image"
            raise ValueError(
                f"{self.name}: {self.root} holds none of the {len(ids)} images, such as {ids[0]}; it holds {found}"
            )
        extra = [path for key, path in self.files.items() if key not in owners]
        self._extra = [Fault("extra", path.relative_to(self.root).as_posix()) for path in extra]

    def fault(self, photo: str) -> Fault | None:
        """Return what was wrong with the image of a GT."""
        return self._faults.get(photo)

    def faults(self) -> list[Fault]:
        """Return the images that belong to no GT."""
        return self._extra
