"""x^(n) of every sample, computed once and kept on disk."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize
from rpf_lightning.stages import RPFStage, SynthesisStage, WarpingStage, prefix_cache
from rpf_lightning.stages.prefix_cache import PrefixCache
from small_fits import QUIET
from stage_fits import faces, make

CPU = torch.device("cpu")


class Watched:
    """A fit that counts how often the frozen prefix was computed, and keeps what the stage was given."""

    def __init__(self, stage: RPFStage, data: SyntheticFacesDataModule, folder: Path, **kwargs: Any) -> None:
        self.stage, self.computed = stage, 0
        self.given: dict[int, list[Tensor]] = {}
        self.flows: dict[int, list[Tensor]] = {}
        prefix, own = stage.model.prefix, stage.prefix

        def counted(*args: Any) -> tuple[Tensor, Tensor | None]:
            self.computed += int(stage.trainer.training)
            return prefix(*args)

        def kept(batch: ReferenceBatch) -> tuple[Tensor, Tensor | None]:
            x, flow = own(batch)
            if stage.trainer.training:
                assert isinstance(batch.place, list)
                for i, place in enumerate(batch.place):
                    self.given.setdefault(place, []).append(x[i].clone())
                    if flow is not None:
                        self.flows.setdefault(place, []).append(flow[i].clone())
            return x, flow

        stage.model.prefix = counted
        stage.prefix = kept
        options = {**QUIET, "max_epochs": 2, "default_root_dir": folder, **kwargs}
        self.trainer = Trainer(**options)
        self.trainer.fit(stage, data)


def files(model_dir: Path) -> list[str]:
    return sorted(path.name for path in (model_dir / "cache").glob("x*.npy"))


def test_computed_once_and_equal_to_the_model_up_to_8_bit(model_dir: Path, tmp_path: Path) -> None:
    fit = Watched(SynthesisStage(str(model_dir), 2), faces(), tmp_path, max_epochs=3)
    assert fit.computed == 6  # 12 samples in batches of 2, once and not in three epochs
    assert len(fit.given) == 12
    data = fit.trainer.datamodule.train_dataset
    for place, rows in fit.given.items():
        sample = data[place]
        with torch.no_grad():
            x = fit.stage.model.prefix(sample.lr[None], sample.reference[None], 2)[0][0]
        assert len(rows) == 3
        assert all(torch.equal(row, rows[0]) for row in rows)
        assert (rows[0] - x).abs().max() <= 0.5 / 255 + 1e-6
        assert (rows[0] - x).abs().max() > 0


def test_the_fits_of_a_block_share_it(model_dir: Path, tmp_path: Path) -> None:
    """What they train is not in its key."""
    assert Watched(WarpingStage(str(model_dir), 2, learning_rate=0.1), faces(), tmp_path).computed == 6
    before = files(model_dir)
    for kind in ("warping", "synthesis", "synthesized"):
        assert Watched(make(kind, model_dir), faces(), tmp_path, max_epochs=1).computed == 0
    assert files(model_dir) == before
    assert len(before) == 1


def test_a_share_of_the_samples_enters_at_the_block(model_dir: Path, tmp_path: Path) -> None:
    stage = SynthesisStage(str(model_dir), 2, entry_fraction=0.4)
    fit = Watched(stage, faces(), tmp_path, max_epochs=6)
    data = fit.trainer.datamodule.train_dataset
    entered = []
    for place, rows in fit.given.items():
        reduced = resize(data[place].gt[None], 32)[0].clamp(0, 1)
        with torch.no_grad():
            x = stage.model.prefix(data[place].lr[None], data[place].reference[None], 2)[0][0]
        for row in rows:
            entered.append(torch.equal(row, reduced))
            assert entered[-1] or (row - x).abs().max() <= 0.5 / 255 + 1e-6
    assert len(entered) == 72
    assert 0.2 < sum(entered) / 72 < 0.6
    # neither in validation
    batch = next(iter(fit.trainer.datamodule.val_dataloader()))
    assert torch.equal(stage.prefix(batch)[0], stage.model.prefix(batch.lr, batch.reference, 2)[0])


@pytest.mark.parametrize(
    ("kind", "fraction", "message"),
    [
        ("warping", 1.5, r"entry_fraction: expected a share in \[0, 1\], got 1.5"),
        ("lr", 0.2, "entry_fraction: stage 1 reads no x"),
    ],
)
def test_entry_fraction_is_a_share_of_what_reads_x(
    model_dir: Path, kind: str, fraction: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, model_dir, entry_fraction=fraction)


def test_a_flip_has_both_versions(model_dir: Path, tmp_path: Path) -> None:
    fit = Watched(WarpingStage(str(model_dir), 2), faces(flip=True), tmp_path, max_epochs=6)
    assert max(fit.given) >= 12
    both = [place for place in fit.given if place < 12 and place + 12 in fit.given]
    assert both
    assert not torch.equal(fit.given[both[0]][0], fit.given[both[0] + 12][0])
    data = fit.trainer.datamodule.train_dataset
    for place in fit.given:
        sample = data[place]
        with torch.no_grad():
            x = fit.stage.model.prefix(sample.lr[None], sample.reference[None], 2)[0][0]
        assert (fit.given[place][0] - x).abs().max() <= 0.5 / 255 + 1e-6
    assert fit.computed < 6 * 6


def test_anything_that_changes_x_changes_the_key(model_dir: Path, tmp_path: Path) -> None:
    """And the file before is removed."""
    model, paths = RPFModel.from_pretrained(model_dir), []

    def add(precision: str = "32-true", **options: Any) -> None:
        data = faces(lr_size=16, size=64, side=64, **options)
        data.setup()
        cache = prefix_cache.open_prefix_cache(tmp_path, model, 2, data, precision)
        assert cache is not None
        assert list(tmp_path.glob("x*")) == [cache.path]
        paths.append(cache.path)

    add()
    add("bf16-mixed")
    changes: list[dict[str, Any]] = [
        {"batch_size": 3}, {"seed": 1}, {"mask_reference": False}, {"limit_train": 8}, {"flip": True},
    ]  # fmt: skip
    for change in changes:
        add(**change)
    with torch.no_grad():
        model.blocks[1].refinement.to_rgb.bias += 0.1  # of the block itself: no change
    add()
    assert paths[-1] == paths[0]
    with torch.no_grad():
        model.blocks[0].refinement.to_rgb.bias += 0.1
    add()
    model.config = replace(model.config, act="relu")
    add()
    assert len(set(paths)) == len(paths) - 1


def test_what_a_kill_left_half_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x3-0123.part").write_bytes(b"0" * 100)
    cache(tmp_path)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"degradation": "dpsr"}, "the dpsr LR is random"),
        ({"references": "all"}, "references are random"),
        ({}, "PairsDataset has no fingerprint()"),
        (None, None),
    ],
    ids=["degradation", "references", "fingerprint", "switched off"],
)
def test_where_it_is_not_kept_a_line_says_why(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any] | None, reason: str | None
) -> None:  # fmt: skip
    lines: list[str] = []
    monkeypatch.setattr(prefix_cache, "rank_zero_info", lines.append)
    if data == {}:
        monkeypatch.delattr(PairsDataset, "fingerprint")
    stage = WarpingStage(str(model_dir), 2, cache_prefix=data is not None)
    assert Watched(stage, faces(**(data or {})), tmp_path, max_epochs=1).computed == 6
    assert lines == ([] if reason is None else [f"x^(n) is computed in every step: {reason}"])
    assert not (model_dir / "cache").exists()


def test_a_try_leaves_nothing_behind(model_dir: Path, tmp_path: Path) -> None:
    (model_dir / "cache").mkdir()
    (model_dir / "cache" / "x2-other.npy").write_bytes(b"0")
    Watched(WarpingStage(str(model_dir), 2), faces(), tmp_path, fast_dev_run=True)
    assert files(model_dir) == ["x2-other.npy"]


def test_the_first_block_needs_none(model_dir: Path, tmp_path: Path) -> None:
    fit = Watched(WarpingStage(str(model_dir), 1), faces(), tmp_path)
    assert not (model_dir / "cache").exists()
    sample = fit.trainer.datamodule.train_dataset[0]
    assert torch.equal(fit.given[0][0], sample.lr)


def test_validation_is_exact(model_dir: Path, tmp_path: Path) -> None:
    stage = WarpingStage(str(model_dir), 2)
    seen: list[tuple[Tensor, Tensor]] = []
    own = stage.prefix

    def kept(batch: ReferenceBatch) -> tuple[Tensor, Tensor | None]:
        x, flow = own(batch)
        if not stage.trainer.training:
            seen.append((x, stage.model.prefix(batch.lr, batch.reference, 2)[0]))
        return x, flow

    stage.prefix = kept
    Watched(stage, faces(), tmp_path)
    assert seen
    assert all(torch.equal(a, b) for a, b in seen)


# The file


def cache(folder: Path, **kwargs: Any) -> PrefixCache:
    return PrefixCache(folder, 2, 8, 4, "k", **kwargs)


def refuse() -> tuple[Tensor, None]:
    raise AssertionError("is there already")


def test_reads_back_what_was_computed(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    x[1] = 0  # black is not missing
    rounded = (x * 255).round() / 255
    assert torch.equal(cache(tmp_path).get([3, 1], lambda: (x, None), CPU)[0], rounded)
    again = cache(tmp_path)
    assert torch.equal(again.get([1, 3], refuse, CPU)[0], rounded.flip(0))
    with pytest.raises(AssertionError, match="is there already"):
        again.get([1, 0], refuse, CPU)


@pytest.mark.parametrize("what", ["x", "flow", "checksum"])
def test_a_torn_row_is_computed_again(tmp_path: Path, what: str) -> None:
    made = cache(tmp_path, with_flow=True)
    x, flow = torch.rand(2, 3, 8, 8), torch.randn(2, 2, 8, 8)
    kept = made.get([0, 1], lambda: (x, flow), CPU)
    array = np.load(made.path, mmap_mode="r+")
    array[1][what] = array[1][what] + 1 if what != "checksum" else 0
    array.flush()
    again = cache(tmp_path, with_flow=True)
    again.get([0], refuse, CPU)
    with pytest.raises(AssertionError, match="is there already"):
        again.get([1], refuse, CPU)
    again.get([1], lambda: (x[1:], flow[1:]), CPU)
    assert all(torch.equal(a, b) for a, b in zip(again.get([0, 1], refuse, CPU), kept, strict=True))


def test_full_disk_is_said_and_not_fatal(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines: list[str] = []
    monkeypatch.setattr(prefix_cache, "rank_zero_warn", lines.append)
    monkeypatch.setattr(prefix_cache, "new_array", full)
    fit = Watched(WarpingStage(str(model_dir), 2), faces(), tmp_path, max_epochs=1)
    assert fit.computed == 6
    assert len(lines) == 1
    assert "No space left on device; x^(n) is not kept, but computed in every step" in lines[0]
    assert files(model_dir) == []


def test_says_how_much_space_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(prefix_cache, "rank_zero_info", lines.append)
    made, _ = (PrefixCache(tmp_path, 6, 512, 2, "k") for _ in range(2))
    assert lines == [f"x^(n) of 2 samples: 1.6 MB in {made.path}"]


def test_a_row_holds_the_flow_where_the_next_block_starts_from_it(tmp_path: Path) -> None:
    x, flow = torch.rand(2, 3, 8, 8), torch.randn(2, 2, 8, 8) * 5
    made = cache(tmp_path, with_flow=True)
    made.get([2, 0], lambda: (x, flow), CPU)
    kept, kept_flow = made.get([0, 2], refuse, CPU)
    assert torch.equal(kept, ((x * 255).round() / 255).flip(0))
    assert torch.equal(kept_flow, flow.half().float().flip(0))
    assert cache(tmp_path).path != made.path


def test_stages_share_x_and_the_flow(tmp_path: Path, network: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = RPFModel(**{**network, "flow_from": "previous"})
    with torch.no_grad():
        model.blocks[0].warping.flow_head.weight.normal_(std=0.05)
    model.save_pretrained(tmp_path / "model")
    fit = Watched(WarpingStage(str(tmp_path / "model"), 2), faces(), tmp_path, max_epochs=2)
    assert fit.computed == 6
    data = fit.trainer.datamodule.train_dataset
    for place, flows in fit.flows.items():
        with torch.no_grad():
            sample = data[place]
            _, flow = model.prefix(sample.lr[None], sample.reference[None], 2)
        assert len(flows) == 2
        assert torch.equal(*flows)
        torch.testing.assert_close(flows[0], flow[0], rtol=2**-10, atol=1e-4)
        assert flows[0].abs().max() > 0
