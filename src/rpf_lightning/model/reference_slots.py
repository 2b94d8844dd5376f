"""Several references per sample: which are there, and how what each of them gives becomes one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-3  # of a pixel that must be shown to count


class Slots:
    """The references of a batch as rows of a batch of their own, without the absent ones.

    One row per reference that is there; a sample without any keeps one row, which is marked as absent. A graph of fixed
    shapes (`packed` False) keeps all.

    Attributes:
        shape: (B,), or (B, K) for five-dimensional input.
        present: (R,) whether the row's reference is there.

    Args:
        level: (B, C, S, S) or (B, K, C, S, S); a reference is absent where its first three channels are zero.
        packed: Whether absent references are left out.
    """

    def __init__(self, level: Tensor, packed: bool = True) -> None:
        there = (level[..., :3, :, :] != 0).flatten(-3).any(-1)
        self.shape = tuple(there.shape)
        self.several = there.ndim == 2
        self.found = there.any(-1) if self.several else there  # (B,)
        self.rows: Tensor | None = None  # places of the rows among all B * K; None: all of them
        self.present, self.counted = there.flatten(), there.flatten()
        if not self.several:
            return
        lonely = ~self.found[:, None]
        self.counted = (there | lonely).flatten()  # those that share the weights between them
        if packed:
            first = torch.arange(there.shape[1], device=there.device) == 0
            kept = (there | (lonely & first)).flatten()
            if not kept.all():
                self.rows = kept.nonzero()[:, 0]
                self.present, self.counted = self.present[self.rows], self.counted[self.rows]

    def of_samples(self, x: Tensor) -> Tensor:
        """What belongs to each sample, (B, ...), for each row: (R, ...)."""
        if not self.several:
            return x
        if self.rows is None:
            return x[:, None].expand(*self.shape, *x.shape[1:]).flatten(0, 1)
        return x[self.rows // self.shape[1]]

    def of_references(self, x: Tensor) -> Tensor:
        """What belongs to each reference, (B, ...) or (B, K, ...), for each row: (R, ...)."""
        flat = x.flatten(0, 1) if self.several else x
        return flat if self.rows is None else flat[self.rows]

    def spread(self, rows: Tensor) -> Tensor:
        """The inverse of `of_references`, zero where a reference is absent."""
        if not self.several:
            return rows
        if self.rows is not None:
            whole = rows.new_zeros((self.shape[0] * self.shape[1], *rows.shape[1:]))
            rows = whole.index_copy(0, self.rows, rows)
        return rows.reshape(*self.shape, *rows.shape[1:])

    def add_up(self, rows: Tensor) -> Tensor:
        """Sum of each sample's rows: (R, ...) -> (B, ...)."""
        if not self.several:
            return rows
        if self.rows is None:
            return rows.reshape(*self.shape, *rows.shape[1:]).sum(1)
        total = torch.zeros_like(rows[:1]).expand(self.shape[0], *rows.shape[1:]).contiguous(
            memory_format=torch.channels_last
        )  # fmt: skip
        return total.index_add(0, self.rows // self.shape[1], rows)

    def softmax(self, logits: Tensor, ok: Tensor) -> Tensor:
        """Weights of each sample's rows at every pixel, proportional to ``ok * exp(logits)``; they add up to 1.

        Where no reference of a sample shows the place, to ``exp(logits)``.

        Args:
            logits: (R, 1, S, S).
            ok: (R, 1, S, S) in [0, 1].
        """
        shown = self.spread(torch.where(self.counted[:, None, None, None], ok, 0.0))  # (B, K, 1, S, S)
        nowhere = self.spread(self.counted.to(ok)[:, None, None, None].expand_as(ok))
        share = torch.where(shown.amax(1, keepdim=True) > LEAST, shown, nowhere)
        counts = share > LEAST
        dense = torch.where(counts, self.spread(logits) + share.clamp(min=LEAST).log(), -torch.inf)
        return self.of_references(dense.softmax(1))


def with_ok(reference: Tensor, mask: Tensor | None) -> Tensor:
    """Add the channel that says where a masked reference is whole, at full size.

    Args:
        reference: (..., 3, S, S), masked.
        mask: (..., 1, S, S), or None: where a channel of the reference is not zero.
    """
    if mask is None:
        mask = (reference != 0).any(-3, keepdim=True)
    return torch.cat((reference, mask.to(reference.dtype)), dim=-3)


def erode(ok: Tensor) -> Tensor:
    """Minimum over 3x3 pixels of (..., 1, S, S); outside the image counts as 1."""
    return -F.max_pool2d(-ok.flatten(0, -4), 3, stride=1, padding=1).view_as(ok)


def distance(low: Tensor, x: Tensor, ok: Tensor) -> Tensor:
    """How far an aligned reference is from the input, at the input's side, after their mean colours are made equal.

    Args:
        low: (R, 3, s, s) the aligned reference, reduced to the input's side.
        x: (R, 3, s, s) the input.
        ok: (R, 1, S, S) where the aligned reference is whole.

    Returns:
        (R, 1, 1, 1) mean absolute difference where the reference is whole; 0 where it is nowhere.
    """
    share = F.avg_pool2d(ok, ok.shape[-1] // x.shape[-1])
    area = share.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    difference = low - x
    difference = difference - (share * difference).sum((2, 3), keepdim=True) / area
    return (share * difference.abs()).sum((1, 2, 3), keepdim=True) / (3 * area)
