"""The files of a prepared folder: hashes that depend on nothing but the content, and atomic arrays."""

import errno
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation import prepared_folder
from rpf_lightning.data.preparation.prepared_folder import verify


def write(folder: Path, shift: float = 0.0, identity: str = "p", mask: int = 0, pair: int = 1) -> Path:
    """A prepared folder of three photos, written with the functions of `tables`."""
    folder.mkdir(exist_ok=True)
    files = ["a.png", "b.png", "ç.png"]
    prepared_folder.write_table(
        folder / prepared_folder.IMAGES,
        {
            "file": files,
            "identity": [identity, "p", ""],
            "width": [8, 8, 8],
            "height": [8, 8, 8],
            "sha256": ["00", "11", "22"],
        },
    )
    points = np.arange(3 * 136).reshape(3, 68, 2) / 100
    points[0, 0, 0] += shift
    prepared_folder.write_landmarks(folder / prepared_folder.LANDMARKS, files, points)
    with prepared_folder.array_file(folder / prepared_folder.MASKS, (3, 512, 64)) as masks:
        masks[:] = 0
        masks[1, 5, 7] = mask
    prepared_folder.write_pairs(folder / "pairs_all.parquet", [Pair(0, pair, 0.1), Pair(1, 0, 0.1)], files)
    return folder


# what this content gives, whatever the processor and the releases of pyarrow and numpy
GOLDEN = "b4f0971a1febd74e5c425b80f32f35da566da3881fe0be4c18c8c412bb9e0053"


def test_the_hash_is_the_contents_and_nothing_elses(tmp_path: Path) -> None:
    found = prepared_folder.content_hash(write(tmp_path / "one"), ["all"])
    assert found == GOLDEN
    assert prepared_folder.content_hash(write(tmp_path / "two"), ["all"]) == found
    changes: list[dict[str, Any]] = [{"shift": 0.01}, {"identity": "q"}, {"mask": 1}, {"pair": 2}]
    others = {
        prepared_folder.content_hash(write(tmp_path / "three", **change), ["all"]) for change in changes
    }
    assert len(others | {found}) == 5
    assert (
        prepared_folder.content_hash(write(tmp_path / "three", shift=1e-6), ["all"]) == found
    )  # below 0.01 px


def test_pairs_are_ranked(tmp_path: Path) -> None:
    pairs = [Pair(0, 1, 0.1), Pair(0, 2, 0.2), Pair(2, 0, 0.3), Pair(2, 1, 0.4)]
    prepared_folder.write_pairs(tmp_path / "p.parquet", pairs, ["a", "b", "c"])
    table = prepared_folder.read_table(tmp_path / "p.parquet", ["gt", "reference", "rank", "distance"])
    assert table["rank"] == [0, 1, 0, 1]
    assert table["gt"] == ["a", "a", "c", "c"]
    assert table["reference"] == ["b", "c", "a", "b"]
    assert table["distance"] == [0.1, 0.2, 0.3, 0.4]


def test_landmarks_and_masks_survive(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 512, (4, 68, 2))
    prepared_folder.write_landmarks(tmp_path / "l.parquet", list("abcd"), points)
    files, read = prepared_folder.read_landmarks(tmp_path / "l.parquet")
    assert files == list("abcd")
    np.testing.assert_array_equal(read, points)
    mask = np.random.default_rng(0).integers(0, 2, (512, 512), np.uint8)
    np.testing.assert_array_equal(prepared_folder.unpack_mask(prepared_folder.pack_mask(mask)), mask)
    small = mask[:64, :64]
    np.testing.assert_array_equal(
        prepared_folder.unpack_mask(prepared_folder.pack_mask(small)), np.kron(small, np.ones((8, 8)))
    )
    large = np.kron(mask, np.ones((2, 2), np.uint8))
    np.testing.assert_array_equal(prepared_folder.unpack_mask(prepared_folder.pack_mask(large)), mask)


