"""What methods get, and what may be wrong with an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ENLARGED_LR = "enlarged LR"
"""What stands for the name of a reference that is the enlarged LR."""


class EvaluationBatch(NamedTuple):
    """Pairs at full size; a dataset yields it without the leading batch dimension.

    Attributes:
        lr: (B, 3, L, L) in [0, 1].
        gt: (B, 3, S, S) in [0, 1].
        mask: (B, 1, S, S) facial mask of the GT, 0 or 1.
        reference: (B, 3, S, S) reference of the same person, masked where `masked` says so.
        other: (B, 3, S, S) reference of another person; None where no method asks for it.
        id: Name of the GT photo.
        reference_id: Name of the reference; `ENLARGED_LR` where that stands for it.
        other_id: Name of the other person's; None without one.
        unmasked: (B, 3, S, S) the reference of the same person without the mask; None where no method asks for it.
        masked: Whether the non-facial region of references is removed (eq. 1); one for the whole batch.
    """

    lr: Tensor
    gt: Tensor
    mask: Tensor
    reference: Tensor
    other: Tensor | None
    id: str | list[str]
    reference_id: str | list[str]
    other_id: str | list[str] | None
    unmasked: Tensor | None = None
    masked: bool = True

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
    columns: list[Any] = []
    for first, *others in zip(*samples, strict=True):
        if isinstance(first, Tensor):
            columns.append(torch.stack([first, *others]))
        else:
            columns.append([first, *others] if isinstance(first, str) else first)
    return EvaluationBatch(*columns)


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
