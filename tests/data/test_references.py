"""Which references samples get: drawn by seed, epoch and place alone, whoever loads them."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_data import data
from torch import Tensor

from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.data.dataset import collate
from rpf_lightning.data.drawn_references import Drawn, ReferenceOptions, References
from rpf_lightning.data.level_cache import CachedPairs
from rpf_lightning.data.sample import lr_as_reference, mirror

# person a: photos 0-3, of which 0 and 1 are near-duplicates; b: 4-6; c: 7 and 8
IDENTITIES = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"] * 2
PAIRS = [(0, 2), (1, 2), (2, 0), (3, 2), (4, 5), (5, 4), (6, 4), (7, 8), (8, 7)]
TWINS = [(0, 1), (4, 8)]  # and 4 and 8 are one photo under two names


def references(**options: Any) -> References:
    given = ReferenceOptions(**{"references": "all", **options})
    return References(given, PAIRS, range(9), IDENTITIES, TWINS, seed=3)


def draws(given: References, epochs: int = 200) -> list[tuple[int, Drawn]]:
    return [(place, given.draw(place, epoch)) for epoch in range(epochs) for place in range(len(PAIRS))]


def test_any_other_photo_of_the_person_but_near_duplicates() -> None:
    seen = Counter((place, *drawn.photos) for place, drawn in draws(references()))
    expected = {
        (0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3), (3, 0), (3, 1), (3, 2),
        (4, 5), (4, 6), (5, 4), (5, 6), (6, 4), (6, 5), (7, 8), (8, 7),
    }  # fmt: skip
    assert set(seen) == expected
    for place, other in ((0, 2), (2, 3), (5, 6)):
        assert 0.7 < seen[place, other] * len(references().own(place)) / 200 < 1.3


def test_draws_depend_on_seed_epoch_and_place_alone() -> None:
    options = {"max_references": 3, "several_fraction": 0.5, "wrong_fraction": 0.3, "self_fraction": 0.2}
    first, again = draws(references(**options), 50), references(**options)
    backwards = [
        (place, again.draw(place, epoch)) for epoch in range(49, -1, -1) for place in range(8, -1, -1)
    ]
    assert first[::-1] == backwards
    assert len({drawn.seed for _, drawn in first}) == len(first)
    again.seed = 4
    assert draws(again, 50) != first


def test_shares_are_what_was_asked_for() -> None:
    given = references(wrong_fraction=0.2, absent_fraction=0.1, self_fraction=0.3)
    found = Counter(drawn.kind for _, drawn in draws(given, 600))
    for kind, share in (("wrong", 0.2), ("absent", 0.1), ("self", 0.3), ("own", 0.4)):
        assert found[kind] / 5400 == pytest.approx(share, abs=0.025)


def test_each_kind_shows_whom_it_says() -> None:
    given = references(
        wrong_fraction=0.3, absent_fraction=0.2, self_fraction=0.2, max_references=3, several_fraction=0.5
    )
    for place, drawn in draws(given):
        gt = PAIRS[place][0]
        people = {IDENTITIES[photo] for photo in drawn.photos}
        assert len(set(drawn.photos)) == len(drawn.photos) <= 3
        if drawn.kind == "absent":
            assert drawn.photos == ()
        elif drawn.kind == "self":
            assert drawn.photos == (gt,)
        elif drawn.kind == "own":
            assert people == {IDENTITIES[gt]}
            assert gt not in drawn.photos
        else:
            assert len(people) == 1
            assert people != {IDENTITIES[gt]}
            assert not {(gt, photo) for photo in drawn.photos} & {(4, 8), (8, 4)}
            assert max(drawn.photos) < 9  # of the training part


def test_several_where_the_person_has_the_photos() -> None:
    counts: dict[int, Counter[int]] = {place: Counter() for place in range(len(PAIRS))}
    for place, drawn in draws(references(max_references=3, several_fraction=0.3), 600):
        counts[place][len(drawn.photos)] += 1
    assert set(counts[7]) == set(counts[8]) == {1}
    assert set(counts[0]) == set(counts[4]) == {1, 2}
    assert set(counts[2]) == {1, 2, 3}
    for place in range(7):
        assert 1 - counts[place][1] / 600 == pytest.approx(0.3, abs=0.06)
    assert 0.6 < counts[2][2] / counts[2][3] < 1.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"references": "some"}, "references: expected nearest or all, got 'some'"),
        ({"max_references": 0}, "max_references: expected at least 1, got 0"),
        ({"max_references": 2}, "max_references: expected references: all with 2"),
        ({"references": "all", "several_fraction": 0.3}, "several_fraction: expected max_references of at least 2"),
        ({"wrong_fraction": -0.1}, r"wrong_fraction: expected a share in \[0, 1\], got -0.1"),
        ({"absent_fraction": 1.1}, r"absent_fraction: expected a share in \[0, 1\], got 1.1"),
        ({"self_fraction": float("nan")}, r"self_fraction: expected a share in \[0, 1\], got nan"),
        ({"wrong_fraction": 0.5, "self_fraction": 0.6}, "wrong_fraction, absent_fraction and self_fraction: expected"),
        ({"colour_jitter": -1}, r"colour_jitter: expected a strength in \[0, 1\], got -1"),
        ({"similarity_jitter": 0.6}, r"similarity_jitter: expected a strength in \[0, 0.5\], got 0.6"),
        ({"reference": "lr", "wrong_fraction": 0.1}, "reference: expected photo where references are drawn"),
        ({"flow_target": "affine"}, "flow_target: expected tps, similarity or a number"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticFacesDataModule(**options)


def test_another_person_has_to_be_there() -> None:
    with pytest.raises(ValueError, match="wrong_fraction: expected photos of at least two people"):
        References(ReferenceOptions(wrong_fraction=0.1), [(0, 1)], [0, 1], ["a", "a"], [], 0)
    alone = References(ReferenceOptions(wrong_fraction=1), [(0, 2)], [0, 1], ["a", "b"], [(0, 1)], 0)
    with pytest.raises(ValueError, match="wrong_fraction: no photo of a person other than 'a'"):
        alone.draw(0, 0)


# Through the datamodule

ALL: dict[str, Any] = {
    "references": "all", "max_references": 2, "several_fraction": 0.5, "wrong_fraction": 0.2, "absent_fraction": 0.1,
    "self_fraction": 0.1, "colour_jitter": 0.1, "similarity_jitter": 0.05, "flip": True,
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_workers_that_stay_give_the_same_samples(prepared: Path) -> None:
    """They hold copies of the dataset from before the first epoch."""
    epochs = []
    for workers in (0, 2):
        loader = data(prepared, **ALL, num_workers=workers).train_dataloader()
        found = []
        for epoch in (0, 1, 4):
            loader.sampler.set_epoch(epoch)
            found.append(list(loader))
        epochs.append(found)
    for one, two in zip(*epochs, strict=True):
        assert len(one) == 4
        assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_a_resumed_epoch_gives_the_same_rest(prepared: Path) -> None:
    def begun(epoch: int) -> Any:
        loader = data(prepared, **ALL).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return loader

    whole = list(begun(2))
    interrupted = begun(2)
    iterator = iter(interrupted)
    next(iterator)
    resumed = begun(2)
    resumed.load_state_dict(interrupted.state_dict())
    rest = list(resumed)
    assert len(rest) == 3
    assert all(same(a, b) for a, b in zip(rest, whole[1:], strict=True))


def test_training_batches_have_an_axis_of_references_and_validation_has_not(prepared: Path) -> None:
    module = data(prepared, **ALL)
    loader, kinds = module.train_dataloader(), set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch.reference.shape == (3, 2, 3, 16, 16)
            assert batch.reference_mask.shape == batch.reference_ok.shape == (3, 2, 1, 16, 16)
            assert batch.flow.shape == (3, 2, 2, 16, 16)
            assert batch.flow_known.shape == (3, 2)
            assert batch.reference_landmarks.shape == (3, 2, 68, 2)
            assert batch.gt_landmarks.shape == (3, 68, 2)
            assert batch.warped_reference is None
            for row, (gt, given) in enumerate(zip(batch.id, batch.reference_id, strict=True)):
                for slot, name in enumerate(given):
                    known = name.split("-")[0] == gt.split("-")[0]  # the person; "" where absent
                    assert batch.flow_known[row, slot] == known
                    if not name:
                        fields = (
                            "reference",
                            "reference_mask",
                            "reference_ok",
                            "flow",
                            "reference_landmarks",
                        )
                        assert all(getattr(batch, of)[row, slot].abs().max() == 0 for of in fields)
                    kinds.add((bool(name), known, name == gt))
    assert kinds == {(False, False, False), (True, True, False), (True, True, True), (True, False, False)}
    plain = data(prepared)
    for loaders in zip(*((m.val_dataloader(), m.test_dataloader()) for m in (module, plain)), strict=True):
        for a, b in zip(*loaders, strict=True):
            assert a.reference.shape == (3, 3, 16, 16)
            assert same(a, b)


def test_one_reference_has_no_axis(prepared: Path) -> None:
    module = data(prepared, references="all", absent_fraction=0.3)
    dataset = module.train_dataset
    samples = [dataset[place, epoch] for place in range(24) for epoch in range(4)]
    batch = collate(samples)
    assert batch.reference.shape == (96, 3, 16, 16)
    assert batch.flow_known.shape == (96,)
    absent = torch.tensor([name == "" for name in batch.reference_id])
    assert 15 < absent.sum() < 45
    assert torch.equal(batch.flow_known == 0, absent)
    assert batch.reference[absent].abs().max() == batch.reference_landmarks[absent].abs().max() == 0
    twice = mirror(mirror(batch))
    torch.testing.assert_close(twice.reference_landmarks, batch.reference_landmarks)
    assert torch.equal(twice.flow, batch.flow)


def test_mirrored_samples_with_several_references(prepared: Path) -> None:
    module = data(prepared, **{**ALL, "several_fraction": 1.0})
    dataset = module.train_dataset
    straight, flipped = collate([dataset[0, 1]]), collate([dataset[12, 1]])
    assert straight.reference_id == flipped.reference_id
    assert torch.equal(flipped.reference, straight.reference.flip(-1))
    assert torch.equal(flipped.flow[:, :, 0], -straight.flow[:, :, 0].flip(-1))
    assert torch.equal(flipped.flow[:, :, 1], straight.flow[:, :, 1].flip(-1))
    assert torch.equal(flipped.flow_known, straight.flow_known)


def test_references_of_the_training_part_alone(prepared: Path) -> None:
    """All of its people's photos, also those that a limit leaves out."""
    module = data(prepared, references="all", wrong_fraction=0.5, limit_train=3)
    photos, found = module.prepared(), module.split_pairs()
    people = {photos.identities[pair.gt] for pair in found.val}
    trained = [place for place, name in enumerate(photos.identities) if name not in people]
    assert list(found.trained) == trained
    assert isinstance(module.train_dataset, CachedPairs)  # all of them are in the cache
    names = {module.train_dataset[place, epoch].reference_id for place in range(3) for epoch in range(80)}
    assert len(names) > 9
    assert names <= {photos.ids[place] for place in trained}


