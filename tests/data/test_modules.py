"""The datamodules of prepared folders: parts, caches, flips, degradations, and fits through the command line."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from rpf_lightning.cli import main
from rpf_lightning.data import CelebAHQDataModule, FFHQDataModule, ReferencePairsDataModule
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import FacesDataset, PairsDataset
from rpf_lightning.data.degradation import Degradation
from rpf_lightning.data.level_cache import CachedFaces, CachedPairs
from rpf_lightning.data.pairing import nearest_references
from rpf_lightning.data.preparation import Options, prepare_faces
from rpf_lightning.data.sample import mirror

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
    assert (
        parse("ReferencePairsDataModule", "root=x", "mask_reference=false", *common).mask_reference is False
    )
    celeba = parse(
        "CelebAHQDataModule", "root=x", "mapping=m", "identities=i", "mask_reference=false", *common
    )
    assert (celeba.limit_train, celeba.cache_side) == (3, 256)
    assert parse("FFHQDataModule", "root=x", *common).degradation == "dpsr"
    assert parse("SyntheticFacesDataModule", "people=3", *common).flip is True
    drawn = parse(
        "CelebAHQDataModule", "root=x", "mapping=m", "identities=i", "references=all", "wrong_fraction=0.1"
    )
    assert (drawn.references, drawn.wrong_fraction, drawn.flow_target) == ("all", 0.1, "tps")
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


def test_people_are_in_one_part(prepared: Path) -> None:
    module = ready(ReferencePairsDataModule(str(prepared), **SIDES, val_fraction=0.34, seed=2))
    pairs = module.split_pairs()
    people = [{pairs.photos.identities[i] for p in part for i in p[:2]} for part in (pairs.train, pairs.val)]
    assert not people[0] & people[1]
    other = module.val_dataset(side=16, other_person=True)
    for pair in other.pairs:
        assert pairs.photos.identities[pair.gt] != pairs.photos.identities[pair.reference]
        assert pairs.photos.identities[pair.reference] in people[1]
    assert isinstance(module.val_dataset(), PairsDataset)  # unrounded, at full size
    assert module.val_dataset()[0].gt.shape == (3, 64, 64)


def test_limits(prepared: Path) -> None:
    module = ready(
        ReferencePairsDataModule(str(prepared), **SIDES, val_fraction=0.34, limit_train=5, limit_val=2)
    )
    assert (len(module.train_dataset), len(module.val_dataset_)) == (5, 2)
    pairs = module.train_dataset.pairs + module.val_dataset_.pairs
    # no more is cached than is used
    assert module.train_dataset.cache.indices == sorted({index for pair in pairs for index in pair[:2]})


def test_flips_are_seeded_and_whole(prepared: Path) -> None:
    def epochs(**kwargs: Any) -> list[tuple[str, bool]]:
        module = ready(
            ReferencePairsDataModule(
                str(prepared),
                **SIDES,
                val_fraction=0.34,
                batch_size=1,
                flip=True,
                warped_reference=True,
                **kwargs,
            )
        )
        by_name = {sample.id: sample for sample in module.train_dataset}
        loader, seen = module.train_dataloader(), []
        for _ in range(3):
            for batch in loader:
                original = by_name[batch.id[0]]
                flipped = not torch.equal(batch.gt[0], original.gt)
                expected = mirror(original) if flipped else original
                for name, value in expected._asdict().items():
                    if not isinstance(value, Tensor):
                        continue
                    torch.testing.assert_close(getattr(batch, name)[0], value)
                seen.append((batch.id[0], flipped))
        for batch, sample in zip(module.val_dataloader(), module.val_dataset_, strict=True):
            assert torch.equal(batch.gt[0], sample.gt)  # validation is never flipped
        assert sorted(name for name, _ in seen[:12]) == sorted(by_name)
        return seen

    seen = epochs(seed=1)
    assert 8 < sum(flipped for _, flipped in seen) < 28  # of 36
    assert epochs(seed=1, num_workers=2) == seen  # nothing random happens in workers
    assert epochs(seed=4) != seen


@pytest.mark.parametrize("kind", ["dpsr", "realistic"])
@pytest.mark.parametrize("cache_side", [0, 64])
def test_degradations_are_made_in_the_trainers_hook(prepared: Path, kind: Any, cache_side: int) -> None:
    class Listening(LightningModule):
        lr_size, size, side = 8, 64, 16

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)
            self.train_lr: dict[tuple[int, str], Tensor] = {}
            self.val_lr: list[tuple[str, Tensor]] = []

        def training_step(self, batch: ReferenceBatch, index: int) -> Tensor:
            for name, lr in zip(batch.id, batch.lr, strict=True):
                self.train_lr[self.current_epoch, name] = lr
            return self.layer(batch.gt).mean()

        def validation_step(self, batch: ReferenceBatch, index: int) -> None:
            self.val_lr += zip(batch.id, batch.lr, strict=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    model = Listening()
    module = ReferencePairsDataModule(
        str(prepared), val_fraction=0.34, batch_size=4, degradation=kind, seed=5, cache_side=cache_side
    )
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, module)
    assert isinstance(module.train_dataset, CachedPairs if cache_side else PairsDataset)
    name = next(iter(model.train_lr))[1]
    in_training = PairsDataset(module.prepared(), module.split_pairs().train, lr_size=8, size=64, side=64)
    (trained,) = (sample for sample in in_training if sample.id == name)
    start = trained.lr if kind == "dpsr" else trained.gt
    for epoch in (0, 1):  # epoch 0 of the noise is validation's
        expected = Degradation(kind, 8, seed=5)(start[None], [name], epoch + 1)[0]
        tolerance = 0.021 if cache_side else 1e-6
        torch.testing.assert_close(model.train_lr[epoch, name], expected, atol=tolerance, rtol=0)
    assert model.train_lr[0, name].shape == (3, 8, 8)
    assert not torch.equal(model.train_lr[0, name], model.train_lr[1, name])  # other noise in every epoch
    first, second = (dict(model.val_lr[i : i + 6]) for i in (0, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)  # the same in validation
    photos = module.prepared()
    evaluated = module.val_dataset(side=16)  # without a trainer's hook
    for sample in list(evaluated)[:3]:
        torch.testing.assert_close(sample.lr, first[sample.id], atol=0.021 if cache_side else 1e-6, rtol=0)
    plain = PairsDataset(photos, module.split_pairs().val, lr_size=8, size=64, side=64)
    degrade = Degradation(kind, 8, seed=5)
    for sample in list(plain)[:3]:
        start = sample.lr if kind == "dpsr" else sample.gt
        expected = degrade(start[None], [sample.id], 0)[0]
        assert (first[sample.id] - sample.lr).abs().max() > 0.01
        torch.testing.assert_close(first[sample.id], expected, atol=0.021 if cache_side else 1e-6, rtol=0)


def test_faces_without_references(prepare: Prepare, folder: Path, tmp_path: Path) -> None:
    text = (folder / "identities.csv").read_text().replace("0-2.png,p0", "0-2.png,")
    (folder / "identities.csv").write_text(text)
    prepare()
    root = str(tmp_path / "prepared")
    module = ready(FFHQDataModule(root, **SIDES, val_fraction=0.34, batch_size=3))
    assert isinstance(module.train_dataset, CachedFaces)
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
    assert isinstance(direct.train_dataset, FacesDataset)
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


def config(tmp_path: Path, stage: str, data: dict[str, Any], **model: Any) -> str:
    content = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        },
        "model": {
            "class_path": f"rpf_lightning.stages.{stage}",
            "init_args": {
                "model_dir": str(tmp_path / "model"), "block": 1,
                "network": {"lr_size": 8, "scale": 8, "channels": 4, "width": 1 / 64}, **model,
            },
        },
        "data": data,
    }  # fmt: skip
    path = tmp_path / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_rpf_fit_works_from_the_raw_release(release: dict[str, str], folder: Path, tmp_path: Path) -> None:
    data = {
        "class_path": "rpf_lightning.data.CelebAHQDataModule",
        "init_args": {**release, "batch_size": 2, "flip": True, "val_fraction": 0.34},
    }
    main(["fit", "--config", config(tmp_path, "WarpingStage", data)])
    assert (folder / "prepare.json").is_file()
    assert len(list((folder / "cache").glob("*/ok_16.npy"))) == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()
    metrics = next((tmp_path / "model" / "runs" / "block1-warping").rglob("metrics.csv")).read_text()
    assert "val/end_point_error" in metrics


@pytest.mark.slow
def test_two_processes_prepare_and_cache_once(release: dict[str, str], folder: Path, tmp_path: Path) -> None:
    """The pass over the photos is a prediction inside of a fit whose environment names two processes."""
    data = {
        "class_path": "rpf_lightning.data.CelebAHQDataModule",
        "init_args": {**release, "batch_size": 2, "val_fraction": 0.34},
    }
    file = config(tmp_path, "WarpingStage", data)
    command = [sys.executable, "-m", "rpf_lightning", "fit", "--config", file, "--trainer.devices", "2"]
    command += ["--trainer.strategy", "ddp_find_unused_parameters_true"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    text = run.stdout + run.stderr
    assert text.count("18 of 18 photos kept") == 1
    assert text.count("cache of ") == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_stage_one_on_faces_without_references(prepared: Path, tmp_path: Path) -> None:
    data = {
        "class_path": "rpf_lightning.data.FFHQDataModule",
        "init_args": {"root": str(prepared), "batch_size": 2, "val_fraction": 0.34},
    }
    off = {"adversarial_weight": 0.0, "perceptual_weight": 0.0, "identity_weight": 0.0}
    main(["fit", "--config", config(tmp_path, "RefinementStage", data, **off)])
    assert (tmp_path / "model" / "runs" / "block1-refinement" / "checkpoints" / "last.ckpt").is_file()
    with pytest.raises(
        ValueError, match=r"RefinementStage \(finetune\) needs references; FFHQDataModule gives none"
    ):
        main(["fit", "--config", config(tmp_path, "RefinementStage", data, **off, input="synthesized")])
    with pytest.raises(ValueError, match=r"WarpingStage \(warping\) needs references"):
        main(["fit", "--config", config(tmp_path, "WarpingStage", data)])


@pytest.fixture(scope="module")
def subset(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real photos of 40 people, prepared."""
    root = shared / "data" / "celeba_hq_subset"
    tmp = tmp_path_factory.mktemp("subset")
    (tmp / "images").mkdir()
    rows = (root / "identities.csv").read_text().splitlines()[1:]
    people = sorted({row.split(",")[1] for row in rows} - {""})[:40]
    for row in rows:
        if row.split(",")[1] in people:
            name = row.split(",")[0]
            (tmp / "images" / name).symlink_to(root / "images" / name)
    options = Options(
        landmarks=str(root / "landmarks.csv"), labels=str(root / "labels"), label_scheme="celebamask-hq",
        embeddings=False, num_workers=0,
    )  # fmt: skip
    prepare_faces(
        tmp / "images",
        tmp / "out",
        identities=root / "identities.csv",
        options=options,
        say=lambda line: None,
    )
    return tmp / "out"


@pytest.mark.realdata
def test_real_warps_bring_the_reference_nearer(subset: Path) -> None:
    module = ReferencePairsDataModule(
        str(subset), lr_size=16, size=512, side=64, limit_val=12, mask_reference=False
    )
    before, after = [], []
    for sample in module.val_dataset(side=64, warped=True):
        face = sample.gt_mask
        before.append((face * (sample.reference - sample.gt).abs()).sum() / face.sum())
        after.append((face * (sample.warped_reference - sample.gt).abs()).sum() / face.sum())
    assert torch.stack(after).mean() < torch.stack(before).mean()


def test_the_trainers_module_gives_the_sides(prepared: Path) -> None:
    module = ReferencePairsDataModule(str(prepared), val_fraction=0.34)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(**SIDES))
    ready(module)
    assert module.train_dataset[0].gt.shape == (3, 16, 16)
