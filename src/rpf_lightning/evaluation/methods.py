"""What can be compared: each method turns a batch of pairs into super-resolved faces.

A method is named in text as ``kind[:NAME[=ARGUMENT]]``::

    bicubic                    the LR enlarged
    reference                  the masked reference copied, unaligned: it ignores the LR
    model:NAME=DIR             an RPF model with the pair's own reference
    model-none:NAME=DIR        without a reference
    model-swap:NAME=DIR        with a reference of another person
    model-gt:NAME=DIR          with the ground truth as the reference, the upper end
    refinement:NAME=DIR        its refinement modules alone, chained, without any reference (GCFSR-type)
    gcfsr:NAME=FILE            the published GCFSR
    folder:NAME=DIR            result images of any other system, matched by the names of the GTs
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from rpf_lightning.baselines.gcfsr import GCFSR
from rpf_lightning.data.reading import SUFFIXES, read_photo
from rpf_lightning.model import storage
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import ReconstructionBlock, RPFModel

IMAGES = SUFFIXES | {".bmp", ".tif", ".tiff"}
KINDS = (
    "bicubic", "reference", "model", "model-none", "model-swap", "model-gt", "refinement", "gcfsr", "folder",
)  # fmt: skip
Reference = Literal["own", "none", "swap", "gt"]


class EvaluationBatch(NamedTuple):
    """Pairs at full size; a dataset yields it without the leading batch dimension.

    Attributes:
        lr: (B, 3, L, L) in [0, 1].
        gt: (B, 3, S, S) in [0, 1].
        mask: (B, 1, S, S) facial mask of the GT, 0 or 1.
        reference: (B, 3, S, S) masked reference of the same person.
        other: (B, 3, S, S) masked reference of another person; None where no method asks for it.
        id: Name of the GT photo.
        reference_id: Name of the reference.
        other_id: Name of the other person's; None without one.
    """

    lr: Tensor
    gt: Tensor
    mask: Tensor
    reference: Tensor
    other: Tensor | None
    id: str | list[str]
    reference_id: str | list[str]
    other_id: str | list[str] | None

    def to(self, device: torch.device) -> EvaluationBatch:
        """Return the batch with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        return self._replace(**moved)


def collate(samples: Sequence[EvaluationBatch]) -> EvaluationBatch:
    """Stack samples into a batch, names as lists."""
    columns: dict[str, Any] = {}
    for name in EvaluationBatch._fields:
        values = [getattr(sample, name) for sample in samples]
        columns[name] = torch.stack(values) if isinstance(values[0], Tensor) else values
        if values[0] is None:
            columns[name] = None
    return EvaluationBatch(**columns)


class Fault(NamedTuple):
    """What is wrong with one image.

    Attributes:
        kind: "missing", "corrupt" and "wrong size" leave the image without values; "grey" is measured.
        text: The image and what is wrong.
    """

    kind: str
    text: str

    @property
    def fatal(self) -> bool:
        """Whether the image has no values."""
        return self.kind != "grey"


class Method(ABC):
    """One method.

    Attributes:
        name: Under which its values stand.
        kind: One of `KINDS`.
        needs_other: Whether it reads `EvaluationBatch.other`.
    """

    kind: str
    needs_other = False

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Return (B, 3, S, S) in [0, 1]; anything for images with a fatal fault."""

    def describe(self) -> dict[str, Any]:
        """Return what identifies the method, for the protocol: JSON types."""
        return {"kind": self.kind}

    def prepare(self, ids: Sequence[str] | None, size: int) -> None:  # noqa: B027 - most have nothing to check
        """Check what can be checked before the first image; `ids` are the GTs' names where they are known."""

    def network(self) -> nn.Module | None:
        """Return what has to be brought to the device."""
        return None

    def reference(self, batch: EvaluationBatch) -> Tensor:
        """Return the reference that ISC to the reference compares with: the one the method saw, or the own."""
        return batch.reference

    def fault(self, photo: str) -> Fault | None:
        """Return what was wrong with an image that has been asked for."""
        return None

    def faults(self) -> list[Fault]:
        """Return what is wrong beside the images that are asked for."""
        return []


class Bicubic(Method):
    """The LR enlarged."""

    kind = "bicubic"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Enlarge."""
        return resize(batch.lr, batch.gt.shape[-1]).clamp(0, 1)


class CopiedReference(Method):
    """The masked reference itself, unaligned: what metrics of identity give to a method that copies."""

    kind = "reference"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Copy."""
        return batch.reference


