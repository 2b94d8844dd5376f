"""How the steps of a module's forward run: on whole feature maps, or in strips, a few rows of them at a time.

A 64-channel map of side 1024 has 268 MB. Handing out that much fresh memory for every layer costs a CPU time (how
much: `benchmarks/RESULTS.md`), and several such maps exceed a small memory. So a forward divides what it does into
steps between the maps that have to be whole, and hands each of them to a `Rows`: convolutions, whose value at a pixel
depends on a few rows around it. On strips the step sees `halo` rows more than are kept of it, so that what the zero
padding at a cut spoils is thrown away, and at the image's border none, where zero padding is right.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

Maps = TypeVar("Maps", bound=Tensor | tuple[Tensor, ...])

STRIP_BYTES = 16 * 2**20  # of the widest map in a strip; what is freed the C library keeps up to 32 MB


class Rows:
    """Runs steps on whole maps: what training, export and a GPU do.

    Attributes:
        low: Whether the largest maps are computed twice instead of kept.
        window: How many strips are taken at once where a step has steps of its own.
    """

    low = False
    window = 1

    def __call__(
        self,
        step: Callable[..., Maps],
        *maps: Tensor,
        halo: int,
        channels: int,
        strips: int = 1,
        into: Tensor | None = None,
    ) -> Maps:
        """Run a step.

        Args:
            step: From the maps, or as many rows of each, to one map or several, of other sides if need be.
            *maps: (B, C, H, W) each, or of an H/2, H/4, ...
            halo: On how many rows above and below a row of the result depends, counted in those of side H.
            channels: Of the widest map inside the step, counted at side H.
            strips: How many are taken at once.
            into: May be overwritten by the result, which has its shape, layout and type.

        Returns:
            What the step returns of the whole maps.
        """
        return step(*maps)


WHOLE = Rows()


class Strips(Rows):
    """Runs steps on strips of rows, without gradients, in channels_last.

    Args:
        low: See `Rows`.
    """

    def __init__(self, low: bool = False) -> None:
        self.low, self.window = low, 2 if low else 4

    def __call__(
        self,
        step: Callable[..., Maps],
        *maps: Tensor,
        halo: int,
        channels: int,
        strips: int = 1,
        into: Tensor | None = None,
    ) -> Maps:
        """Run a step; see `Rows`."""
        maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in maps)
        heights = [x.shape[2] for x in maps]
        height, width = max((x.shape[2], x.shape[3]) for x in maps)
        unit = max(
            height // min(heights), 2
        )  # a cut lies between rows of every map, also of one of H/2 that is made
        bytes_of_row = max(len(x) for x in maps) * channels * width * 4
        rows = -(-height // -(-height * bytes_of_row // (strips * STRIP_BYTES)))
        rows, halo = (-(-length // unit) * unit for length in (rows, halo))
        if rows >= height:
            return step(*maps)
        results: list[Tensor] = []
        for first in range(0, height, rows):
            stop = min(first + rows, height)
            low, high = max(first - halo, 0), min(stop + halo, height)
            made = step(
                *(x[:, :, low * h // height : high * h // height] for x, h in zip(maps, heights, strict=True))
            )
            parts: tuple[Tensor, ...] = (made,) if isinstance(made, Tensor) else made
            if not results:
                results = [_whole(part, height, high - low) if into is None else into for part in parts]
            for result, part in zip(results, parts, strict=True):
                start, end, offset = (row * result.shape[2] // height for row in (first, stop, first - low))
                result[:, :, start:end] = part[:, :, offset : offset + end - start]
            single = isinstance(made, Tensor)
            del made, parts, part
        if results[0].device.type == "cpu":
            release()
        return cast(Maps, results[0] if single else tuple(results))


def _whole(part: Tensor, height: int, rows: int) -> Tensor:
    """Room for a map of which a window of `rows` of `height` rows made this part."""
    shape = (*part.shape[:2], part.shape[2] * height // rows, part.shape[3])
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)


def release() -> None:
    """Give the system back what the C library keeps of freed strips, which would add up to hundreds of MB.

    Only glibc needs to be told.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
