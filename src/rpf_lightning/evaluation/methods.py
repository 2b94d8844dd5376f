"""What can be compared: each method turns a batch of pairs into super-resolved faces.

A method is named in text as ``kind[:NAME[=ARGUMENT]]``::

    bicubic                    the LR enlarged
    reference                  the masked reference copied, unaligned: it ignores the LR
    reference-unmasked         the same without the mask: the whole photo
    model:NAME=DIR             an RPF model with the pair's own reference
    model-none:NAME=DIR        without a reference
    model-swap:NAME=DIR        with a reference of another person
    model-unmasked:NAME=DIR    with the pair's own reference, its non-facial region not removed
    model-gt:NAME=DIR          with the ground truth as the reference, the upper end
    synthesized:NAME=DIR       what its last block makes of the own reference before it refines
    refinement:NAME=DIR        its refinement modules alone, chained, without any reference (GCFSR-type)
    gcfsr:NAME=FILE            the published GCFSR; FILE,blend=after_activation,normalize=false reads it otherwise
    folder:NAME=DIR            result images of any other system, matched by the names of the GTs
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from rpf_lightning.baselines.gcfsr import GCFSR, Blend
from rpf_lightning.evaluation.records import EvaluationBatch, Fault
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import ReconstructionBlock, RPFModel

KINDS = (
    "bicubic", "reference", "reference-unmasked", "model", "model-none", "model-swap", "model-unmasked", "model-gt",
    "synthesized", "refinement", "gcfsr", "folder",
)  # fmt: skip
Reference = Literal["own", "none", "swap", "unmasked", "gt"]


class Method(ABC):
    """One method.

    Attributes:
        name: Under which its values stand.
        kind: One of `KINDS`.
        needs_other: Whether it reads `EvaluationBatch.other`.
        needs_photo: Whether it makes sense only where the reference is a photo.
        needs_unmasked: Whether it reads `EvaluationBatch.unmasked`.
    """

    kind: str
    needs_other = False
    needs_photo = False
    needs_unmasked = False

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Return (B, 3, S, S) in [0, 1]; anything for images with a fatal fault."""

    def describe(self) -> dict[str, Any]:
        """Return what identifies the method, for the protocol: JSON types."""
        return {"kind": self.kind}

    def prepare(self, ids: Sequence[str] | None, lr_size: int, size: int) -> None:  # noqa: B027 - may be nothing
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
    """The reference itself, unaligned: what metrics of identity give to a method that copies.

    Args:
        name: See `Method`.
        masked: As the models get it, or the whole photo.
    """

    needs_photo = True

    def __init__(self, name: str, masked: bool = True) -> None:
        super().__init__(name)
        self.kind = "reference" if masked else "reference-unmasked"
        self.needs_unmasked = not masked

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Copy."""
        return self.reference(batch)

    def reference(self, batch: EvaluationBatch) -> Tensor:
        """Return what is copied."""
        if self.needs_unmasked:
            assert batch.unmasked is not None
            return batch.unmasked
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
        """Return source and arguments of the network; `protocol` adds the hash of its weights."""
        config = {"model_config": asdict(self.model.config)} if isinstance(self.model, RPFModel) else {}
        return {**super().describe(), "source": self.source, **config}

    def prepare(self, ids: Sequence[str] | None, lr_size: int, size: int) -> None:
        """Check the sides; an RPF model stops at that of any of its blocks.

        Raises:
            ValueError: If the network gives other ones, or does not take the LR's.
        """
        made = self.model.sides if isinstance(self.model, RPFModel) else (self.model.size,)
        if size not in made:
            sides = ", ".join(map(str, made))
            raise ValueError(f"{self.name}: gives faces of side {sides}, but {size} was asked for")
        if isinstance(self.model, RPFModel):
            taken = [side for side in (self.model.lr_size, *made) if side < size]
            if lr_size not in taken:
                sides = ", ".join(map(str, taken))
                raise ValueError(f"{self.name}: takes an LR of side {sides}, but lr_size is {lr_size}")

    def network(self) -> nn.Module:
        """Return the network."""
        return self.model


def up_to(model: RPFModel, reference: Tensor | None, size: int) -> dict[str, Any]:
    """Arguments of `RPFModel.forward` beside the LR: with a reference of side `size`, to stop there."""
    if size == model.size:
        return {"reference": reference}
    return {
        "reference": None if reference is None else model.encode_reference(reference, size=size),
        "size": size,
    }


class Model(NetworkMethod):
    """An RPF model.

    Args:
        name: See `Method`.
        model: The model.
        given: Which reference it gets: "own", "none", "swap" (another person's), "unmasked" (the own whole photo)
            or "gt".
        source: See `NetworkMethod`.
    """

    model: RPFModel

    def __init__(self, name: str, model: RPFModel, given: Reference = "own", source: str = "") -> None:
        super().__init__(name, model, source)
        self.given = given
        self.kind = "model" if given == "own" else f"model-{given}"
        self.needs_other = given == "swap"
        self.needs_unmasked = self.needs_photo = given == "unmasked"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Super-resolve."""
        reference = None if self.given == "none" else self.reference(batch)
        return self.model(batch.lr, **up_to(self.model, reference, batch.gt.shape[-1]))

    def reference(self, batch: EvaluationBatch) -> Tensor:
        """Return the reference that the model gets."""
        if self.given == "gt":
            return batch.gt * batch.mask if batch.masked else batch.gt
        if self.given == "swap":
            assert batch.other is not None
            return batch.other
        if self.given == "unmasked":
            assert batch.unmasked is not None
            return batch.unmasked
        return batch.reference


class Synthesized(NetworkMethod):
    """The image of the last block's synthesis module: whether its refinement keeps the person."""

    model: RPFModel
    kind = "synthesized"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Synthesize."""
        given = up_to(self.model, batch.reference, batch.gt.shape[-1])
        _, blocks = self.model(batch.lr, return_intermediates=True, **given)
        synthesized: Tensor = blocks[-1].synthesized
        return synthesized.clamp(0, 1)


class RefinementChain(NetworkMethod):
    """The refinement modules of an RPF model alone: ``x^(n+1) = refine(x^(n), up(x^(n)))``."""

    kind = "refinement"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Refine at every level, from the block that takes the LR's side on."""
        x = batch.lr
        for block in cast("list[ReconstructionBlock]", self.model.blocks):
            if batch.lr.shape[-1] <= block.in_side < batch.gt.shape[-1]:
                x = block.refine(x, block.enlarge(x)).clamp(0, 1)
        return x


class PublishedGCFSR(NetworkMethod):
    """The published GCFSR, as far as its checkpoint says how: what is read into it was not checked.

    Args:
        name: See `Method`.
        path: Its checkpoint.
        blend: See `GCFSR`.
        normalize: See `GCFSR`.
    """

    kind = "gcfsr"
    model: GCFSR

    def __init__(
        self, name: str, path: str, blend: Blend = "before_activation", normalize: bool = True
    ) -> None:
        model = GCFSR.from_checkpoint(path, blend=blend, normalize=normalize)
        super().__init__(name, model, Path(path).name)
        self.blend, self.normalize = blend, normalize

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Restore the enlarged LR."""
        return self.model.super_resolve(batch.lr)

    def describe(self) -> dict[str, Any]:
        """Return what `NetworkMethod` does, and how the checkpoint was read."""
        return {**super().describe(), "blend": self.blend, "normalize": self.normalize}
