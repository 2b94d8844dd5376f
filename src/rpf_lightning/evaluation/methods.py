"""What makes an image from a pair: the methods of tables and figures.

A method of one's own is a `Method` with `__call__`, or a function in a `Function`; `rpf_lightning.evaluation.building`
makes methods from what a command line says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rpf_lightning.baselines.gcfsr import GCFSR, Blend
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch, Fault
from rpf_lightning.model.reconstruction_block import ReconstructionBlock
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel

Reference = Literal["own", "none", "swap", "unmasked", "gt"]


class Method(ABC):
    """One method.

    Attributes:
        name: Under which its values stand.
        kind: For the protocol; a class from outside has its name there, and is measured anew after a kill.
        needs_other: Whether it reads `EvaluationBatch.other`.
        needs_photo: Whether it makes sense only where the reference is a photo.
        needs_unmasked: Whether it reads `EvaluationBatch.unmasked`.
    """

    kind = ""
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
        return {"kind": self.kind or type(self).__name__}

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


def output_of(method: Method, batch: EvaluationBatch) -> Tensor:
    """Run a method in inference mode: (B, 3, S, S) in fp32, not clamped.

    Raises:
        ValueError: If it gives another shape.
    """
    with torch.inference_mode():
        output = method(batch).float()
    if output.shape != batch.gt.shape:
        got = f"{tuple(output.shape)}, not {tuple(batch.gt.shape)}"
        raise ValueError(f"{method.name}: gave a result of the shape {got}")
    return output


class Function(Method):
    """A function from the batch to (B, 3, S, S) in [0, 1]."""

    kind = "function"

    def __init__(self, name: str, function: Callable[[EvaluationBatch], Tensor]) -> None:
        super().__init__(name)
        self.function = function

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Call it."""
        return self.function(batch)


class Bicubic(Method):
    """The LR enlarged."""

    kind = "bicubic"

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Enlarge."""
        return resize(batch.lr, batch.gt.shape[-1]).clamp(0, 1)


def reference_of(batch: EvaluationBatch, given: Reference) -> Tensor:
    """The reference that a method gets, (B, 3, S, S); a model that gets none is compared with the pair's own."""
    if given == "gt":
        return batch.gt * batch.mask if batch.masked else batch.gt
    chosen = {"swap": batch.other, "unmasked": batch.unmasked}.get(given, batch.reference)
    assert chosen is not None
    return chosen


class CopiedReference(Method):
    """The reference itself, unaligned: what metrics of identity give to a method that copies.

    It is `masked` as the models get it, or the whole photo.
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
        return reference_of(batch, "unmasked" if self.needs_unmasked else "own")


class NetworkMethod(Method):
    """A network with weights, which variants share; `source` names its directory or file in the protocol."""

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
        return reference_of(batch, self.given)


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

    `blend` and `normalize` are those of `GCFSR`.
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
