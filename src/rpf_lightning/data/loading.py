"""The order of the samples, and a loader that a resumed fit enters in the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler


class Shuffled(DistributedSampler[int | tuple[int, int]]):
    """Every sample once per epoch, in random order, each as it is or in a mirror.

    The order is a function of seed and epoch alone; Lightning calls `set_epoch`. Processes share an epoch out
    between them; what does not divide is left out, and another part of it in every epoch. (Lightning replaces
    samplers that are no DistributedSampler.)

    Args:
        count: Number of samples n; n .. 2n - 1 are their mirror images.
        flip: Whether to flip half of them.
        seed: Draws order and flips: datasets hold nothing random, so workers have nothing to seed.
        rank: This process.
        processes: All of them.
        with_epoch: Give (place, epoch) in place of the place: what else is random about a sample depends on it, and
            workers that stay would not learn of it otherwise.
    """

    def __init__(
        self, count: int, flip: bool, seed: int, rank: int = 0, processes: int = 1, with_epoch: bool = False
    ) -> None:
        super().__init__(range(count), processes, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.count, self.flip, self.with_epoch = count, flip, with_epoch
        self.start = 0  # samples of the next epoch to leave out

    def __len__(self) -> int:
        return self.count // self.num_replicas

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        """Draw the epoch."""
        numbers = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(numbers[0]) >> 1)
        order = torch.randperm(self.count, generator=generator)
        if self.flip:
            order += self.count * torch.randint(2, (self.count,), generator=generator)
        start, self.start = self.start, 0
        mine = order[self.rank : len(self) * self.num_replicas : self.num_replicas]
        places: list[int] = mine[start:].tolist()
        return iter([(place, self.epoch) for place in places] if self.with_epoch else places)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is how many batches of which epoch it has given.

    Lightning writes it into checkpoints. Restored, that epoch begins behind these batches, without reading them;
    another epoch is whole. It also draws the seed that workers get from a generator of its own: the global one
    belongs to the training steps, which have to go on after a resume as if nothing had been.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(0)
        self.given = 0
        self._restored: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the epoch, or the rest of it.

        Raises:
            ValueError: If the rest of an epoch would be another part of it, since batch size or number of
                processes changed.
        """
        left = self.given = self._given_before()
        if isinstance(self.sampler, Shuffled) and self.batch_size is not None:
            self.sampler.start, left = left * self.batch_size, 0
        for batch in islice(super().__iter__(), left, None):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches given in this epoch, which epoch it is, and what a batch is."""
        return {"batches": self.given, **self._epoch()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Leave these batches out if it is their epoch that begins next."""
        self._restored = dict(state_dict)

    def _epoch(self) -> dict[str, int]:
        return {
            "epoch": getattr(self.sampler, "epoch", 0),
            "batch_size": self.batch_size or 0,
            "processes": getattr(self.sampler, "num_replicas", 1),
            "of": len(self),
        }

    def _given_before(self) -> int:
        """How many batches of this epoch a checkpoint was written after."""
        state, self._restored = self._restored, None
        now = self._epoch()
        if state is None or state.get("epoch", now["epoch"]) != now["epoch"]:
            return 0
        if state["batches"] >= state.get("of", math.inf):
            return len(self)
        changed = [name for name in now if state.get(name) != now[name]]
        if changed:
            text = ", ".join(f"{name}: {state.get(name)} then, {now[name]} now" for name in changed)
            raise ValueError(
                f"the checkpoint was written within an epoch, whose rest is another one now ({text}). Put it back, or "
                "delete the fit's run folder to train it anew"
            )
        return state["batches"]
