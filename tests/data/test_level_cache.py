"""The cache of levels holds what would be made from the photos, to 8 bit, and survives being stopped."""

import errno
import json
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import data

from rpf_lightning.data import level_cache
from rpf_lightning.data.dataset import FacesDataset, PairsDataset
from rpf_lightning.data.level_cache import CachedPairs, LevelCache
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation.prepared_folder import new_array
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import mirror
from rpf_lightning.errors import DamagedError

SIDES = {"lr_size": 8, "size": 64}
HALF = 0.501 / 255


@pytest.fixture
def photos(prepared: Path) -> PreparedPhotos:
    return PreparedPhotos(prepared)


@pytest.fixture
def cache(photos: PreparedPhotos) -> LevelCache:
    indices = sorted({index for pair in some(photos) for index in pair[:2]})
    return LevelCache(photos, indices, sides=[16, 32, 64], **SIDES)


def some(photos: PreparedPhotos) -> list[Pair]:
    return photos.pairs("all")[:10]


@pytest.mark.parametrize(("side", "masked"), [(16, True), (32, False)])
def test_samples_are_those_made_from_the_photos(
    cache: LevelCache, photos: PreparedPhotos, side: int, masked: bool
) -> None:
    cache.mask_reference = masked
    cache.build(say=str)
    made = PairsDataset(photos, some(photos), **SIDES, side=side, mask_reference=masked, warped=True)
    read = CachedPairs(cache, some(photos), side, warped=True)
    part = CachedPairs(cache, some(photos)[7:2:-2], side)
    assert [sample.id for sample in part] == [read[i].id for i in (7, 5, 3)]
    torch.testing.assert_close(part[1].flow, read[5].flow)
    assert len(read) == 10
    for index in range(10):
        for name, expected in made[index]._asdict().items():
            value = getattr(read[index], name)
            if not isinstance(expected, torch.Tensor):
                assert value == expected
                continue
            rounded = name in ("gt", "reference", "warped_reference")
            # r_warp is made of the rounded reference of the full size, which is held here
            tolerance = 1.5 * HALF if name == "warped_reference" else HALF if rounded else 1e-6
            torch.testing.assert_close(value, expected, atol=tolerance, rtol=0, msg=f"{name} of {index}")
    torch.testing.assert_close(read[13].gt, mirror(read[3]).gt)
    assert (read[13].flow[0] + read[3].flow[0].flip(-1)).abs().max() == 0


def test_faces_without_references(photos: PreparedPhotos) -> None:
    cache = LevelCache(photos, [3, 5, 9], references=False, sides=[16, 64], **SIDES)
    assert not any("reference" in name or "ok" in name for name in cache.shapes())
    cache.build(say=str)
    made = FacesDataset(PairsDataset(photos, [], **SIDES, side=16), [9, 3])
    read = FacesDataset(CachedPairs(cache, [], 16), [9, 3])
    assert read[0].id == photos.ids[9]
    for index in range(2):
        torch.testing.assert_close(read[index].lr, made[index].lr)
        torch.testing.assert_close(read[index].gt, made[index].gt, atol=HALF, rtol=0)
        torch.testing.assert_close(read[index].gt_mask, made[index].gt_mask)
    torch.testing.assert_close(read[3].gt, mirror(read[1]).gt)
    source = FacesDataset(CachedPairs(cache, [], 16, source_side=64), [9])[0].lr
    whole = PairsDataset(photos, [], **SIDES, side=64).face(9).gt
    torch.testing.assert_close(source, whole, atol=HALF, rtol=0)


def test_size_is_said_before_anything_is_written(cache: LevelCache) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        assert not cache.folder.exists()
        lines.append(line)

    cache.build(say=say)
    assert len(lines) == 1
    assert f"{cache.gigabytes:.2f} GB" in lines[0]
    assert f"{len(cache.indices)} photos at sides 16, 32, 64" in lines[0]
    files = sum(path.stat().st_size for path in cache.path.glob("*.npy"))
    assert files == pytest.approx(cache.gigabytes * 1e9, abs=200 * len(cache.shapes()))
    cache.build(say=say)
    assert len(lines) == 1  # there is nothing left to do


