"""The network's structure: what `config.json` and a curriculum's `network` hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Skip = Literal["same_resolution", "literal"]
Activation = Literal["leaky_relu", "relu"]
FlowUnit = Literal["relative", "pixels"]
FlowFrom = Literal["previous"]
Init = Literal["kaiming", "torch"]

# far above what was ever trained; a file that says more is no configuration, and would take all memory
LARGEST_SIDE = 4096  # of the output
MOST_CHANNELS = 4096
LARGEST_WIDTH = 8


@dataclass(frozen=True)
class RPFConfig:
    """Arguments of `RPFModel`; the defaults are the paper's network. Blocks are counted from 1.

    Attributes:
        lr_size: L, side of the LR image; a power of two of at least 4.
        scale: kappa, the scale factor; a power of two of at least 2. The output has side ``scale * lr_size``.
        channels: C, features of the warping and synthesis modules (64 in the paper): one number, or one per block.
        width: Width multiplier of the refinement modules (1 = GCFSR's channels, 512-d latents): one number, or one
            per block.
        skip: Where the refinement blends encoder features. ``"same_resolution"``: a decoder block upsamples, modulates
            and blends with the feature of the new side; ``"literal"``: it modulates, blends with e_k (the output of a
            downscale block) at the old side, and upsamples last.
        residual: The refinement predicts a difference to its input: its last convolution starts at 0.02 of its size.
            Differs from the paper when True.
        act: Activation of the refinement: ``"leaky_relu"`` (0.2) as in GCFSR or ``"relu"`` as in the paper's text.
        progressive: False replaces all blocks by one that goes from L to kappa * L (Table 2).
        synthesis_residual: The synthesis predicts a difference to the bicubically enlarged input. Differs from the
            paper when True: its masked loss leaves everything outside the face free.
        synthesis_fuse: A convolution brings the synthesis' concatenated features from 2C to C before the residual
            blocks. False runs them at 2C channels, the other reading of Fig. 5, at three times the cost.
        flow_unit: ``"relative"``: the flow head counts in S/64 pixels, so its output means the same at every level;
            ``"pixels"``: in pixels.
        init: Of the warping and synthesis modules, for which the paper names none. ``"kaiming"``: Kaiming for ReLU and
            images centred by -0.5; ``"torch"``: torch's default initialisation and images as they are.
        refinement_mean: The refinement sees the mean of the enlarged input and the synthesized image (III-B-3).
            False, which differs from the paper: the synthesized image alone, so that half of what it took from
            the reference need not be found again.
        synthesis_copy: Copies the detail of the references past the synthesis' convolutions, takes several of them and
            samples without any; see `CopySynthesisModule`. Not in the paper; needs `synthesis_residual`.
        flow_from: ``"previous"``: each block corrects the flow of the block before; None, as in the paper: each
            estimates its own. See `WarpingModule`.
        reference_temperature: T of `CopySynthesisModule`.

    Raises:
        ValueError: If a value is outside its range.
    """

    lr_size: int = 16
    scale: int = 64
    channels: int | Sequence[int] = 64
    width: float | Sequence[float] = 1.0
    skip: Skip = "same_resolution"
    residual: bool = False
    act: Activation = "leaky_relu"
    progressive: bool = True
    synthesis_residual: bool = False
    synthesis_fuse: bool = True
    flow_unit: FlowUnit = "relative"
    init: Init = "kaiming"
    refinement_mean: bool = True
    synthesis_copy: bool = False
    flow_from: FlowFrom | None = None
    reference_temperature: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("lr_size", 4), ("scale", 2)):
            value = getattr(self, name)
            if not _is_whole(value) or value < least or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two of at least {least}, got {value!r}")
        if self.size > LARGEST_SIDE:
            raise ValueError(
                f"scale: expected an output, lr_size times scale, of at most {LARGEST_SIDE} pixels, "
                f"got {self.lr_size} times {self.scale}"
            )
        for field in fields(self):
            if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
                raise ValueError(f"{field.name}: expected true or false, got {getattr(self, field.name)!r}")
        for name, literal in (("skip", Skip), ("act", Activation), ("flow_unit", FlowUnit), ("init", Init)):
            check_choice(name, getattr(self, name), get_args(literal))
        if self.flow_from is not None:
            check_choice("flow_from", self.flow_from, get_args(FlowFrom))
        if self.synthesis_copy and not self.synthesis_residual:
            raise ValueError(
                "synthesis_copy: adds to the enlarged input, so it needs synthesis_residual=True"
            )
        if not (_is_number(self.reference_temperature) and 0 < self.reference_temperature < float("inf")):
            raise ValueError(
                f"reference_temperature: expected a positive number, got {self.reference_temperature!r}"
            )
        for name in ("channels", "width"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, tuple(value))  # a list, as JSON has it, would be changeable
                if len(value) != len(self.sides):
                    raise ValueError(
                        f"{name}: expected one number or a list of {len(self.sides)}, one per block, got {value}"
                    )
        if not all(_is_whole(number) and 0 < number <= MOST_CHANNELS for number in self.block_channels):
            raise ValueError(
                f"channels: expected positive whole numbers up to {MOST_CHANNELS}, got {self.channels!r}"
            )
        if not all(_is_number(width) and 0 < width <= LARGEST_WIDTH for width in self.block_widths):
            raise ValueError(f"width: expected positive numbers up to {LARGEST_WIDTH}, got {self.width!r}")

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> RPFConfig:
        """From a JSON object; `validate` and `memory`, which older ones have, are no part of the structure.

        Raises:
            TypeError: If there is no such argument.
            ValueError: If a value is outside its range.
        """
        return cls(**{name: value for name, value in saved.items() if name not in ("validate", "memory")})

    @property
    def size(self) -> int:
        """Side of the output, kappa * L."""
        return self.lr_size * self.scale

    @property
    def sides(self) -> tuple[int, ...]:
        """S, side of the output of every block."""
        if not self.progressive:
            return (self.size,)
        return tuple(self.lr_size * 2**n for n in range(1, self.scale.bit_length()))

    @property
    def entry_sides(self) -> tuple[int, ...]:
        """Side of the input of every block; an LR image may have any of them."""
        return (self.lr_size, *self.sides[:-1])

    @property
    def block_channels(self) -> tuple[int, ...]:
        """C of every block."""
        return self._per_block(self.channels)

    @property
    def block_widths(self) -> tuple[float, ...]:
        """Width multiplier of every block."""
        return self._per_block(self.width)

    @property
    def chains_flow(self) -> bool:
        """Whether a block hands its flow to the next one."""
        return self.flow_from == "previous"

    def differences(self, other: RPFConfig) -> dict[str, tuple[Any, Any]]:
        """The arguments that differ, by name: the own value and the other's."""
        pairs = {
            field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _per_block(self, value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.sides)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: With the argument's name and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected {listed(choices)}, got {value!r}")


def listed(values: Sequence[object]) -> str:
    """Values as a message says them: ``8 or 16``."""
    return " or ".join(map(str, values))
