"""The dataset and the datamodules, on made-up photos and on a few real ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from small_data import PhotoList

from rpf_lightning.data.batches import Photo, ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.pairs_datamodule import PairsDataModule, SplitPairs, pairs_by_identity
from small_fits import QUIET

SIDES = {"lr_size": 8, "size": 32, "side": 16}


def made_up_photos() -> PhotoList:
    """Three photos of each of ten people; the second of each is a near-duplicate of the first."""
    rng, photos = np.random.default_rng(0), []
    for person in range(10):
        points, image = rng.uniform(0.2, 0.8, (68, 2)), rng.integers(0, 256, (32, 32, 3), np.uint8)
        other = rng.integers(0, 256, (32, 32, 3), np.uint8)
        for i, (shift, pixels) in enumerate(((0, image), (0.001, image), (0.02, other))):
            mask = np.ones((32, 32), np.uint8)
            photos.append(Photo(f"{person}-{i}", f"p{person}", pixels, (points + shift) * 32, mask))
    return PhotoList(photos)


class MadeUpDataModule(PairsDataModule):
    """Counts how often the photos are asked for."""

    calls = 0

    def find_pairs(self) -> SplitPairs:
        self.calls += 1
        return pairs_by_identity(made_up_photos(), self.val_fraction, self.seed)


def test_dataset_yields_the_pair_and_caches_it() -> None:
    photos = made_up_photos()
    dataset = PairsDataset(photos, [Pair(0, 2, 0.02), Pair(3, 5, 0.02)], **SIDES, cache_mb=1)
    assert len(dataset) == 2
    first = dataset[1]
    assert (first.id, first.reference_id) == ("1-0", "1-2")
    assert first.gt.shape == (3, 16, 16)
    assert photos.reads == 2
    assert dataset[1].gt is first.gt
    assert photos.reads == 2
    bare = PairsDataset(photos, [Pair(0, 2, 0.02)], **SIDES)  # without memory
    torch.testing.assert_close(bare[0].gt, bare[0].gt)
    assert photos.reads == 6


def test_cache_budget_counts_all_samples() -> None:
    sides = {"lr_size": 8, "size": 256, "side": 256}  # 2.75 MiB and 1.8 kB a sample, 3.5 MiB with r_warp
    pairs = [Pair(0, 2, 0.02)] * 10
    for warped, megabytes in ((False, 28), (True, 36)):
        given = {**sides, "warped": warped}
        assert PairsDataset(made_up_photos(), pairs, **given, cache_mb=megabytes).cached
        assert not PairsDataset(made_up_photos(), pairs, **given, cache_mb=megabytes - 1).cached


def test_parts_share_no_person_and_duplicates_are_no_references() -> None:
    module = MadeUpDataModule(**SIDES, val_fraction=0.3)
    module.setup("fit")
    module.setup("fit")
    assert module.calls == 1
    assert len(module.split_pairs().duplicates) == 10
    train, val = module.train_dataset, module.val_dataset_
    assert (len(train), len(val)) == (21, 9)
    identities = made_up_photos().identities
    people = [{identities[i] for pair in part.pairs for i in pair[:2]} for part in (train, val)]
    assert not people[0] & people[1]
    for pair in train.pairs + val.pairs:
        assert identities[pair.gt] == identities[pair.reference]
        assert {pair.gt % 3, pair.reference % 3} != {0, 1}


def test_limits_are_evenly_spread() -> None:
    module = MadeUpDataModule(**SIDES, val_fraction=0.3, limit_train=7, limit_val=100)
    module.setup()
    assert len(module.train_dataset) == 7
    assert len({pair.gt // 3 for pair in module.train_dataset.pairs}) == 7  # one of each person
    assert len(module.val_dataset_) == 9


def test_loaders() -> None:
    module = MadeUpDataModule(**SIDES, batch_size=5)
    module.setup()
    batches = list(module.train_dataloader())
    assert len(batches) == len(module.train_dataset) // 5 == 4  # of 24
    assert all(len(batch.id) == len(batch.reference_id) == 5 for batch in batches)  # the last one is dropped
    assert batches[0].lr.shape == (5, 3, 8, 8)
    assert batches[0].flow.shape == (5, 2, 16, 16)
    in_order = [module.train_dataset.photos.ids[pair.gt] for pair in module.train_dataset.pairs]
    assert [name for batch in batches for name in batch.id] != in_order[:20]
    loaders = (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader())
    expected = [module.val_dataset_.photos.ids[pair.gt] for pair in module.val_dataset_.pairs]
    for loader in loaders:
        assert [name for batch in loader for name in batch.id] == expected
    module.batch_size = 1000
    with pytest.raises(ValueError, match="batch_size=1000"):
        module.train_dataloader()


def test_lightning_runs_it() -> None:
    """Through a real Trainer: the sides are found, NamedTuples survive, workers pickle the dataset."""

    class Counting(LightningModule):
        lr_size, size, side = 8, 32, 16

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)
            self.seen: list[str] = []

        def training_step(self, batch: ReferenceBatch, index: int) -> torch.Tensor:
            self.seen += batch.id
            return (self.layer(batch.reference) - batch.gt).abs().mean()

        def validation_step(self, batch: ReferenceBatch, index: int) -> None:
            assert batch.gt.shape[1:] == (3, 16, 16)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    model = Counting()
    Trainer(max_epochs=1, **QUIET).fit(model, MadeUpDataModule(batch_size=4, num_workers=1))
    assert len(model.seen) == 24


def test_sides_come_from_the_module_of_the_trainer() -> None:
    module = MadeUpDataModule(side=32)
    with pytest.raises(ValueError, match="lr_size is unknown"):
        module.setup()
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(lr_size=8, size=32, side=16))
    module.setup()
    assert module.train_dataset[0].gt.shape == (3, 32, 32)  # an argument wins
    assert module.train_dataset[0].lr.shape == (3, 8, 8)
    module.side = None
    module.setup()
    assert module.train_dataset[0].gt.shape == (3, 16, 16)  # the next block, same photos
    assert module.calls == 1
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(lr_size=8, size=32))
    with pytest.raises(ValueError, match="side is unknown"):
        module.setup()


def test_evaluation_with_own_and_other_person() -> None:
    module = MadeUpDataModule(lr_size=8, size=32, val_fraction=0.3, limit_val=4)
    own, other = module.val_dataset(), module.val_dataset(side=16, other_person=True)
    assert own[0].gt.shape == (3, 32, 32)
    assert other[0].gt.shape == (3, 16, 16)
    assert [pair.gt for pair in own.pairs] == [pair.gt for pair in other.pairs]
    photos = own.photos
    val_people = {photos.identities[i] for i in range(30)} - {
        photos.identities[pair.gt] for pair in module.split_pairs().train
    }
    for a, b in zip(own.pairs, other.pairs, strict=True):
        assert photos.identities[a.gt] == photos.identities[a.reference]
        assert photos.identities[b.gt] != photos.identities[b.reference]
        assert photos.identities[b.reference] in val_people


def test_no_pairs_is_an_error() -> None:
    class Strangers(PairsDataModule):
        def find_pairs(self) -> SplitPairs:
            photos = made_up_photos()
            photos.identities = photos.ids
            return pairs_by_identity(photos, 0.3, 0)

    with pytest.raises(ValueError, match="no pair among 30 photos"):
        Strangers(**SIDES).setup()


def test_datasets_of_the_same_photos_share_their_samples() -> None:
    photos = made_up_photos()
    first = PairsDataset(photos, [Pair(0, 2, 0.0)], **SIDES, cache_mb=1)[0]
    reads = photos.reads
    assert PairsDataset(photos, [Pair(3, 5, 0.0), Pair(0, 2, 0.0)], **SIDES, cache_mb=1)[1].gt is first.gt
    assert photos.reads == reads
    assert PairsDataset(photos, [Pair(0, 2, 0.0)], **{**SIDES, "side": 32})[0].gt.shape[-1] == 32
    assert PairsDataset(made_up_photos(), [Pair(0, 2, 0.0)], **SIDES)[0].gt is not first.gt


def test_degraded_samples_are_not_those_of_the_cache() -> None:
    """Training keeps the LR that the trainer's hook will degrade; evaluation of the same pair degrades its own."""
    photos, pairs = made_up_photos(), [Pair(0, 2, 0.0)]
    kept = PairsDataset(photos, pairs, **SIDES, cache_mb=1)[0]
    degrade = Degradation("dpsr", 8)
    degraded = PairsDataset(photos, pairs, **SIDES, degrade=degrade)[0]
    assert torch.equal(degraded.lr, degrade(kept.lr[None], [kept.id])[0])
    assert not torch.equal(degraded.lr, kept.lr)
    torch.testing.assert_close(PairsDataset(photos, pairs, **SIDES, cache_mb=1)[0].lr, kept.lr)


def test_training_without_references_gives_the_lr() -> None:
    """The reference of a training batch is the LR enlarged, and x^(n) of it is kept under another key."""
    keys = []
    for reference in ("photo", "lr"):
        data = MadeUpDataModule(**SIDES, batch_size=2, reference=reference)
        data.setup()
        keys.append(data.training_key())
        batch = next(iter(data.train_dataloader()))
        given = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(given.reference, batch.reference) is (reference == "photo")
        assert torch.equal(given.gt, batch.gt)
    assert keys[0] != keys[1]
    with pytest.raises(ValueError, match="reference: expected photo or lr, got 'other'"):
        MadeUpDataModule(**SIDES, reference="other")
