"""The RPF network (paper III, Fig. 2): reconstruction blocks that each double the resolution.

`RPFModel` reads from top to bottom like Fig. 2 (a), `ReconstructionBlock` beside it like Fig. 2 (b).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from rpf_lightning.model import storage
from rpf_lightning.model.config import RPFConfig, check_choice, listed
from rpf_lightning.model.layers import is_traced, lay_out, only_infers
from rpf_lightning.model.reconstruction_block import BlockOutput, ReconstructionBlock
from rpf_lightning.model.reference_slots import erode, with_ok
from rpf_lightning.model.refinement import refuse_checkpoints
from rpf_lightning.model.resize import HALF, Resize, at_least_fp32, minimum_pool, resize
from rpf_lightning.model.strips import WHOLE, Rows, Strips, release
from rpf_lightning.model.turns import Turns

Memory = Literal["auto", "low"]


class RPFModel(nn.Module):
    """Reference-based progressive face super-resolution.

    Any number of threads may call one model at once. `fuse`, `to`, `half` and others that change its weights wait until
    no other thread computes with them, and keep those out that come in the meantime; so does `load_state_dict`.

    After `half` or `bfloat16` it takes images in fp32 or in that precision and returns fp32: convolutions run in half
    precision, and flows, coordinates, resizing and demodulation in fp32, as under autocast.

    Args:
        *args: The network's structure: an `RPFConfig`, or its arguments, ``RPFModel(16, 64, width=0.25)``.
        validate: Check the values of the inputs (range, NaN), and that what every block makes is finite. It
            synchronises a GPU; shapes are always checked. Skipped while exporting or compiling.
        memory: Without gradients a CPU computes the steps between feature maps in strips of rows where a map in them
            is larger than 16 MB: from side 256 on at the paper's width (what it takes: `benchmarks/RESULTS.md`). A
            GPU computes whole maps. ``"low"``: in strips everywhere, and the two largest maps of each block are
            computed twice instead of kept.
        **kwargs: Arguments of `RPFConfig` by their names; of an `RPFConfig` that is given they replace the values.

    Attributes:
        config: The network's structure.
        lr_size: L.
        size: kappa * L.
        sides: S of every block.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is outside its range.
    """

    blocks: Sequence[ReconstructionBlock]  # a ModuleList

    def __init__(self, *args: Any, validate: bool = True, memory: Memory = "auto", **kwargs: Any) -> None:
        super().__init__()
        given = bool(args) and isinstance(args[0], RPFConfig)
        self.config = config = replace(*args, **kwargs) if given else RPFConfig(*args, **kwargs)
        check_choice("memory", memory, get_args(Memory))
        self.validate = validate
        self.memory = memory
        self.fused = False
        self._turns = Turns()
        self.lr_size, self.size, self.sides = config.lr_size, config.size, config.sides
        numbers = range(1, len(self.sides) + 1)
        self.blocks = nn.ModuleList(ReconstructionBlock(config, n) for n in numbers)  # type: ignore[assignment]
        self.halve = nn.ModuleList(Resize(2 * side, side) for side in self.sides[:-1])

    @overload
    def forward(
        self,
        lr: Tensor,
        reference: Tensor | Sequence[Tensor] | None = ...,
        mask: Tensor | None = ...,
        return_intermediates: Literal[False] = ...,
        size: int | None = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        lr: Tensor,
        reference: Tensor | Sequence[Tensor] | None = ...,
        mask: Tensor | None = ...,
        *,
        return_intermediates: Literal[True],
        size: int | None = ...,
    ) -> tuple[Tensor, list[BlockOutput]]: ...

    def forward(
        self,
        lr: Tensor,
        reference: Tensor | Sequence[Tensor] | None = None,
        mask: Tensor | None = None,
        return_intermediates: bool = False,
        size: int | None = None,
    ) -> Tensor | tuple[Tensor, list[BlockOutput]]:
        """Super-resolve faces (paper III).

        Args:
            lr: (B, 3, l, l), RGB in [0, 1], l = L * 2^k: it enters at block k + 1, so that one x64 model also
                serves x32, x16, ...
            reference: (B, 3, S, S), RGB in [0, 1], S = kappa * L: another photo of the same person; or what
                `encode_reference` returned. With `synthesis_copy` also (B, K, 3, S, S): K photos of that person; one
                that is zero everywhere (or whose mask is) is absent, and all of them may be; None: all are absent.
                Without `synthesis_copy` None: the bicubically enlarged LR serves as the reference.
            mask: (B, 1, S, S) or (B, K, 1, S, S), 1 on the facial region of the reference and 0 elsewhere (eq. 1).
                Without it the reference counts as masked already; the model never parses.
            return_intermediates: Also return the `BlockOutput` of every block that ran.
            size: Side of the output: that of any block above l, where the reconstruction stops. None: S.

        Returns:
            (B, 3, size, size) in [0, 1], and with `return_intermediates` the list of block outputs.

        Raises:
            ValueError: If a shape does not fit, or (with `validate`) a value is NaN or outside [0, 1], or a block made
                NaN or infinite values: its weights are broken, or too large for their precision.
        """
        first = self._check_lr(lr)
        last = self._check_size(size, first)
        if reference is None:
            if mask is not None:
                raise ValueError("mask was given without a reference; it masks the reference")
            if self.config.synthesis_copy:
                reference = lr.new_zeros(len(lr), 3, self.size, self.size)
            else:
                reference = resize(lr, self.size).clamp(0, 1)
        pyramid = self._check_pyramid(reference, lr, mask, last)
        records: list[BlockOutput] | None = [] if return_intermediates else None
        x, _ = self._run(first, lr, pyramid[first:last], records)
        return x if records is None else (x, records)

    def encode_reference(
        self, reference: Tensor, mask: Tensor | None = None, size: int | None = None
    ) -> tuple[Tensor, ...]:
        """Mask the reference (eq. 1) and halve it down to every block's side.

        Args:
            reference: (B, 3, S, S) or (B, K, 3, S, S) in [0, 1].
            mask: (B, 1, S, S) or (B, K, 1, S, S) of 0 and 1, or None if it is masked already.
            size: The reference's side, that of a block, for a `forward` that stops there. None: S.

        Returns:
            r_hat^(1), ..., r_hat^(N), each (B, 3, side, side) in [0, 1], with `synthesis_copy` (B, 4, side, side), and
            with K as given: `forward` takes it in place of the reference, so that many LR images of one person share
            the work.

        Raises:
            ValueError: As in `forward`.
        """
        last = self._check_size(size, 0)
        side = self.sides[last - 1]
        self._check_image("reference", reference, side)
        if mask is not None:
            expected = (*reference.shape[:-3], 1, side, side)
            if mask.shape != expected:
                raise ValueError(f"mask: expected the shape {expected}, got {tuple(mask.shape)}")
            self._check_values("mask", mask)
            reference, mask = at_least_fp32(reference), at_least_fp32(mask)
            reference = reference * mask
        reference = at_least_fp32(reference)
        return self.pyramid(with_ok(reference, mask) if self.config.synthesis_copy else reference, last)

    def pyramid(self, reference: Tensor, block: int) -> tuple[Tensor, ...]:
        """Halve a masked reference of side S of `block` (counted from 1) down to the first block's side.

        Args:
            reference: (..., 3, S, S); with `synthesis_copy` (..., 4, S, S): the fourth channel is 1 where no masked
                pixel of the full-size reference is under the pixel (`minimum_pool` of the mask).
            block: n.

        Returns:
            One level per block up to n, as many channels; the fourth is ok: the minimum also over 3x3 pixels.
        """
        levels, oks = [reference[..., :3, :, :]], [reference[..., 3:, :, :]]
        for halve in reversed(self.halve[: block - 1]):
            levels.append(halve(levels[-1]).clamp(0, 1))
            if self.config.synthesis_copy:
                oks.append(minimum_pool(oks[-1], levels[-1].shape[-1]))
        if self.config.synthesis_copy:
            levels = [torch.cat((level, erode(ok)), dim=-3) for level, ok in zip(levels, oks, strict=True)]
        return tuple(reversed(levels))

    def prefix(self, lr: Tensor, reference: Tensor, block: int) -> tuple[Tensor, Tensor | None]:
        """Compute x^(n), the input of block n = `block` (counted from 1), from the blocks before it.

        Args:
            lr: (B, 3, L, L) in [0, 1].
            reference: The masked reference at the side of block n, see `pyramid`.
            block: n.

        Returns:
            (B, 3, S/2, S/2) in [0, 1]; and with ``flow_from="previous"`` the flow of block n - 1, (B, 2, S/2, S/2) or
            (B, K, 2, S/2, S/2) in its pixels, else or where there is no block before None.
        """
        return self.after(lr, self.pyramid(reference, block)[:-1])

    def after(self, lr: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Run as many blocks as there are levels of `pyramid`; return what `prefix` returns for the next block."""
        return self._run(0, lr, levels)

    def fuse(self) -> RPFModel:
        """Prepare for inference, in place: fold constants into the weights, lay them out channels_last.

        Folded are the equalized-lr scales, the activations' sqrt(2), alpha and beta, and the constant part of
        the demodulation. Outputs stay equal up to rounding. The weights are then no longer those of a
        checkpoint: a fused model neither trains, nor saves, nor loads.

        Returns:
            The model itself, in eval mode.
        """
        with self._turns.changing():
            return self._fuse()

    def _fuse(self) -> RPFModel:
        for parameter in self.parameters():
            if parameter.ndim == 4:
                lay_out(parameter)
        for block in self.blocks:
            if not block.refinement.fused:
                block.refinement.fuse()
                refuse_checkpoints(block)
        if not self.fused:
            refuse_checkpoints(self)  # before it would have loaded the modules that come first
        self.fused = True
        release()  # of the weights' copies
        return self.requires_grad_(False).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the weights' dtype; each appears whole or not at all.

        Args:
            directory: The model directory; made if it is missing.
        """
        storage.save(Path(directory), self.config, self.state_dict())

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        validate: bool = True,
        memory: Memory = "auto",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **additions: Any,
    ) -> RPFModel:
        """Load a model in fp32 and eval mode, strictly: no weight missing, none left over.

        Arguments that add to the network, such as ``synthesis_copy=True`` or a larger `scale`, give it new heads and
        further blocks, which start as in a new model; all that the saved network has is still loaded strictly.

        Args:
            name: A model directory; a model that comes with the package, ``"celeba-hq-16to128"``; or a repository of
                the Hugging Face hub such as ``"owner/name"``.
            validate: See `RPFModel`, like `memory`.
            memory: Not saved with the model.
            revision: Of a hub repository: a branch, a tag or a commit. This and the next are huggingface_hub's, and
                say nothing about a directory or a model of the package.
            token: Of the hub; None: the one that `hf auth login` has stored, if any.
            cache_dir: Where the hub's files are kept; None: where huggingface_hub keeps them.
            local_files_only: Ask no network.
            force_download: Fetch again what is there.
            **additions: Arguments of `RPFConfig`, in place of the saved ones.

        Raises:
            FileNotFoundError: If neither a directory, nor a model of the package, nor a hub repository of that name can
                be read.
            ValueError: If there is no such argument, which is known before anything is fetched; if the files do not
                fit each other, a weight is NaN or infinite, or an argument would change a weight that they hold.
        """
        wrong = f"{name}: an argument given here does not fit RPFModel"
        try:
            check_choice("memory", memory, get_args(Memory))
        except ValueError as error:
            raise ValueError(f"{wrong}: {error}") from error
        if unknown := additions.keys() - {field.name for field in fields(RPFConfig)}:
            raise ValueError(f"{wrong}: from_pretrained has no argument {', '.join(sorted(unknown))}")
        hub = storage.Hub(revision, token, cache_dir, local_files_only, force_download)
        directory = storage.directory_of(name, hub)
        config = storage.read_config(directory / storage.CONFIG_FILE)
        try:
            asked = replace(config, **additions)
        except ValueError as error:
            raise ValueError(f"{wrong}: {error}") from error
        with torch.device("meta"):  # nothing is allocated before the file's head fits
            saved = cls(config).state_dict()
            wanted = cls(asked).state_dict()
        new = wanted.keys() - saved.keys()
        storage.check_head(directory, {key: tensor for key, tensor in wanted.items() if key not in new})
        model = cls(asked, validate=validate, memory=memory)
        storage.restore(model, storage.read_weights(directory), directory, new)
        return model.eval()

    def handed_on(self, record: BlockOutput) -> Tensor | None:
        """The flow that the next block starts from, if it does."""
        return record.flow if self.config.chains_flow else None

    def _run(
        self, first: int, x: Tensor, levels: Sequence[Tensor], records: list[BlockOutput] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The image and the flow after as many blocks behind the `first` as there are levels, keeping their records."""
        flow = None
        with self._computing(x.device):
            x = at_least_fp32(x)
            for number, (block, level) in enumerate(
                zip(self.blocks[first:], levels, strict=False), start=first + 1
            ):
                record = self._reconstruct(block, x, level, flow)
                self._check_finite(record, number)
                x, flow = record.output.clamp(0, 1), self.handed_on(record)
                if records is not None:
                    records.append(record)
        return x, flow

    def _computing(self, device: torch.device) -> AbstractContextManager[object]:
        """One of many threads that use the weights; half weights compute as under autocast."""
        if is_traced():
            return self._autocast(device)
        stack = ExitStack()
        stack.enter_context(self._turns.using())
        stack.enter_context(self._autocast(device))  # asked for now: the weights stay what they are
        return stack

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = self._dtype()
        return torch.autocast(device.type, dtype) if dtype in HALF else nullcontext()

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _check_finite(self, record: BlockOutput, block: int) -> None:
        """Before it is clamped, or sampled by coordinates, what is infinite would become a value like any other."""
        if not self.validate or is_traced():
            return
        made = (record.flow, record.synthesized, record.output)
        bounds = torch.stack([bound.float() for x in made for bound in x.detach().aminmax()])
        if not bounds.isfinite().all():
            raise ValueError(
                f"block {block} (of side {record.output.shape[-1]}) made NaN or infinite values: the model's weights "
                f"are broken, or too large for {self._dtype()}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RPFModel:
        """What `to`, `half`, `cuda` and others do."""
        with self._turns.changing():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """See `torch.nn.Module.load_state_dict`."""
        with self._turns.changing():
            return super().load_state_dict(state_dict, strict, assign)

    def _reconstruct(
        self, block: ReconstructionBlock, x: Tensor, reference: Tensor, flow: Tensor | None
    ) -> BlockOutput:
        return block(x, reference, flow, rows=self._rows(block, x, reference))

    def _rows(self, block: nn.Module, *inputs: Tensor) -> Rows:
        low = self.memory == "low"
        cheaper = low or inputs[0].device.type == "cpu"
        return Strips(low) if cheaper and only_infers(*inputs, *block.parameters()) else WHOLE

    def _check_lr(self, lr: Tensor) -> int:
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.shape[2] != lr.shape[3]:
            raise ValueError(f"lr: expected square RGB images (B, 3, l, l), got the shape {tuple(lr.shape)}")
        sides = self.config.entry_sides
        if lr.shape[-1] not in sides:
            raise ValueError(f"lr: expected a side of {listed(sides)} pixels, got {lr.shape[-1]}")
        self._check_values("lr", lr)
        return sides.index(lr.shape[-1])

    def _check_pyramid(
        self, reference: Tensor | Sequence[Tensor], lr: Tensor, mask: Tensor | None, last: int
    ) -> tuple[Tensor, ...]:
        if isinstance(reference, Tensor):
            pyramid = self.encode_reference(reference, mask)
        else:
            if mask is not None:
                raise ValueError("mask was given with an encoded reference, which is masked already")
            pyramid = tuple(reference)
            got = [tuple(level.shape) if isinstance(level, Tensor) else type(level) for level in pyramid]
            first = pyramid[0].shape if pyramid and isinstance(pyramid[0], Tensor) else ()
            channels = 4 if self.config.synthesis_copy else 3
            sides = self.sides[: max(len(got), last)]  # a forward that stops early needs no further ones
            if got != [(*first[:-3], channels, side, side) for side in sides] or len(first) not in (4, 5):
                raise ValueError(
                    f"reference: expected levels of side {listed(sides)}, got {got}. `encode_reference` makes "
                    f"them, of {channels} channels; several photos, all of one side, are one tensor (B, K, 3, S, S)"
                )
            for level in pyramid:
                self._check_values("reference", level)
        if pyramid[0].ndim == 5 and not (self.config.synthesis_copy or pyramid[0].shape[1] == 1):
            raise ValueError(
                f"reference: several per sample need a model with synthesis_copy=True, got {pyramid[0].shape[1]}"
            )
        if pyramid[0].shape[0] not in (1, lr.shape[0]):
            raise ValueError(f"reference: expected 1 or {lr.shape[0]} images, got {pyramid[0].shape[0]}")
        return tuple(level.expand(lr.shape[0], *level.shape[1:]) for level in pyramid)

    def _check_size(self, size: int | None, first: int) -> int:
        """Number of the block, counted from 1, at which to stop."""
        if size is None:
            return len(self.blocks)
        if size not in self.sides[first:]:
            raise ValueError(f"size: expected {listed(self.sides[first:])}, got {size}")
        return self.sides.index(size) + 1

    def _check_image(self, name: str, image: Tensor, side: int) -> None:
        if image.ndim not in (4, 5) or image.shape[-3:] != (3, side, side):
            shape = tuple(image.shape)
            raise ValueError(
                f"{name}: expected RGB images of the shape (B, 3, {side}, {side}), got {shape}; several per sample are "
                f"(B, K, 3, {side}, {side})"
            )
        self._check_values(name, image)

    def _check_values(self, name: str, image: Tensor) -> None:
        if not image.is_floating_point():
            raise ValueError(f"{name}: expected floating point values in [0, 1], got {image.dtype}")
        dtype = self._dtype()
        fits = image.dtype == dtype or (dtype in HALF and image.dtype == torch.float32)
        if not fits and not torch.is_autocast_enabled(image.device.type):
            raise ValueError(f"{name}: expected {dtype} as the model's weights, got {image.dtype}")
        if not image.numel():
            raise ValueError(f"{name}: expected at least one image, got none")
        if not self.validate or is_traced():
            return
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(f"{name}: expected values in [0, 1] without NaN, got {low:.4g} .. {high:.4g}")
