"""The RPF network (paper III, Fig. 2): reconstruction blocks that each double the resolution.

`RPFModel` reads from top to bottom like Fig. 2 (a), `ReconstructionBlock` like Fig. 2 (b).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from rpf_lightning.model import storage, strips
from rpf_lightning.model.layers import Activation, lay_out
from rpf_lightning.model.refinement import RefinementModule, Skip, refuse_checkpoints
from rpf_lightning.model.resize import Resize, resize
from rpf_lightning.model.synthesis import SynthesisModule
from rpf_lightning.model.warping import FlowUnit, WarpingModule

Memory = Literal["auto", "low"]


class BlockOutput(NamedTuple):
    """What one reconstruction block computed; images are fp32 and not clamped.

    Attributes:
        flow: (B, 2, S, S) in pixels of side S, eq. 2.
        aligned: (B, 3, S, S) aligned reference.
        synthesized: (B, 3, S, S) output of the synthesis module.
        output: (B, 3, S, S) output of the refinement module, x^(n+1).
    """

    flow: Tensor
    aligned: Tensor
    synthesized: Tensor
    output: Tensor


class ReconstructionBlock(nn.Module):
    """One reconstruction block, Fig. 2 (b): warping, synthesis, refinement.

    Args:
        side: S, side of the output.
        in_side: Side of the input; S/2 in progressive reconstruction.
        channels: C of the warping and synthesis modules.
        width: Width multiplier of the refinement module.
        skip: See `RefinementModule`.
        residual: See `RefinementModule`.
        act: See `RefinementModule`.
        synthesis_residual: See `SynthesisModule`.
        synthesis_fuse: See `SynthesisModule`.
        flow_unit: See `WarpingModule`.
        init: See `WarpingModule`.
        refinement_mean: See `RPFModel`.
    """

    def __init__(
        self,
        side: int,
        in_side: int,
        channels: int = 64,
        width: float = 1.0,
        skip: Skip = "same_resolution",
        residual: bool = False,
        act: Activation = "leaky_relu",
        synthesis_residual: bool = False,
        synthesis_fuse: bool = True,
        flow_unit: FlowUnit = "relative",
        init: Literal["kaiming", "torch"] = "kaiming",
        refinement_mean: bool = True,
    ) -> None:
        super().__init__()
        self.side = side
        self.in_side = in_side
        self.refinement_mean = refinement_mean
        self.warping = WarpingModule(side, in_side, channels, flow_unit, init)
        self.synthesis = SynthesisModule(side, in_side, channels, synthesis_fuse, synthesis_residual, init)
        self.refinement = RefinementModule(side, width, skip, residual, act)
        self.enlarge = Resize(in_side, side)

    def forward(self, x: Tensor, reference: Tensor) -> BlockOutput:
        """Reconstruct.

        Args:
            x: x^(n), (B, 3, in_side, in_side) in [0, 1].
            reference: r_hat^(n), (B, 3, S, S) in [0, 1], masked.
        """
        flow, aligned = self.warping(x, reference)
        synthesized = self.synthesis(x, aligned)
        return BlockOutput(flow, aligned, synthesized, self.refine(x, synthesized))

    def in_strips(self, x: Tensor, reference: Tensor, low_memory: bool) -> BlockOutput:
        """`forward` without gradients, a few rows at a time (see `model/strips.py`).

        Args:
            x: See `forward`.
            reference: See `forward`.
            low_memory: Also compute the two largest maps twice instead of keeping them.
        """
        flow, aligned = strips.warp(self.warping, x, reference, low_memory)
        synthesized = strips.synthesize(self.synthesis, x, aligned)
        output = strips.refine(self.refinement, self._refinement_input(x, synthesized), low_memory)
        return BlockOutput(flow, aligned, synthesized, output)

    def refine(self, x: Tensor, synthesized: Tensor) -> Tensor:
        """Refinement of the mean of the enlarged input and the synthesized image (paper III-B-3), or of the latter."""
        return self.refinement(self._refinement_input(x, synthesized))

    def _refinement_input(self, x: Tensor, synthesized: Tensor) -> Tensor:
        return (self.enlarge(x) + synthesized) / 2 if self.refinement_mean else synthesized


class RPFModel(nn.Module):
    """Reference-based progressive face super-resolution.

    Args:
        lr_size: L, side of the LR image; a power of two of at least 4.
        scale: kappa, the scale factor; a power of two of at least 2. The output has side ``scale * lr_size``.
        channels: C, features of the warping and synthesis modules (64 in the paper).
        width: Width multiplier of the refinement modules (1 = GCFSR's channels).
        skip: Where the refinement blends encoder features: ``"same_resolution"`` or ``"literal"``.
        residual: The refinement predicts a difference to its input. Differs from the paper when True.
        act: Activation of the refinement: ``"leaky_relu"`` as in GCFSR or ``"relu"`` as in the paper's text.
        progressive: False replaces all blocks by one that goes from L to kappa * L (Table 2).
        synthesis_residual: The synthesis predicts a difference to the bicubically enlarged input. Differs
            from the paper when True.
        synthesis_fuse: False runs the synthesis' residual blocks at 2C channels.
        flow_unit: ``"relative"``: the flow head counts in S/64 pixels; ``"pixels"``: in pixels.
        init: ``"kaiming"`` with images centred by -0.5 at the first convolutions, or ``"torch"``.
        refinement_mean: The refinement sees the mean of the enlarged input and the synthesized image (III-B-3).
            False, which differs from the paper: the synthesized image alone, so that half of what it took from
            the reference need not be found again.
        validate: Check the values of the inputs (range, NaN). It synchronises a GPU; shapes are always
            checked. Skipped while exporting or compiling.
        memory: Without gradients a CPU computes the feature maps in strips (faster, and in less than half the
            memory: `benchmarks/RESULTS.md`), a GPU as a whole. ``"low"``: in strips everywhere, and the two
            largest maps of each block are computed twice instead of kept.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        lr_size: int = 16,
        scale: int = 64,
        channels: int = 64,
        width: float = 1.0,
        skip: Skip = "same_resolution",
        residual: bool = False,
        act: Activation = "leaky_relu",
        progressive: bool = True,
        synthesis_residual: bool = False,
        synthesis_fuse: bool = True,
        flow_unit: FlowUnit = "relative",
        init: Literal["kaiming", "torch"] = "kaiming",
        refinement_mean: bool = True,
        validate: bool = True,
        memory: Memory = "auto",
    ) -> None:
        super().__init__()
        _check_power_of_two("lr_size", lr_size, 4)
        _check_power_of_two("scale", scale, 2)
        _check_choice("skip", skip, ("same_resolution", "literal"))
        _check_choice("act", act, ("leaky_relu", "relu"))
        _check_choice("flow_unit", flow_unit, ("relative", "pixels"))
        _check_choice("init", init, ("kaiming", "torch"))
        _check_choice("memory", memory, ("auto", "low"))
        if channels < 1 or width <= 0:
            raise ValueError(f"channels and width must be positive, got {channels} and {width}")
        self.config: dict[str, Any] = {
            "lr_size": lr_size, "scale": scale, "channels": channels, "width": width, "skip": skip,
            "residual": residual, "act": act, "progressive": progressive,
            "synthesis_residual": synthesis_residual, "synthesis_fuse": synthesis_fuse,
            "flow_unit": flow_unit, "init": init, "refinement_mean": refinement_mean,
            "validate": validate, "memory": memory,
        }  # fmt: skip
        self.lr_size = lr_size
        self.scale = scale
        self.size = lr_size * scale
        self.validate = validate
        self.memory = memory
        self.fused = False
        sides = [lr_size * 2**n for n in range(1, int(math.log2(scale)) + 1)] if progressive else [self.size]
        self.sides = tuple(sides)
        self.blocks = nn.ModuleList(
            ReconstructionBlock(
                side,
                side // 2 if progressive else lr_size,
                channels,
                width,
                skip,
                residual,
                act,
                synthesis_residual,
                synthesis_fuse,
                flow_unit,
                init,
                refinement_mean,
            )
            for side in sides
        )
        self.halve = nn.ModuleList(Resize(2 * side, side) for side in sides[:-1])

    @overload
    def forward(
        self,
        lr: Tensor,
        reference: Tensor | Sequence[Tensor] | None = ...,
        mask: Tensor | None = ...,
        return_intermediates: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        lr: Tensor,
        reference: Tensor | Sequence[Tensor] | None = ...,
        mask: Tensor | None = ...,
        *,
        return_intermediates: Literal[True],
    ) -> tuple[Tensor, list[BlockOutput]]: ...

    def forward(
        self,
        lr: Tensor,
        reference: Tensor | Sequence[Tensor] | None = None,
        mask: Tensor | None = None,
        return_intermediates: bool = False,
    ) -> Tensor | tuple[Tensor, list[BlockOutput]]:
        """Super-resolve faces (paper III).

        Args:
            lr: (B, 3, l, l), RGB in [0, 1], l = L * 2^k: it enters at block k + 1, so that one x64 model also
                serves x32, x16, ...
            reference: (B, 3, S, S), RGB in [0, 1], S = kappa * L: another photo of the same person; or what
                `encode_reference` returned. None: the bicubically enlarged LR serves as the reference.
            mask: (B, 1, S, S), 1 on the facial region of the reference and 0 elsewhere (eq. 1). Without it the
                reference counts as masked already; the model never parses.
            return_intermediates: Also return the `BlockOutput` of every block that ran.

        Returns:
            (B, 3, S, S) in [0, 1], and with `return_intermediates` the list of block outputs.

        Raises:
            ValueError: If a shape does not fit, or (with `validate`) a value is NaN or outside [0, 1].
        """
        first = self._check_lr(lr)
        if reference is None:
            if mask is not None:
                raise ValueError("mask was given without a reference; it masks the reference")
            reference = resize(lr, self.size).clamp(0, 1)
        pyramid = self._check_pyramid(reference, lr, mask)
        records = []
        x = lr
        blocks = cast("list[ReconstructionBlock]", self.blocks)[first:]
        for block, level in zip(blocks, pyramid[first:], strict=True):
            record = self._reconstruct(block, x, level)
            x = record.output.clamp(0, 1)
            if return_intermediates:
                records.append(record)
        return (x, records) if return_intermediates else x

    def encode_reference(self, reference: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Mask the reference (eq. 1) and halve it down to every block's side.

        Args:
            reference: (B, 3, S, S) in [0, 1].
            mask: (B, 1, S, S) of 0 and 1, or None if it is masked already.

        Returns:
            r_hat^(1), ..., r_hat^(N), each (B, 3, side, side) in [0, 1]: `forward` takes it in place of the
            reference, so that many LR images of one person share the work.

        Raises:
            ValueError: As in `forward`.
        """
        self._check_image("reference", reference, self.size)
        if mask is not None:
            if mask.shape != (reference.shape[0], 1, self.size, self.size):
                expected = (reference.shape[0], 1, self.size, self.size)
                raise ValueError(f"mask: expected the shape {expected}, got {tuple(mask.shape)}")
            self._check_values("mask", mask)
            reference = reference * mask
        return self.pyramid(reference, len(self.blocks))

    def pyramid(self, reference: Tensor, block: int) -> tuple[Tensor, ...]:
        """Halve a masked reference of side S of `block` (counted from 1) down to the first block's side."""
        levels = [reference]
        for halve in reversed(self.halve[: block - 1]):
            levels.append(halve(levels[-1]).clamp(0, 1))
        return tuple(reversed(levels))

    def prefix(self, lr: Tensor, reference: Tensor, block: int) -> Tensor:
        """Compute x^(n), the input of block n = `block` (counted from 1), from the blocks before it.

        Args:
            lr: (B, 3, L, L) in [0, 1].
            reference: The masked reference at the side of block n, (B, 3, S, S) in [0, 1].
            block: n.

        Returns:
            (B, 3, S/2, S/2) in [0, 1].
        """
        x = lr
        earlier = cast("list[ReconstructionBlock]", self.blocks)[: block - 1]
        for before, level in zip(earlier, self.pyramid(reference, block)[:-1], strict=True):
            x = self._reconstruct(before, x, level).output.clamp(0, 1)
        return x

    def fuse(self) -> RPFModel:
        """Prepare for inference, in place: fold constants into the weights, lay them out channels_last.

        Folded are the equalized-lr scales, the activations' sqrt(2), alpha and beta, and the constant part of
        the demodulation. Outputs stay equal up to rounding. The weights are then no longer those of a
        checkpoint: a fused model neither trains, nor saves, nor loads.

        Returns:
            The model itself, in eval mode.
        """
        for parameter in self.parameters():
            if parameter.ndim == 4:
                lay_out(parameter)
        for block in cast("list[ReconstructionBlock]", self.blocks):
            if not block.refinement.fused:
                block.refinement.fuse()
                refuse_checkpoints(block)
        if not self.fused:
            refuse_checkpoints(self)  # before it would have loaded the modules that come first
        self.fused = True
        strips.release()  # of the weights' copies
        return self.requires_grad_(False).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the weights' dtype; each appears whole or not at all.

        Args:
            directory: The model directory; made if it is missing.
        """
        storage.save(Path(directory), self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides: Any) -> RPFModel:
        """Load a model in fp32 and eval mode, strictly: no weight missing, none left over.

        Args:
            name: A model directory; a model that comes with the package, ``"celeba-hq-16to128"``; or a repository of
                the Hugging Face hub such as ``"owner/name"``.
            **overrides: Arguments of the constructor that change no weight, such as ``validate=False``.

        Raises:
            FileNotFoundError: If neither a directory, nor a model of the package, nor a hub repository of that name can
                be read.
            ValueError: If the files do not fit each other.
        """
        config, state = storage.load(name)
        try:
            model = cls(**{**config, **overrides})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: the configuration, or an argument given here, does not fit RPFModel: {error}"
            ) from error
        storage.restore(model, state, name)
        return model.eval()

    def _reconstruct(self, block: ReconstructionBlock, x: Tensor, reference: Tensor) -> BlockOutput:
        if self._runs_in_strips(block, x, reference):
            return block.in_strips(x, reference, self.memory == "low")
        return block(x, reference)

    def _runs_in_strips(self, block: nn.Module, *inputs: Tensor) -> bool:
        if _is_traced() or not (self.memory == "low" or inputs[0].device.type == "cpu"):
            return False
        return not torch.is_grad_enabled() or not any(
            tensor.requires_grad for tensor in (*inputs, *block.parameters())
        )

    def _check_lr(self, lr: Tensor) -> int:
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.shape[2] != lr.shape[3]:
            raise ValueError(f"lr: expected square RGB images (B, 3, l, l), got the shape {tuple(lr.shape)}")
        sides = [self.lr_size, *self.sides[:-1]]
        if lr.shape[-1] not in sides:
            raise ValueError(f"lr: expected a side of {_listed(sides)} pixels, got {lr.shape[-1]}")
        self._check_values("lr", lr)
        return sides.index(lr.shape[-1])

    def _check_pyramid(
        self, reference: Tensor | Sequence[Tensor], lr: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        if isinstance(reference, Tensor):
            pyramid = self.encode_reference(reference, mask)
        else:
            if mask is not None:
                raise ValueError("mask was given with an encoded reference, which is masked already")
            pyramid = tuple(reference)
            got = [tuple(level.shape) if isinstance(level, Tensor) else type(level) for level in pyramid]
            batch = tuple(pyramid[0].shape[:1]) if pyramid and isinstance(pyramid[0], Tensor) else ()
            if got != [(*batch, 3, side, side) for side in self.sides]:
                raise ValueError(f"reference: expected levels of side {_listed(self.sides)}, got {got}")
            for level in pyramid:
                self._check_values("reference", level)
        if pyramid[0].shape[0] not in (1, lr.shape[0]):
            raise ValueError(f"reference: expected 1 or {lr.shape[0]} images, got {pyramid[0].shape[0]}")
        return tuple(level.expand(lr.shape[0], -1, -1, -1) for level in pyramid)

    def _check_image(self, name: str, image: Tensor, side: int) -> None:
        if image.ndim != 4 or image.shape[1:] != (3, side, side):
            expected = f"(B, 3, {side}, {side})"
            raise ValueError(f"{name}: expected RGB images of the shape {expected}, got {tuple(image.shape)}")
        self._check_values(name, image)

    def _check_values(self, name: str, image: Tensor) -> None:
        if not image.is_floating_point():
            raise ValueError(f"{name}: expected floating point values in [0, 1], got {image.dtype}")
        dtype = next(self.parameters()).dtype
        if image.dtype != dtype and not torch.is_autocast_enabled(image.device.type):
            raise ValueError(f"{name}: expected {dtype} as the model's weights, got {image.dtype}")
        if not len(image):
            raise ValueError(f"{name}: expected at least one image, got none")
        if not self.validate or _is_traced():
            return
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(f"{name}: expected values in [0, 1] without NaN, got {low:.4g} .. {high:.4g}")


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def _check_power_of_two(name: str, value: int, least: int) -> None:
    if value < least or value & (value - 1):
        raise ValueError(f"{name}: expected a power of two of at least {least}, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected {_listed(choices)}, got {value!r}")


def _listed(values: Sequence[object]) -> str:
    return " or ".join(str(value) for value in values)
