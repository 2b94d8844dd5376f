"""Order of the samples, and going on in the middle of an epoch."""

import random
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from rpf_lightning.data.loading import ResumableLoader, Shuffled


def epoch(sampler: Shuffled, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = Shuffled(50, True, 3)
    orders = [epoch(first, number) for number in (0, 1, 2)]
    torch.manual_seed(99)
    assert [epoch(Shuffled(50, True, 3), number) for number in (2, 0)] == [orders[2], orders[0]]
    assert len({tuple(order) for order in orders}) == 3
    assert epoch(Shuffled(50, True, 4), 0) != orders[0]


@pytest.mark.parametrize("flip", [True, False])
def test_every_sample_once_and_half_in_a_mirror(flip: bool) -> None:
    order = epoch(Shuffled(1000, flip, 0), 0)
    assert sorted(place % 1000 for place in order) == list(range(1000))
    mirrored = sum(place >= 1000 for place in order)
    assert 430 < mirrored < 570 if flip else mirrored == 0


def test_processes_share_an_epoch_out() -> None:
    parts = [epoch(Shuffled(11, True, 0, rank, 3), 5) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3] == [len(Shuffled(11, True, 0, r, 3)) for r in range(3)]
    assert len({place % 11 for part in parts for place in part}) == 9
    whole = epoch(Shuffled(11, True, 0), 5)
    assert {place for part in parts for place in part} == set(whole[:9])
    epochs = [epoch(Shuffled(11, False, 0, rank, 3), number) for rank in range(3) for number in range(6)]
    assert set().union(*epochs) == set(range(11))  # what does not divide is left out of one epoch only


class Numbers(Dataset[int]):
    def __init__(self, count: int) -> None:
        self.read: list[int] = []
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


def loader(workers: int = 0, **kwargs: Any) -> ResumableLoader:
    return ResumableLoader(
        Numbers(10), batch_size=2, sampler=Shuffled(10, False, 0), num_workers=workers,
        persistent_workers=workers > 0, **kwargs,
    )  # fmt: skip


def batches(given: ResumableLoader, number: int = 0) -> list[list[int]]:
    given.sampler.set_epoch(number)
    return [batch.tolist() for batch in given]


@pytest.mark.parametrize("workers", [0, 1])
def test_goes_on_within_an_epoch(workers: int) -> None:
    whole = loader(workers)
    wanted = [batches(whole, number) for number in range(2)]
    first = loader(workers)
    first.sampler.set_epoch(1)
    iterator = iter(first)
    begun = [next(iterator).tolist() for _ in range(2)]
    state = first.state_dict()
    resumed = loader(workers)
    resumed.load_state_dict(state)
    assert begun + batches(resumed, 1) == wanted[1]
    assert resumed.state_dict() == {"batches": 5, "epoch": 1, "batch_size": 2, "processes": 1, "of": 5}
    assert batches(resumed, 0) == wanted[0]  # and the next epoch is whole


def state(given: int, **changes: int) -> dict[str, int]:
    return {"batches": given, "epoch": 0, "batch_size": 2, "processes": 1, "of": 5, **changes}


def test_another_epoch_is_whole() -> None:
    resumed = loader()
    resumed.load_state_dict(state(3))
    assert len(batches(resumed, 1)) == 5
    resumed.load_state_dict(state(5))
    assert batches(resumed, 0) == []
    assert len(batches(resumed, 0)) == 5  # the state counts once


@pytest.mark.parametrize("given", [1, 9])
@pytest.mark.parametrize("changed", ["batch_size", "processes"])
def test_another_division_of_the_rest_is_refused(changed: str, given: int) -> None:
    """Also where more batches were given than an epoch has now."""
    resumed = loader()
    resumed.load_state_dict(state(given, **{changed: 4, "of": 10}))
    with pytest.raises(ValueError, match=rf"written within an epoch.*{changed}: 4 then, \d now"):
        batches(resumed)
    resumed.load_state_dict(state(given, **{changed: 4, "of": 10}))
    assert len(batches(resumed, 1)) == 5
    resumed.load_state_dict(state(10, **{changed: 4, "of": 10}))  # a whole epoch
    assert batches(resumed, 0) == []


def test_state_of_an_older_release_is_refused() -> None:
    resumed = loader()
    resumed.load_state_dict({"batches": 3})
    with pytest.raises(ValueError, match=r"epoch: None then, 0 now"):
        batches(resumed)


def test_does_not_read_what_was_given_before() -> None:
    resumed = loader()
    resumed.load_state_dict(state(3))
    rest = batches(resumed)
    assert resumed.dataset.read == [place for batch in rest for place in batch]
    assert len(rest) == 2


def test_any_other_sampler_is_skipped_as_well() -> None:
    resumed = ResumableLoader(Numbers(6), batch_size=2)
    resumed.load_state_dict(state(1, of=3))
    assert [batch.tolist() for batch in resumed] == [[2, 3], [4, 5]]


def test_leaves_the_global_generator_alone() -> None:
    def drawn(given: DataLoader[Any]) -> list[float]:
        torch.manual_seed(0)
        random.seed(0)
        return [torch.rand(()).item() for _ in given]

    plain = drawn(DataLoader(Numbers(4)))
    torch.manual_seed(0)
    untouched = [torch.rand(()).item() for _ in range(4)]
    assert drawn(ResumableLoader(Numbers(4))) == untouched != plain


def test_the_epoch_travels_with_the_place() -> None:
    plain, told = Shuffled(10, True, 3, 1, 2), Shuffled(10, True, 3, 1, 2, with_epoch=True)
    for number in (0, 4):
        assert epoch(told, number) == [(place, number) for place in epoch(plain, number)]
    told.start = 2
    assert epoch(told, 4) == [(place, 4) for place in epoch(plain, 4)[2:]]