RANDOM: list[dict[str, Any]] = [
    {"references": "all"}, {"wrong_fraction": 0.1}, {"absent_fraction": 0.1}, {"self_fraction": 0.1},
    {"colour_jitter": 0.1}, {"similarity_jitter": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", [*RANDOM, {"references": "all", "cache_side": 0}])
def test_nothing_is_kept_of_random_references(prepared: Path, options: dict[str, Any]) -> None:
    """Two epochs would share a row of x^(n) and flow that only one of them made."""
    module = data(prepared, **options)
    dataset = module.train_dataset
    assert dataset.random
    assert dataset.fingerprint() is None
    assert module.training_key() is None
    assert module.val_dataset_.fingerprint() is not None
    epochs = range(1, 4)
    assert any(not same(dataset[place, 0], dataset[place, epoch]) for place in range(12) for epoch in epochs)
    assert any(isinstance(index, tuple) for index in module.train_dataloader().sampler)


@pytest.mark.parametrize("cache_side", [0, 64])
def test_what_a_kept_row_depends_on_is_in_its_key(prepared: Path, cache_side: int) -> None:
    targets = ("tps", "similarity", 0.5, 1.0)
    modules = [data(prepared, flow_target=target, cache_side=cache_side) for target in targets]
    keys = [module.training_key() for module in modules]
    assert None not in keys
    assert keys[3] == keys[0]  # all of the rest
    assert len(set(keys)) == 3
    flows = [module.train_dataset[0].flow for module in modules]
    assert not torch.equal(flows[0], flows[1])
    torch.testing.assert_close(flows[2], (flows[0] + flows[1]) / 2)
    torch.testing.assert_close(modules[2].val_dataset(side=16)[0].flow, modules[2].val_dataset_[0].flow)


def test_r_warp_is_made_where_the_trainers_module_needs_it(prepared: Path) -> None:
    def sample(**module: Any) -> Any:
        made = data(prepared)
        made.trainer = SimpleNamespace(lightning_module=SimpleNamespace(**module))
        made.setup("fit")
        return made.train_dataset[0], made.val_dataset_[0]

    for given in sample(), sample(needs_warped_reference=False):
        assert given[0].warped_reference is given[1].warped_reference is None
    train, val = sample(needs_warped_reference=True)
    assert train.warped_reference.shape == val.warped_reference.shape == (3, 16, 16)
    batch = collate([train, train])
    assert batch.warped_reference.shape == (2, 3, 16, 16)
    bare = mirror(collate([train._replace(warped_reference=None)]))
    assert bare.warped_reference is None
    assert lr_as_reference(bare, 64).warped_reference is None


def test_warping_fits_may_draw_their_references(prepared: Path) -> None:
    """r_warp is that of the references which were drawn, zero where there is none."""
    dataset = data(
        prepared, references="all", absent_fraction=0.3, self_fraction=0.2, warped_reference=True
    ).train_dataset
    batch = collate([dataset[place, epoch] for place in range(12) for epoch in range(4)])
    assert batch.warped_reference.shape == batch.gt.shape
    for row, (gt, name) in enumerate(zip(batch.id, batch.reference_id, strict=True)):
        warped = batch.warped_reference[row]
        if not name:
            assert warped.abs().max() == 0
        elif name == gt:
            inside = batch.gt_mask[row] > 0
            assert ((warped - batch.gt[row]).abs() * inside).mean() < 0.02


def test_faces_in_memory_have_random_references_too() -> None:
    module = SyntheticFacesDataModule(
        people=4, photos_each=3, lr_size=8, size=32, side=16, batch_size=2, references="all", max_references=2,
        several_fraction=0.5,
    )  # fmt: skip
    module.setup()
    names = {module.train_dataset[0, epoch].reference_id for epoch in range(20)}
    assert len({tuple(sorted(name)) for name in names}) == 3
    assert next(iter(module.train_dataloader())).reference.shape == (2, 2, 3, 16, 16)
