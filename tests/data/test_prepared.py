"""Prepared photos and who is in which part."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.pairing import nearest_references, split_by_identity
from rpf_lightning.data.preparation import prepared_folder
from rpf_lightning.data.prepared_photos import Parts, PreparedPhotos
from rpf_lightning.errors import DamagedError
from small_fits import write_fit

Prepare = Callable[..., dict[str, Any]]


def test_photos_may_move(prepared: Path, folder: Path, tmp_path: Path) -> None:
    moved = (folder / "images").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="say where they lie now"):
        PreparedPhotos(prepared)
    photos = PreparedPhotos(prepared, moved)
    assert photos.photo(0).image.shape == (64, 64, 3)
    (moved / photos.ids[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"0-0\.png: no such file"):
        photos.photo(0)
    Image.new("RGB", (64, 32)).save(moved / photos.ids[0])
    with pytest.raises(DamagedError, match=r"0-0\.png: is not the photo that was prepared"):
        photos.photo(0)


@pytest.mark.parametrize("what", ["masks.npy", "landmarks.parquet", "images.parquet", "pairs_all.parquet"])
def test_tables_that_are_not_the_prepared_ones_are_refused(prepared: Path, what: str) -> None:
    path = prepared / what
    if what == "masks.npy":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        table = pq.read_table(path).to_pydict()
        column = {"landmarks.parquet": "x3", "images.parquet": "identity", "pairs_all.parquet": "rank"}[what]
        table[column][2] = table[column][2] * 2 + (1 if column == "rank" else table[column][0])
        pq.write_table(pa.table(table), path)
    with pytest.raises(DamagedError, match=rf"^{prepared}: .* are not those that were prepared"):
        PreparedPhotos(prepared)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluations_and_fits_tell_changed_photos_in_a_line(
    prepared: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / "images" / "0-1.png")
    data = {
        "root": str(prepared),
        "cache_side": 0,
        "batch_size": 2,
        "num_workers": workers,
        "val_fraction": 0.34,
    }
    pairs = {"class_path": "rpf_lightning.data.ReferencePairsDataModule", "init_args": data}
    network = {"lr_size": 16, "scale": 2, "channels": 4, "width": 1 / 64}
    fit = write_fit(
        tmp_path / "fit.yaml", "WarpingStage", {"limit_train_batches": None}, data=pairs,
        model_dir=str(tmp_path / "model"), network=network,
    )  # fmt: skip
    evaluate = f"evaluate --data {prepared} --split all --lr-size 16 --size 64 --method bicubic --num-workers {workers}"
    for words in (["fit", "--config", str(fit)], [*evaluate.split(), "--out", str(tmp_path / "out")]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert line.startswith(
            f"rpf {words[0]}: error: {folder / 'images' / '0-1.png'}: is not the photo that was"
        )


def test_workers_map_the_masks_themselves(prepared: Path) -> None:
    photos = PreparedPhotos(prepared)
    photos.photo(0)
    state = pickle.dumps(photos)
    assert len(state) < 18 * 512 * 64 / 4
    np.testing.assert_array_equal(pickle.loads(state).photo(3).mask, photos.photo(3).mask)


def test_what_is_no_prepared_folder_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prepare.json: no such file; `rpf prepare"):
        PreparedPhotos(tmp_path)
    photos = PreparedPhotos(prepared)
    with pytest.raises(FileNotFoundError, match=r"pairs_train.parquet: no such split; .* has all"):
        photos.pairs("train")
    masks = np.load(prepared / prepared_folder.MASKS)
    np.save(prepared / prepared_folder.MASKS, masks[:-1])
    with pytest.raises(ValueError, match="do not hold the same photos"):
        PreparedPhotos(prepared)


def test_people_are_held_out_where_no_part_was_written(prepared: Path) -> None:
    photos = PreparedPhotos(prepared)
    parts = Parts(photos, "", 0.34, seed=3)
    people = {
        part: {photos.identities[i] for p in pairs for i in p[:2]} for part, pairs in parts.pairs.items()
    }
    assert not people["train"] & people["val"]
    assert people["val"] == {photos.identities[i] for i in split_by_identity(photos.identities, 0.34, 3)[1]}
    assert len(people["val"]) == 2
    assert parts.pairs["test"] == parts.pairs["val"]
    assert {photos.identities[i] for i in parts.photos["train"]} == people["train"]
    assert {photos.identities[i] for i in parts.photos["val"]} == people["val"]
    with pytest.raises(FileNotFoundError, match=r"pairs_paper_train.parquet: no such split"):
        Parts(photos, "paper", 0.3, 0)


def test_written_parts_are_used(prepare: Prepare, tmp_path: Path) -> None:
    prepare(val_fraction=0.34, seed=1)
    photos = PreparedPhotos(tmp_path / "prepared")
    parts = Parts(photos, "", 0.9, seed=5)
    assert parts.pairs["train"] == photos.pairs("train")
    assert parts.pairs["val"] == photos.pairs("val")
    held_out = {photos.identities[pair.gt] for pair in parts.pairs["val"]}
    assert not held_out & {photos.identities[i] for i in parts.photos["train"]}


def test_people_held_out_are_not_trained_on_by_photos_without_a_pair(
    prepare: Prepare, tmp_path: Path
) -> None:
    prepare(val_fraction=0.34, seed=1)
    photos = PreparedPhotos(tmp_path / "prepared")
    val = photos.pairs("val")
    prepared_folder.write_pairs(tmp_path / "prepared" / "pairs_val.parquet", val[1:], photos.ids)
    parts = Parts(photos, "", 0.5, seed=0)
    assert val[0].gt not in parts.photos["train"] + parts.photos["val"]


def test_stage_one_sees_unknown_people_and_nobody_held_out(
    prepare: Prepare, folder: Path, tmp_path: Path
) -> None:
    text = (folder / "identities.csv").read_text()
    text = text.replace("0-2.png,p0", "0-2.png,").replace("5-0.png,p5", "5-0.png,")
    (folder / "identities.csv").write_text(text)
    prepare()
    photos = PreparedPhotos(tmp_path / "prepared")
    parts = Parts(photos, "", 0.34, seed=0)
    assert {"0-2.png", "5-0.png"} <= {photos.ids[i] for i in parts.photos["train"]}
    people = [{photos.identities[i] for i in parts.photos[part]} for part in ("train", "val")]
    assert not people[0] & people[1]
    assert len(parts.photos["train"]) + len(parts.photos["val"]) == 18


def test_without_people_photos_are_held_out(prepare: Prepare, tmp_path: Path) -> None:
    prepare(identities=None)
    photos = PreparedPhotos(tmp_path / "prepared")
    parts = Parts(photos, "", 0.25, seed=0)
    assert len(parts.photos["val"]) == round(0.25 * 18)
    assert sorted(parts.photos["train"] + parts.photos["val"]) == list(range(18))
    assert Parts(photos, "", 0.0, seed=0).photos == {"train": list(range(18)), "val": [], "test": []}


def test_the_papers_split_shares_people_but_no_test_photo(prepared: Path) -> None:
    """`paper_test`: photo 0 of people 0 and 1; their other photos are trained on, as in the paper."""
    photos = PreparedPhotos(prepared)
    gts = [photos.ids.index(name) for name in ("0-0.png", "1-0.png")]
    test = [pair for pair in photos.pairs("all") if pair.gt in gts]
    rest = ["" if i in gts else name for i, name in enumerate(photos.identities)]
    train = nearest_references(rest, photos.landmarks)
    for name, pairs in (("paper_test", test), ("paper_train", train)):
        prepared_folder.write_pairs(prepared / prepared_folder.pairs_file(name), pairs, photos.ids)
    summary = json.loads((prepared / "prepare.json").read_text())
    summary["splits"] = ["paper_train", "paper_test"]
    summary["sha256"] = prepared_folder.content_hash(prepared, summary["splits"])
    (prepared / "prepare.json").write_text(json.dumps(summary))
    photos = PreparedPhotos(prepared)
    parts = Parts(photos, "paper", 0.34, seed=0)
    assert parts.pairs["test"] == test
    held_out = {photos.identities[pair.gt] for pair in parts.pairs["val"]}
    assert held_out
    trained = {photos.ids[i] for i in parts.photos["train"]}
    assert not {"0-0.png", "1-0.png"} & trained
    others = {f"p{i}" for i in range(6)} - held_out
    assert {photos.identities[i] for i in parts.photos["train"]} == others
    assert {photos.identities[pair.gt] for pair in parts.pairs["train"]} == others