class NetworkMethod(Method):
    """A network with weights.

    Args:
        name: See `Method`.
        model: The network; variants share it.
        source: Name of the directory or file that it came from, for the protocol.
    """

    def __init__(self, name: str, model: RPFModel | GCFSR, source: str = "") -> None:
        super().__init__(name)
        self.model, self.source = model, source

    def describe(self) -> dict[str, Any]:
        """Return source, hash and arguments of the network."""
        config = {"model_config": self.model.config} if isinstance(self.model, RPFModel) else {}
        weights = storage.weights_hash(self.model.state_dict())
        return {**super().describe(), "source": self.source, "weights_sha256": weights, **config}

    def prepare(self, ids: Sequence[str] | None, size: int) -> None:
        """Check the side.

        Raises:
            ValueError: If it is another.
        """
        if self.model.size != size:
            raise ValueError(f"{self.name}: gives faces of side {self.model.size}, but {size} was asked for")

    def network(self) -> nn.Module:
        """Return the network."""
        return self.model


class Model(NetworkMethod):
    """An RPF model.

    Args:
        name: See `Method`.
        model: The model.
        given: Which reference it gets: "own", "none", "swap" (another person's) or "gt".
        source: See `NetworkMethod`.
    """

    model: RPFModel

    def __init__(self, name: str, model: RPFModel, given: Reference = "own", source: str = "") -> None:
        super().__init__(name, model, source)
        self.given = given
        self.kind = "model" if given == "own" else f"model-{given}"
        self.needs_other = given == "swap"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Super-resolve."""
        if self.given == "none":
            return self.model(batch.lr)
        return self.model(batch.lr, self.reference(batch))

    def reference(self, batch: EvaluationBatch) -> Tensor:
        """Return the reference that the model gets."""
        if self.given == "gt":
            return batch.gt * batch.mask
        if self.given == "swap":
            assert batch.other is not None
            return batch.other
        return batch.reference


class RefinementChain(NetworkMethod):
    """The refinement modules of an RPF model alone: ``x^(n+1) = refine(x^(n), up(x^(n)))``."""

    kind = "refinement"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Refine at every level, from the block that takes the LR's side on."""
        x = batch.lr
        for block in cast("list[ReconstructionBlock]", self.model.blocks):
            if block.in_side >= batch.lr.shape[-1]:
                x = block.refine(x, block.enlarge(x)).clamp(0, 1)
        return x


class PublishedGCFSR(NetworkMethod):
    """The published GCFSR.

    Args:
        name: See `Method`.
        path: Its checkpoint.
    """

    kind = "gcfsr"
    model: GCFSR

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name, GCFSR.from_checkpoint(path), Path(path).name)

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Restore the enlarged LR."""
        return self.model.super_resolve(batch.lr)


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
        self.files: dict[str, Path] = {}
        for path in sorted(self.root.rglob("*")):
            if path.suffix.lower() in IMAGES and path.is_file() and not path.name.startswith("."):
                key = _stem(path.relative_to(self.root).as_posix())
                if key in self.files:
                    raise ValueError(f"{name}: two images of one name, {self.files[key]} and {path}")
                self.files[key] = path
        self._extra: list[Fault] = []
        self._faults: dict[str, Fault] = {}

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Read the images; black where there is none."""
        side = batch.gt.shape[-1]
        images = [self._read(photo, side) for photo in batch.id]
        pixels = torch.from_numpy(np.stack(images)).to(batch.gt.device)
        return pixels.permute(0, 3, 1, 2).float() / 255

    def _read(self, photo: str, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        nothing = np.zeros((side, side, 3), np.uint8)
        self._faults.pop(photo, None)
        path = self.files.get(_stem(photo))
        if path is None:
            self._faults[photo] = Fault("missing", photo)
            return nothing
        name = path.relative_to(self.root).as_posix()
        try:
            image = read_photo(path)
        except (OSError, ValueError) as error:
            self._faults[photo] = Fault("corrupt", str(error).replace(str(path), name))
            return nothing
        height, width = image.shape[:2]
        if (height, width) != (side, side):
            self._faults[photo] = Fault(
                "wrong size", f"{name}: {width} x {height} instead of {side} x {side}"
            )
            return nothing
        if (image == image[..., :1]).all():
            self._faults[photo] = Fault("grey", name)
        return image

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

    def prepare(self, ids: Sequence[str] | None, size: int) -> None:
        """Find the images that belong to no GT.

        Raises:
            ValueError: If no image belongs to any.
        """
        if ids is None:
            return
        wanted = {_stem(photo) for photo in ids}
        if not wanted & self.files.keys():
            found = ", ".join(path.name for path in list(self.files.values())[:3]) or "no image"
            raise ValueError(
                f"{self.name}: {self.root} holds none of the {len(ids)} images, such as {ids[0]}; it holds {found}"
            )
        extra = [path for key, path in self.files.items() if key not in wanted]
        self._extra = [Fault("extra", path.relative_to(self.root).as_posix()) for path in extra]

    def fault(self, photo: str) -> Fault | None:
        """Return what was wrong with the image of a GT."""
        return self._faults.get(photo)

    def faults(self) -> list[Fault]:
        """Return the images that belong to no GT."""
        return self._extra


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return (path.with_suffix("") if path.suffix.lower() in IMAGES else path).as_posix()
