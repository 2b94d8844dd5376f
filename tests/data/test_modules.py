"""The datamodules of prepared folders: parts, caches, flips, degradations, and fits through the command line."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from rpf_lightning.cli import main
from rpf_lightning.data import CelebAHQDataModule, FFHQDataModule, ReferencePairsDataModule
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.level_cache import CachedPairs
from rpf_lightning.data.pairing import Pair, nearest_references
from rpf_lightning.data.sample import mirror
from small_fits import QUIET, write_fit

SIDES = {"lr_size": 8, "size": 64, "side": 16}
Prepare = Callable[..., dict[str, Any]]


def ready(module: Any) -> Any:
    """What a trainer would call."""
    module.prepare_data()
    module.setup("fit")
    return module


def names(loader: DataLoader[Any]) -> list[str]:
    return [name for batch in loader for name in batch.id]


def test_pairs_come_from_the_cache_where_the_level_is_cached(prepared: Path) -> None:
    module = ready(ReferencePairsDataModule(str(prepared), **SIDES, val_fraction=0.34, batch_size=4))
    assert isinstance(module.train_dataset, CachedPairs)
    assert module.train_dataset.cache.sides == [16, 32, 64]  # all levels at once
    assert isinstance(module.val_dataset_, CachedPairs)
    assert {len(module.train_dataset), len(module.val_dataset_)} == {12, 6}
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, ReferenceBatch)
    assert batch.gt.shape == (4, 3, 16, 16)
    assert (prepared / "cache").is_dir()
    pairs, identities = module.split_pairs(), module.prepared().identities
    people = {identities[pair.gt] for pair in pairs.val}
    for pair in module.val_dataset(other_person=True).pairs:
        assert identities[pair.reference] in people - {identities[pair.gt]}
    for above in ({"cache_side": 0}, {"cache_side": 8}, {"cache_side": 32, "side": 64}):
        direct = ready(ReferencePairsDataModule(str(prepared), **{**SIDES, **above}, val_fraction=0.34))
        assert isinstance(direct.train_dataset, PairsDataset)
    limited = ReferencePairsDataModule(str(prepared), **SIDES, cache_side=32, val_fraction=0.34)
    assert ready(limited).train_dataset.cache.sides == [16, 32]


def test_the_command_line_knows_the_arguments_of_all_bases() -> None:
    from jsonargparse import ArgumentParser
    from lightning import LightningDataModule

    def parse(name: str, *options: str) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        given = [f"--data.init_args.{option}" for option in options]
        return parser.parse_args([f"--data=rpf_lightning.data.{name}", *given]).data.init_args

    common = ("flip=true", "degradation=dpsr", "limit_train=3")
    of_pairs = ("mask_reference=false", "references=all", "wrong_fraction=0.1", *common)
    pairs = parse("ReferencePairsDataModule", "root=x", *of_pairs)
    celeba = parse("CelebAHQDataModule", "root=x", "mapping=m", "identities=i", *of_pairs)
    for given in (pairs, celeba):
        assert (given.limit_train, given.cache_side, given.flow_target) == (3, 256, "tps")
        assert (given.mask_reference, given.references, given.wrong_fraction) == (False, "all", 0.1)
    assert parse("FFHQDataModule", "root=x", *common).degradation == "dpsr"
    assert parse("SyntheticFacesDataModule", "people=3", *common).flip is True
    for given, expected in (("similarity", "similarity"), ("0.5", 0.5)):
        assert parse("ReferencePairsDataModule", "root=x", f"flow_target={given}").flow_target == expected
    for name, wrong in (("FFHQDataModule", "mask_reference=false"), ("SyntheticFacesDataModule", "root=x")):
        with pytest.raises(Exception, match=r"not accepted|does not accept|Key"):
            parse(name, "root=x", wrong)
    with pytest.raises(Exception, match="bicubic"):
        parse("FFHQDataModule", "root=x", "degradation=worse")


def test_a_folder_that_was_prepared_anew_is_read_anew(prepared: Path, prepare: Prepare, folder: Path) -> None:
    first = ReferencePairsDataModule(str(prepared), **SIDES)
    assert len(first.prepared()) == 18
    assert ReferencePairsDataModule(str(prepared), **SIDES).prepared() is first.prepared()
    before = first.cache()
    shutil.rmtree(prepared)
    (folder / "images" / "0-0.png").unlink()
    prepare()
    second = ReferencePairsDataModule(str(prepared), **SIDES)
    assert len(second.prepared()) == 17
    assert second.cache().path != before.path


def test_a_missing_cache_is_said(prepared: Path) -> None:
    for module in (ReferencePairsDataModule(str(prepared), **SIDES), FFHQDataModule(str(prepared), **SIDES)):
        with pytest.warns(UserWarning, match="the cache of levels is not there .* decoded in every step"):
            module.setup("fit")


def test_workers_stay_and_memory_is_pinned_for_a_gpu(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(ReferencePairsDataModule(str(prepared), **SIDES, batch_size=2, num_workers=1))
    loaders = (module.train_dataloader(), module.val_dataloader())
    assert all(loader.persistent_workers and not loader.pin_memory for loader in loaders)
    module.num_workers = 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaders = (module.train_dataloader(), module.val_dataloader())
    assert all(loader.pin_memory and not loader.persistent_workers for loader in loaders)


def test_the_source_of_a_degradation_is_cached_with_the_levels(prepared: Path) -> None:
    module = ReferencePairsDataModule(str(prepared), **SIDES, degradation="realistic", cache_side=16)
    assert isinstance(ready(module).train_dataset, CachedPairs)
    assert module.cache().sides == [16, 64]


def test_caches_may_lie_elsewhere(prepared: Path, tmp_path: Path) -> None:
    ready(ReferencePairsDataModule(str(prepared), **SIDES, cache_dir=str(tmp_path / "fast")))
    assert not (prepared / "cache").exists()
    assert len(list((tmp_path / "fast").glob("*/lr.npy"))) == 1


def test_limits(prepared: Path) -> None:
    module = ready(
        ReferencePairsDataModule(str(prepared), **SIDES, val_fraction=0.34, limit_train=5, limit_val=2)
    )
    assert (len(module.train_dataset), len(module.val_dataset_)) == (5, 2)
    pairs = module.train_dataset.pairs + module.val_dataset_.pairs
    # no more is cached than is used
    assert module.train_dataset.cache.indices == sorted({index for pair in pairs for index in pair[:2]})


def test_flips_are_whole_and_of_training_alone(prepared: Path) -> None:
    given = {**SIDES, "val_fraction": 0.34, "batch_size": 1, "flip": True, "warped_reference": True}
    module = ready(ReferencePairsDataModule(str(prepared), **given))
    seen = []
    for batch in module.train_dataloader():
        place = batch.place[0] % 12
        seen.append((place, flipped := batch.place[0] >= 12))
        original = module.train_dataset[place]
        for name, value in (mirror(original) if flipped else original)._asdict().items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(getattr(batch, name)[0], value)
    assert sorted(place for place, _ in seen) == list(range(12))
    assert 0 < sum(flipped for _, flipped in seen) < 12
    for batch, sample in zip(module.val_dataloader(), module.val_dataset_, strict=True):
        assert torch.equal(batch.gt[0], sample.gt)


class Listening(LightningModule):
    """Keeps the LRs of training and validation."""

    lr_size, size, side = 8, 64, 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        self.train_lr: dict[tuple[int, str], Tensor] = {}
        self.val_lr: list[tuple[str, Tensor]] = []

    def training_step(self, batch: ReferenceBatch, index: int) -> Tensor:
        self.train_lr |= {(self.current_epoch, name): lr for name, lr in zip(batch.id, batch.lr, strict=True)}
        return self.layer(batch.gt).mean()

    def validation_step(self, batch: ReferenceBatch, index: int) -> None:
        self.val_lr += zip(batch.id, batch.lr, strict=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize(("kind", "cache_side"), [("dpsr", 0), ("dpsr", 64), ("realistic", 64)])
def test_degradations_are_made_in_the_trainers_hook(prepared: Path, kind: Any, cache_side: int) -> None:
    model = Listening()
    module = ReferencePairsDataModule(
        str(prepared), val_fraction=0.34, batch_size=4, degradation=kind, seed=5, cache_side=cache_side
    )
    Trainer(max_epochs=2, **QUIET).fit(model, module)
    assert isinstance(module.train_dataset, CachedPairs if cache_side else PairsDataset)
    tolerance = {"atol": 0.021 if cache_side else 1e-6, "rtol": 0}
    degrade = Degradation(kind, 8, seed=5)

    def plain(pairs: list[Pair]) -> PairsDataset:
        return PairsDataset(module.prepared(), pairs, lr_size=8, size=64, side=64)

    def expected(sample: ReferenceBatch, epoch: int) -> Tensor:
        start = sample.lr if kind == "dpsr" else sample.gt
        return degrade(start[None], [sample.id], epoch)[0]

    sample = plain(module.split_pairs().train)[0]
    for epoch in (0, 1):  # epoch 0 of the noise is validation's
        found = model.train_lr[epoch, sample.id]
        torch.testing.assert_close(found, expected(sample, epoch + 1), **tolerance)
    assert not torch.equal(model.train_lr[0, sample.id], model.train_lr[1, sample.id])
    first, second = (dict(model.val_lr[i : i + 6]) for i in (0, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)  # the same in validation
    evaluated = module.val_dataset(side=16)  # without a trainer's hook
    for index, sample in enumerate(list(plain(module.split_pairs().val))[:3]):
        assert (first[sample.id] - sample.lr).abs().max() > 0.01
        torch.testing.assert_close(first[sample.id], expected(sample, 0), **tolerance)
        torch.testing.assert_close(evaluated[index].lr, first[sample.id], **tolerance)


def test_faces_without_references(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    text = (folder / "identities.csv").read_text().replace("0-2.png,p0", "0-2.png,")
    (folder / "identities.csv").write_text(text)
    prepare()
    root = str(tmp_path / "prepared")
    module = ready(FFHQDataModule(root, **SIDES, val_fraction=0.34, batch_size=3))
    assert isinstance(module.train_dataset.source, CachedPairs)
    trained = {sample.id for sample in module.train_dataset}
    pairs = ready(ReferencePairsDataModule(root, **SIDES, val_fraction=0.34))
    assert "0-2.png" in trained
    assert {sample.id for sample in pairs.train_dataset} <= trained
    assert not {sample.id for sample in pairs.val_dataset_} & trained
    assert names(module.val_dataloader()) == sorted(sample.id for sample in pairs.val_dataset_)
    batch = next(iter(module.train_dataloader()))
    assert batch._fields == ("lr", "gt", "gt_mask", "id", "place")
    assert batch.gt.shape == (3, 3, 16, 16)
    direct = ready(FFHQDataModule(root, **SIDES, val_fraction=0.34, cache_side=0, limit_train=4))
    assert isinstance(direct.train_dataset.source, PairsDataset)
    assert len(direct.train_dataset) == 4
    torch.testing.assert_close(direct.val_dataset_[0].lr, module.val_dataset_[0].lr)


def test_sides_are_checked_before_the_photos(prepared: Path) -> None:
    module = ReferencePairsDataModule(str(prepared))
    with pytest.raises(ValueError, match="lr_size is unknown"):
        module.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"nowhere/prepare.json"):
        ReferencePairsDataModule("nowhere", **SIDES).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"pairs_paper_train.parquet: no such split"):
        ReferencePairsDataModule(str(prepared), split="paper", **SIDES).setup()


@pytest.fixture
def release(folder: Path, tmp_path: Path) -> dict[str, str]:
    """`folder` as a CelebA-HQ release: arguments of `CelebAHQDataModule`. People 0 and 1 are below index 1000."""
    points = (folder / "landmarks.csv").read_text()
    rows = []
    for person in range(6):
        for shot in range(3):
            old, index = f"{person}-{shot}.png", (0 if person < 2 else 1000) + 3 * person + shot
            for part in ("images", "labels"):
                (folder / part / old).rename(folder / part / f"{index}.png")
            points = points.replace(f"\n{old},", f"\n{index}.png,")
            rows.append((index, f"{index:06d}.jpg", person))
    (folder / "landmarks.csv").write_text(points)
    (folder / "images").rename(folder / "CelebA-HQ-img")
    texts = {
        "mapping": "idx orig_idx orig_file\n" + "".join(f"{i} {i} {name}\n" for i, name, _ in rows),
        "identities": "".join(f"{name} {person}\n" for _, name, person in rows),
        "partition": "".join(f"{name} {person % 3}\n" for _, name, person in rows),
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return {
        "root": str(folder),
        **{name: str(folder / f"{name}.txt") for name in texts},
        "landmarks": str(folder / "landmarks.csv"),
        "labels": str(folder / "labels"),
        "label_scheme": "bisenet",
    }


def test_celeba_hq_prepares_itself(release: dict[str, str], folder: Path) -> None:
    module = ready(CelebAHQDataModule(**release, **SIDES, val_fraction=0.34, batch_size=2))
    assert (folder / "prepare.json").is_file()
    other = folder / "other" / "identities.txt"
    other.parent.mkdir()
    other.write_text((folder / "identities.txt").read_text().replace(" 5\n", " 6\n"))
    changed = CelebAHQDataModule(**{**release, "identities": str(other)}, **SIDES)
    with pytest.raises(ValueError, match=r"begun with other arguments:\n  identities: 'identities\.txt"):
        changed.prepare_data()
    assert module.options.devices == 1  # inside of a fit on several GPUs a second launch would wait for ever
    photos, pairs = module.prepared(), module.split_pairs()
    assert {photos.ids[pair.gt] for pair in pairs.test} == {f"{i}.png" for i in range(6)}
    assert all(
        photos.places[f"{i}.png"] not in pair[:2] for i in range(6) for pair in pairs.train + pairs.val
    )
    people = [{photos.identities[pair.gt] for pair in part} for part in (pairs.train, pairs.val)]
    assert people[0] | people[1] == {"2", "3", "4", "5"}
    assert not people[0] & people[1]
    # the same files as the command writes
    before = photos.sha256
    args = ["prepare", "celeba-hq", "--images", str(folder / "CelebA-HQ-img"), "--out", str(folder / "again")]
    for name in ("mapping", "identities", "partition", "landmarks", "labels"):
        args += [f"--{name}", release[name]]
    main([*args, "--label-scheme", "bisenet", "--no-embeddings", "--num-workers", "0"])
    again = ReferencePairsDataModule(str(folder / "again"), split="paper", **SIDES).prepared()
    assert again.sha256 == before
    everyone = nearest_references(photos.identities, photos.landmarks, photos.near_duplicates())
    assert pairs.test == [pair for pair in everyone if photos.ids[pair.gt] in {f"{i}.png" for i in range(6)}]


def test_the_disjoint_split(release: dict[str, str]) -> None:
    module = ready(CelebAHQDataModule(**release, split="disjoint", **SIDES))
    pairs, photos = module.split_pairs(), module.prepared()
    people = [{photos.identities[pair.gt] for pair in part} for part in pairs[1:4]]
    assert people == [{"0", "3"}, {"1", "4"}, {"2", "5"}]
    with pytest.raises(ValueError, match="disjoint needs partition"):
        CelebAHQDataModule(**{**release, "partition": None}, split="disjoint")
    with pytest.raises(ValueError, match="expected paper or disjoint"):
        CelebAHQDataModule(**release, split="own")


def config(tmp_path: Path, stage: str, name: str, data: dict[str, Any], **model: Any) -> str:
    network = {"lr_size": 8, "scale": 8, "channels": 4, "width": 1 / 64}
    faces = {
        "class_path": f"rpf_lightning.data.{name}",
        "init_args": {"batch_size": 2, "val_fraction": 0.34, **data},
    }
    given = {"model_dir": str(tmp_path / "model"), "block": 1, "network": network, **model}
    return str(write_fit(tmp_path / f"{stage}.yaml", stage, data=faces, **given))


def test_rpf_fit_works_from_the_raw_release(release: dict[str, str], folder: Path, tmp_path: Path) -> None:
    file = config(tmp_path, "WarpingStage", "CelebAHQDataModule", {**release, "flip": True})
    main(["fit", "--config", file])
    assert (folder / "prepare.json").is_file()
    assert len(list((folder / "cache").glob("*/ok_16.npy"))) == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()
    metrics = next((tmp_path / "model" / "runs" / "block1-warping").rglob("metrics.csv")).read_text()
    assert "val/end_point_error" in metrics


@pytest.mark.slow
def test_two_processes_prepare_and_cache_once(release: dict[str, str], folder: Path, tmp_path: Path) -> None:
    """The pass over the photos is a prediction inside of a fit whose environment names two processes."""
    file = config(tmp_path, "WarpingStage", "CelebAHQDataModule", release)
    command = [sys.executable, "-m", "rpf_lightning", "fit", "--config", file, "--trainer.devices", "2"]
    command += ["--trainer.strategy", "ddp_find_unused_parameters_true"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    text = run.stdout + run.stderr
    assert text.count("18 of 18 photos kept") == 1
    assert text.count("cache of ") == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_stage_one_on_faces_without_references(prepared: Path, tmp_path: Path) -> None:
    def fit(stage: str, **options: Any) -> None:
        main(
            ["fit", "--config", config(tmp_path, stage, "FFHQDataModule", {"root": str(prepared)}, **options)]
        )

    off = {"adversarial_weight": 0.0, "perceptual_weight": 0.0, "identity_weight": 0.0}
    fit("RefinementStage", **off)
    assert (tmp_path / "model" / "runs" / "block1-refinement" / "checkpoints" / "last.ckpt").is_file()
    message = r"RefinementStage \(finetune\) needs references; FFHQDataModule gives none"
    with pytest.raises(ValueError, match=message):
        fit("RefinementStage", **off, input="synthesized")
    with pytest.raises(ValueError, match=r"WarpingStage \(warping\) needs references"):
        fit("WarpingStage")
