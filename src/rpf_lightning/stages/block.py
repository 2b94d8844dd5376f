"""What the stages of one block share: its input x^(n), and the references aligned to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.model.reconstruction_block import Alignment
from rpf_lightning.model.resize import resize
from rpf_lightning.stages.base import RPFStage
from rpf_lightning.stages.prefix_cache import PrefixCache, open_prefix_cache


class BlockStage(RPFStage):
    """Trains a module of one block on what the frozen blocks before it make.

    Args:
        args: `model_dir`, `block` and `network` of `RPFStage`.
        cache_prefix: Keep x^(n) of the training samples on disk, rounded to 8 bit (see `PrefixCache`).
        entry_fraction: Share of the training samples for which x^(n) is the GT reduced to its side, in place of
            what the earlier blocks make: what the block gets where inference enters at it. Not in the paper. Without
            it the later blocks have never seen a sharp input, and may blur one. Block 1 always gets the LR.
        kwargs: Further arguments of `RPFStage`.

    Raises:
        ValueError: If `entry_fraction` is not in [0, 1], or as `RPFStage`.
    """

    def __init__(
        self, *args: Any, cache_prefix: bool = True, entry_fraction: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        refuse_no_share(entry_fraction)
        self.cache_prefix = cache_prefix
        self.entry_fraction = entry_fraction
        self._kept_prefix: PrefixCache | None = None

    def prefix(self, batch: ReferenceBatch) -> tuple[Tensor, Tensor | None]:
        """x^(n) and the flow before it, without gradients: in training from the cache, or the reduced GT and none."""
        x, flow = self._earlier_blocks(batch)
        if self.entry_fraction and self.block > 1 and self.trainer.training:
            entered = (torch.rand(len(x)) < self.entry_fraction).to(x.device)[:, None, None, None]
            x = torch.where(entered, resize(batch.gt, x.shape[-1]).clamp(0, 1), x)
            flow = None if flow is None else torch.where(entered, 0.0, flow)
        return x, flow

    def align(self, batch: ReferenceBatch) -> tuple[Tensor, Alignment]:
        """x^(n), and the references that the warping module aligns to it."""
        x, flow = self.prefix(batch)
        level = self.model.pyramid(self.references(batch), self.block)[-1]
        return x, self.current_block.align(x, level, flow)

    def on_fit_start(self) -> None:
        """Open the cache of x^(n), after what `RPFStage` does."""
        super().on_fit_start()
        self._kept_prefix = None
        trying = self.trainer.fast_dev_run  # type: ignore[attr-defined]  # which shall leave nothing behind
        # the first block's x is the LR
        if self.block > 1 and self.cache_prefix and self.needs_references and not trying:
            data, folder = getattr(self.trainer, "datamodule", None), self.model_dir / "cache"
            precision = self.trainer.precision
            self._kept_prefix = open_prefix_cache(folder, self.model, self.block, data, precision)

    def _earlier_blocks(self, batch: ReferenceBatch) -> tuple[Tensor, Tensor | None]:
        def compute() -> tuple[Tensor, Tensor | None]:
            with torch.no_grad():
                return self.model.prefix(batch.lr, self.references(batch), self.block)

        if self._kept_prefix is None or not self.trainer.training:
            return compute()
        assert isinstance(batch.place, list)
        return self._kept_prefix.get(batch.place, compute, batch.lr.device)


def refuse_no_share(entry_fraction: float) -> None:
    """Raise a ValueError if it is not in [0, 1]."""
    if not 0 <= entry_fraction <= 1:
        raise ValueError(f"entry_fraction: expected a share in [0, 1], got {entry_fraction}")