def test_stopped_builds_continue(
    cache: LevelCache, photos: PreparedPhotos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(level_cache, "SAVE_EVERY", 4)
    read: list[int] = []
    photo = photos.photo

    def stopping(index: int):
        read.append(index)
        if len(read) == 7:
            raise RuntimeError("killed")
        return photo(index)

    monkeypatch.setattr(photos, "photo", stopping)
    with pytest.raises(RuntimeError, match="killed"):
        cache.build(say=str)
    assert not cache.path.exists()
    with pytest.raises(FileNotFoundError, match="was not built"):
        CachedPairs(cache, some(photos), 16)[0]
    part = cache.path.with_suffix(".part")
    assert json.loads((part / "progress.json").read_text()) == {"photos": 4}
    cache.build(say=str)
    assert read[7:] == cache.indices[4:]  # the first four were on the disk
    monkeypatch.setattr(photos, "photo", photo)
    made = PairsDataset(photos, some(photos), **SIDES, side=32)
    for index, sample in enumerate(CachedPairs(cache, some(photos), 32)):
        torch.testing.assert_close(sample.reference, made[index].reference, atol=HALF, rtol=0)
        torch.testing.assert_close(sample.gt, made[index].gt, atol=HALF, rtol=0)


def test_other_photos_are_refused(cache: LevelCache, photos: PreparedPhotos) -> None:
    """The cache is named by the photos that were prepared."""
    path = photos.images / photos.ids[cache.indices[2]]
    Image.new("RGB", (64, 64), "red").save(path)
    with pytest.raises(DamagedError, match=f"{path.name}: is not the photo that was prepared"):
        cache.build(say=str)
    assert not cache.path.exists()


@pytest.mark.parametrize(
    "name", ["lr", "gt_32", "mask_32", "reference_32", "reference_mask_32", "ok_32", "checksums"]
)
def test_a_flipped_bit_is_noticed(cache: LevelCache, photos: PreparedPhotos, name: str) -> None:
    cache.build(say=str)
    dataset = CachedPairs(cache, some(photos)[:1], 32)
    assert dataset[0].id == photos.ids[some(photos)[0].gt]
    file = cache.path / f"{name}.npy"
    array = np.load(file, mmap_mode="r+")
    array.view(np.uint8)[cache.row_of[some(photos)[0].gt]].flat[1] ^= 16
    array[cache.row_of[some(photos)[0].reference]] ^= 4
    array.flush()
    other = pickle.loads(pickle.dumps(dataset))  # maps the files anew
    which = r"\w+" if name == "checksums" else name
    with pytest.raises(
        DamagedError, match=rf"{which}\.npy: damaged, the checksum of .*png does not fit\. Delete"
    ):
        other[0]
    assert isinstance(CachedPairs(cache, some(photos)[-1:], 32)[0].gt, torch.Tensor)


@pytest.mark.parametrize("kind", ["float32", "shape", "torn"])
def test_another_kind_of_array_is_noticed(cache: LevelCache, photos: PreparedPhotos, kind: str) -> None:
    cache.build(say=str)
    file = cache.path / "gt_32.npy"
    array = np.load(file)
    if kind == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        np.save(file, array.astype(np.float32) if kind == "float32" else array[:-1])
    with pytest.raises(DamagedError, match=r"gt_32\.npy: damaged, "):
        CachedPairs(cache, some(photos), 32)[0]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_used_without_a_cache(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As root may write anywhere, the disk is asked for no more than its answer."""
    monkeypatch.setattr(
        level_cache, "locked", Mock(side_effect=OSError(number, "not here", str(prepared / "cache")))
    )
    with pytest.warns(UserWarning, match=r"not here.*: no cache of levels is made; cache_dir can"):
        module = data(prepared)
    assert len(module.train_dataset) > 0
    assert not isinstance(module.train_dataset, CachedPairs)


def test_a_full_disk_says_what_is_needed(cache: LevelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return new_array(*args)

    monkeypatch.setattr(level_cache, "new_array", full)
    message = r"the disk is full: the cache takes \d+\.\d\d GB in .*cache_dir"
    with pytest.raises(OSError, match=message) as error:
        cache.build(say=str)
    assert error.value.errno == errno.ENOSPC
    assert not list(cache.folder.glob("*.part"))  # what was not begun takes no space
    with monkeypatch.context() as patch:
        patch.setattr(LevelCache, "_open_part", Mock(side_effect=OSError(errno.ENOSPC, "not even a folder")))
        with pytest.raises(OSError, match=message):
            cache.build(say=str)
    monkeypatch.setattr(level_cache, "new_array", new_array)
    cache.build(say=str)
    assert cache.path.is_dir()


def test_workers_build_the_same(cache: LevelCache, photos: PreparedPhotos, tmp_path: Path) -> None:
    cache.build(say=str)
    other = LevelCache(photos, cache.indices, sides=[16, 32, 64], folder=tmp_path / "other", **SIDES)
    other.build(num_workers=2, say=str)
    assert other.path.parent == tmp_path / "other"
    for name in cache.shapes():
        np.testing.assert_array_equal(cache.array(name), other.array(name), err_msg=name)


def test_what_the_contents_depend_on_names_the_cache(cache: LevelCache, photos: PreparedPhotos) -> None:
    same = LevelCache(photos, cache.indices, sides=[32, 64, 16], **SIDES)
    assert same.path == cache.path
    others = [
        LevelCache(photos, cache.indices, references=False, sides=[16, 32, 64], **SIDES),
        LevelCache(photos, [*cache.indices, 17], sides=[16, 32, 64], **SIDES),
        LevelCache(photos, cache.indices, sides=[16], **SIDES),
        LevelCache(photos, cache.indices, sides=[16, 32, 64], mask_reference=False, **SIDES),
        LevelCache(photos, cache.indices, sides=[16, 32, 64], lr_size=4, size=64),
        LevelCache(photos, cache.indices, sides=[16, 32], lr_size=8, size=32),
    ]
    photos.sha256 = "of other photos"
    paths = {other.path for other in (*others, same)}
    assert len(paths | {cache.path}) == 7  # `cache` and `same` are of other photos now, and equal
    with pytest.raises(ValueError, match="lr_size < side <= size"):
        LevelCache(photos, [0], sides=[128], **SIDES)


def test_a_pickled_cache_is_small(cache: LevelCache, photos: PreparedPhotos) -> None:
    cache.build(say=str)
    dataset = CachedPairs(cache, some(photos), 32)
    first = dataset[0]
    assert len(pickle.dumps(dataset)) < cache.gigabytes * 1e9 / 5
    torch.testing.assert_close(pickle.loads(pickle.dumps(dataset))[0].flow, first.flow)