def test_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x.parquet: no such file; `rpf prepare` writes it"):
        prepared_folder.read_table(tmp_path / "x.parquet", ["file"])
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(ValueError, match=r"x.parquet: expected a Parquet file with file"):
        prepared_folder.read_table(tmp_path / "x.parquet", ["file"])
    (tmp_path / "x.npy").write_text("nothing")
    with pytest.raises(ValueError, match=r"x.npy: expected a whole array file"):
        prepared_folder.read_array(tmp_path / "x.npy")


def test_an_array_that_was_not_filled_is_no_file(tmp_path: Path) -> None:
    def stop() -> None:
        with prepared_folder.array_file(tmp_path / "a.npy", (3, 4)) as array:
            array[:] = 7
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        stop()
    assert list(tmp_path.iterdir()) == []
    with prepared_folder.array_file(tmp_path / "a.npy", (3, 4), "float16") as array:
        array[:] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.full((3, 4), 7, np.float16))
    with prepared_folder.array_file(tmp_path / "b.npy", (0, 4)) as array:
        assert array.shape == (0, 4)
    assert np.load(tmp_path / "b.npy").shape == (0, 4)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is taken by writing zeros")
def test_space_is_taken_before_an_array_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with prepared_folder.array_file(tmp_path / "a.npy", (1000, 1000)):
        taken = next(tmp_path.iterdir()).stat()
        assert taken.st_blocks * 512 >= 1e6  # not a file with holes
    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(OSError, match="No space left"),
        prepared_folder.array_file(tmp_path / "b.npy", (10, 10)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_verify_finds_every_change(prepared: Path, folder: Path, tmp_path: Path) -> None:
    assert verify(prepared) == []
    photo = folder / "images" / "0-0.png"
    content = photo.read_bytes()
    photo.write_bytes(content + b"x")
    assert verify(prepared) == [f"{photo}: is not the photo that was prepared"]
    photo.unlink()
    assert verify(prepared) == [f"{photo}: is missing"]
    photo.write_bytes(content)
    masks = np.load(prepared / prepared_folder.MASKS)
    masks[3, 100, 30] ^= 1
    np.save(prepared / prepared_folder.MASKS, masks)
    (problem,) = verify(prepared)
    assert "SHA-256" in problem
    masks[3, 100, 30] ^= 1
    np.save(prepared / prepared_folder.MASKS, masks)
    assert verify(prepared) == []
    (prepared / prepared_folder.LANDMARKS).unlink()
    (problem,) = verify(prepared)
    assert "landmarks.parquet: no such file" in problem


def test_verify_on_the_command_line(
    prepared: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str, *words: str) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["prepare", "verify", *words])
        assert message in capsys.readouterr().err

    main(["prepare", "verify", str(prepared)])
    assert (
        "18 photos, their people, landmarks, masks and pairs are as prepared; sha256"
        in capsys.readouterr().out
    )
    moved = (folder / "images").rename(tmp_path / "moved")
    refused("is missing", str(prepared))
    main(["prepare", "verify", str(prepared), "--images", str(moved)])
    Image.new("RGB", (64, 64)).save(moved / "0-0.png")
    refused("is not the photo that was prepared", str(prepared), "--images", str(moved))
    refused("prepare.json: no such file", str(tmp_path))


def test_names_are_found_in_any_mixture_of_unicode_forms(tmp_path: Path) -> None:
    folder, name = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "ü.jpg")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).touch()
    wanted = unicodedata.normalize("NFC", f"{folder}/{name}")
    assert prepared_folder.find_file(tmp_path, wanted) == tmp_path / folder / name
    assert prepared_folder.find_file(tmp_path, "é/x.jpg") is None


def test_other_formats_are_refused(prepared: Path, prepare: Callable[..., Any]) -> None:
    summary = json.loads((prepared / "prepare.json").read_text())
    (prepared / "prepare.json").write_text(json.dumps({**summary, "format": 0}))
    with pytest.raises(ValueError, match=r"prepare.json: expected format 1, got 0"):
        verify(prepared)
