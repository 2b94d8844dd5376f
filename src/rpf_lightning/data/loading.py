"""The order of the samples, and a loader that a resumed fit enters in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler


class Shuffled(DistributedSampler[int]):
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
    """

    def __init__(self, count: int, flip: bool, seed: int, rank: int = 0, processes: int = 1) -> None:
        super().__init__(range(count), processes, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.count, self.flip = count, flip
        self.start = 0  # samples of the next epoch to leave out

    def __len__(self) -> int:
        return self.count // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Draw the epoch."""
        numbers = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(numbers[0]) >> 1)
        order = torch.randperm(self.count, generator=generator)
        if self.flip:
            order += self.count * torch.randint(2, (self.count,), generator=generator)
        start, self.start = self.start, 0
        mine = order[self.rank : len(self) * self.num_replicas : self.num_replicas]
        return iter(mine[start:].tolist())


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose state is how many batches of the epoch it has given.

    Lightning writes it into checkpoints. Restored, the next epoch begins behind these batches, without reading
    them. It also draws the seed that workers get from a generator of its own: the global one belongs to the
    training steps, which have to go on after a resume as if nothing had been.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(0)
        self.given = 0
        self._skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the epoch, or the rest of it."""
        skip, self._skip = self._skip, 0
        if isinstance(self.sampler, Shuffled) and self.batch_size is not None:
            self.sampler.start, left = skip * self.batch_size, 0
        else:
            left = skip
        self.given = skip
        for batch in islice(super().__iter__(), left, None):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches given in this epoch."""
        return {"batches": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Leave these batches out of the next epoch."""
        self._skip = state_dict["batches"]
