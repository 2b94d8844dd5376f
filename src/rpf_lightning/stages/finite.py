"""Stops a fit whose loss is NaN or infinite, and says on which samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rpf_lightning.files import write_atomically

FILE = "not_finite.json"


class FiniteGuard:
    """Looks at a step's losses one step later: at once, a GPU would have to be waited for in every step."""

    def __init__(self) -> None:
        self._step: tuple[Tensor, dict[str, Tensor], dict[str, Any]] | None = (
            None  # bad or not, values, notes
        )

    def watch(self, values: Mapping[str, Tensor], **notes: Any) -> None:
        """Remember a step's loss values (scalars), and what to write down if one is not finite.

        With several processes all of them get to know, and stop together: no one waits for another for ever.
        """
        kept = {name: value.detach() for name, value in values.items()}
        bad = (~torch.isfinite(torch.stack([value.float() for value in kept.values()]))).any().float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(bad)
        self._step = bad, kept, notes

    def check(self, folder: Path, rank: int = 0) -> None:
        """Raise if the step that was watched last was not finite.

        Args:
            folder: Where the note is written.
            rank: Number of this process.

        Raises:
            FloatingPointError: After the note was written.
        """
        step, self._step = self._step, None
        if step is None or not step[0]:
            return
        values, notes = {name: value.item() for name, value in step[1].items()}, step[2]
        path = folder / (FILE if rank == 0 else f"rank{rank}_{FILE}")
        folder.mkdir(parents=True, exist_ok=True)
        content = {**notes, "values": {name: repr(value) for name, value in values.items()}}
        write_atomically(path, f"{json.dumps(content, indent=2)}\n".encode())
        where = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        raise FloatingPointError(
            f"loss not finite: {where or 'of another process'} in step {notes.get('step')}; the batch's names are in "
            f"{path}. The last checkpoint is from before. Look at these samples, lower the learning rate, or train in "
            "32-true"
        )


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a FloatingPointError that names the tensor, where one holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(
                f"{name} holds NaN or infinite weights: no checkpoint is written of them"
            )
