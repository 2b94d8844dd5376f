"""The files of a prepared folder: hashes that depend on nothing but the content, and atomic arrays."""

import errno
import os
import unicodedata

import numpy as np
import pytest

from rpf_lightning.cli import main
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation import prepared_folder as tables
from rpf_lightning.data.preparation.prepared_folder import verify


def write(folder, shift=0.0, identity="p", mask=0, pair=1):
    """A prepared folder of three photos."""
    folder.mkdir(exist_ok=True)
    files = ["a.png", "b.png", "ç.png"]
    columns = {"file": files, "identity": [identity, "p", ""], "width": [8] * 3, "height": [8] * 3}
    tables.write_table(folder / tables.IMAGES, {**columns, "sha256": ["00", "11", "22"]})
    points = np.arange(3 * 136).reshape(3, 68, 2) / 100
    points[0, 0, 0] += shift
    tables.write_landmarks(folder / tables.LANDMARKS, files, points)
    with tables.array_file(folder / tables.MASKS, (3, 512, 64)) as masks:
        masks[:] = 0
        masks[1, 5, 7] = mask
    tables.write_pairs(folder / "pairs_all.parquet", [Pair(0, pair, 0.1), Pair(1, 0, 0.1)], files)
    return folder


# what this content gives, whatever the processor and the releases of pyarrow and numpy
GOLDEN = "b4f0971a1febd74e5c425b80f32f35da566da3881fe0be4c18c8c412bb9e0053"


def test_the_hash_is_the_contents_and_nothing_elses(tmp_path):
    def found(name, **change):
        return tables.content_hash(write(tmp_path / name, **change), ["all"])

    assert found("one") == found("two") == GOLDEN
    changes = [{"shift": 0.01}, {"identity": "q"}, {"mask": 1}, {"pair": 2}]
    assert len({found("three", **change) for change in changes} | {GOLDEN}) == 5
    assert found("three", shift=1e-6) == GOLDEN  # below 0.01 px


def test_pairs_are_ranked(tmp_path):
    pairs = [Pair(0, 1, 0.1), Pair(0, 2, 0.2), Pair(2, 0, 0.3), Pair(2, 1, 0.4)]
    tables.write_pairs(tmp_path / "p.parquet", pairs, ["a", "b", "c"])
    assert tables.read_table(tmp_path / "p.parquet", ["gt", "reference", "rank", "distance"]) == {
        "gt": ["a", "a", "c", "c"], "reference": ["b", "c", "a", "b"], "rank": [0, 1, 0, 1],
        "distance": [0.1, 0.2, 0.3, 0.4],
    }  # fmt: skip


def test_landmarks_and_masks_survive(tmp_path):
    points = np.random.default_rng(0).uniform(0, 512, (4, 68, 2))
    tables.write_landmarks(tmp_path / "l.parquet", list("abcd"), points)
    files, read = tables.read_landmarks(tmp_path / "l.parquet")
    assert files == list("abcd")
    np.testing.assert_array_equal(read, points)
    mask = np.random.default_rng(0).integers(0, 2, (512, 512), np.uint8)
    small, large = mask[:64, :64], np.kron(mask, np.ones((2, 2), np.uint8))
    for given, kept in ((mask, mask), (small, np.kron(small, np.ones((8, 8)))), (large, mask)):
        np.testing.assert_array_equal(tables.unpack_mask(tables.pack_mask(given)), kept)


def test_broken_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x.parquet: no such file; `rpf prepare` writes it"):
        tables.read_table(tmp_path / "x.parquet", ["file"])
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(ValueError, match=r"x.parquet: expected a Parquet file with file"):
        tables.read_table(tmp_path / "x.parquet", ["file"])
    (tmp_path / "x.npy").write_text("nothing")
    with pytest.raises(ValueError, match=r"x.npy: expected a whole array file"):
        tables.read_array(tmp_path / "x.npy")


def test_an_array_that_was_not_filled_is_no_file(tmp_path):
    with pytest.raises(TypeError), tables.array_file(tmp_path / "a.npy", (3, 4)) as array:
        array[:] = object()
    assert list(tmp_path.iterdir()) == []
    with tables.array_file(tmp_path / "a.npy", (3, 4), "float16") as array:
        array[:] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.full((3, 4), 7, np.float16))
    with tables.array_file(tmp_path / "b.npy", (0, 4)) as array:
        assert array.shape == (0, 4)
    assert np.load(tmp_path / "b.npy").shape == (0, 4)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is taken by writing zeros")
def test_space_is_taken_before_an_array_is_filled(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with tables.array_file(tmp_path / "a.npy", (1000, 1000)):
        taken = next(tmp_path.iterdir()).stat()
        assert taken.st_blocks * 512 >= 1e6  # not a file with holes
    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(OSError, match="No space left"),
        tables.array_file(tmp_path / "b.npy", (10, 10)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_verify_finds_every_change(prepared, folder, tmp_path, capsys):
    def refused(message, *words):
        with pytest.raises(SystemExit, match="2"):
            main(["prepare", "verify", *map(str, words)])
        assert message in capsys.readouterr().err

    assert verify(prepared) == []
    moved = (folder / "images").rename(tmp_path / "moved")
    refused(f"{folder / 'images' / '0-0.png'}: is missing", prepared)
    main(["prepare", "verify", str(prepared), "--images", str(moved)])
    said = "18 photos, their people, landmarks, masks and pairs are as prepared; sha256"
    assert said in capsys.readouterr().out
    photo = moved / "0-0.png"
    content = photo.read_bytes()
    photo.write_bytes(content + b"x")
    assert verify(prepared, moved) == [f"{photo}: is not the photo that was prepared"]
    photo.write_bytes(content)
    masks = np.load(prepared / tables.MASKS)
    masks[3, 100, 30] ^= 1
    np.save(prepared / tables.MASKS, masks)
    refused(f"{prepared}: the tables' SHA-256 is ", prepared, "--images", moved)
    (prepared / tables.LANDMARKS).unlink()
    refused("landmarks.parquet: no such file", prepared)
    refused("prepare.json: no such file", tmp_path)


def test_names_are_found_in_any_mixture_of_unicode_forms(tmp_path):
    folder, name = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "ü.jpg")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).touch()
    wanted = unicodedata.normalize("NFC", f"{folder}/{name}")
    assert tables.find_file(tmp_path, wanted) == tmp_path / folder / name
    assert tables.find_file(tmp_path, "é/x.jpg") is None


def test_other_formats_are_refused(tmp_path):
    for text, message in (('{"format": 0}', "expected format 1, got 0"), ("{", "expected JSON")):
        (tmp_path / "prepare.json").write_text(text)
        with pytest.raises(ValueError, match=rf"prepare.json: {message}"):
            verify(tmp_path)
