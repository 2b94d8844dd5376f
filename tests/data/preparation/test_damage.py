"""Damaged and made-up files of a prepared folder are named; a kill at the very end is mended."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rpf_lightning.cli import main
from rpf_lightning.data.preparation import pipeline
from rpf_lightning.data.preparation.annotating import WORK
from rpf_lightning.data.preparation.prepared_folder import content_hash
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.errors import DamagedError
from rpf_lightning.files import leads_out, read_csv

Prepare = Callable[..., dict[str, Any]]


class Killed(BaseException):
    """As a kill: nobody catches it."""


def test_a_kill_before_the_pictures_is_mended_by_the_same_call(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare("whole")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.sheets, "draw", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            prepare()
    out = tmp_path / "prepared"
    assert (out / "prepare.json").is_file()
    assert (out / WORK).is_dir()
    assert prepare()["sha256"] == whole["sha256"]
    assert {file.name for file in out.iterdir()} == {file.name for file in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("what", ["bit", "half", "empty", "other", "keys"])
def test_damaged_batches_of_an_interrupted_pass_are_named(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "near_duplicates", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            prepare(batch_size=4)
    batch = sorted((tmp_path / "prepared" / WORK).glob("*.npz"))[1]
    content = bytearray(batch.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {
        "bit": bytes(content),
        "half": bytes(content[: len(content) // 2]),
        "empty": b"",
        "other": b"text",
    }
    if what == "keys":
        np.savez_compressed(batch, index=[1])
    else:
        batch.write_bytes(changed[what])
    with pytest.raises(DamagedError, match=rf"^{batch}: damaged .*Delete it: its photos are looked at again"):
        prepare()
    batch.unlink()
    assert prepare()["sha256"] == prepare("whole")["sha256"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", "{", "\xff", "[" * 100_000, '{"format": 1}', '{"format": 1, "sha256": 3}']
)
def test_summaries_that_are_none_are_named(
    prepared: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (prepared / "prepare.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^{prepared}/prepare\.json: expected"):
        PreparedPhotos(prepared)
    with pytest.raises(SystemExit):
        main(["prepare", "verify", str(prepared)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rpf prepare verify: error: {prepared}/prepare.json: expected")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'file,identity\na.png,"{"x" * 140_000}\n', "after line 1: field larger than field limit"),
        ("file,identity,file\na.png,b,c\n", "the column 'file' is there twice"),
    ],
)
def test_lists_that_nobody_meant_are_named(prepare: Prepare, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}.* ?{re.escape(message)}"):
        prepare(identities=path)
    path.write_text("file,identity,,\na.png,b,,\n")  # as spreadsheets leave them
    assert read_csv(path)[0] == ["file", "identity", "", ""]


NAMES = [
    "../a.png",
    "a/../../b.png",
    "/etc/a.png",
    "..\\a.png",
    "a\\..\\..\\b.png",
    "\\a.png",
    "C:\\a.png",
    "C:a.png",
    "a\0b",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_their_folder_are_not_read(prepared: Path, name: str) -> None:
    assert leads_out(name)
    for table in ("images.parquet", "landmarks.parquet", "pairs_all.parquet"):
        columns = pq.read_table(prepared / table).to_pydict()
        for key in ("file", "gt", "reference"):
            if key in columns:
                columns[key] = [name if value == "0-1.png" else value for value in columns[key]]
        pq.write_table(pa.table(columns), prepared / table)
    summary = json.loads((prepared / "prepare.json").read_text())
    summary["sha256"] = content_hash(prepared, summary["splits"])  # whoever made it up
    (prepared / "prepare.json").write_text(json.dumps(summary))
    photos = PreparedPhotos(prepared)
    with pytest.raises(ValueError, match="expected a relative name without"):
        photos.photo(photos.ids.index(name))


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a..b/c..png", "...", "a b", "2020:01.png", "a\\b.png"])
def test_other_names_stay(name: str) -> None:
    assert not leads_out(name)
