"""Kills, full disks and second calls."""

import errno
import signal

import pytest
from csv_files import rows, write

from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.preparation import DiskFullError, StoppedError, annotating, annotator, prepared_folder


def test_finished_folders_are_not_made_again(prepare, folder, monkeypatch):
    first = prepare()
    monkeypatch.setattr(annotator, "read_photo", None)  # would fail if a photo were read
    lines = []
    assert prepare(say=lines.append, batch_size=3) == first
    assert "was prepared before" in lines[0]
    with pytest.raises(ValueError, match=r"begun with other arguments:\n  references: 1 then, 2 now"):
        prepare(references=2)
    write(folder, "identities.csv", rows(folder, "identities.csv")[:-1])
    with pytest.raises(ValueError, match=r"identities: 'identities\.csv "):
        prepare()
    (folder / "labels" / "0-0.png").write_bytes(b"another map")
    with pytest.raises(ValueError, match=r"labels: '18 files \w+' then"):
        prepare()


@pytest.mark.parametrize("disk", [0, errno.ENOSPC], ids=["killed", "disk full"])
def test_stopped_runs_continue(prepare, tmp_path, monkeypatch, disk):
    whole = prepare("whole")
    write_atomically, read = annotator.write_atomically, []

    def stop(path, content):
        if len(list(path.parent.glob("*.npz"))) == 3:
            raise OSError(disk, "No space left on device") if disk else RuntimeError("killed")
        write_atomically(path, content)

    def counting(path, content, notes):
        read.append(path.name)
        return read_photo(path, content, notes)

    monkeypatch.setattr(annotator, "write_atomically", stop)
    monkeypatch.setattr(annotator, "read_photo", counting)
    expected = (DiskFullError, "the disk is full.*continues") if disk else (RuntimeError, "killed")
    with pytest.raises(expected[0], match=expected[1]):
        prepare(batch_size=4)
    assert not (tmp_path / "prepared" / "prepare.json").exists()
    monkeypatch.setattr(annotator, "write_atomically", write_atomically)
    before = set(read[:12])
    read.clear()
    lines = []
    with pytest.raises(ValueError, match="mask_model: 'bisenet' then, 'hull' now"):
        prepare(batch_size=4, mask_model="hull")
    summary = prepare(batch_size=5, say=lines.append)
    assert "12 of 18 photos were done before" in lines
    assert len(read) == 6  # nothing twice
    assert not before & set(read)
    assert summary["sha256"] == whole["sha256"]  # nothing lost


def test_after_the_pass_pairing_may_change_and_photos_may_not(prepare, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_folder, "new_array", full)
        with pytest.raises(DiskFullError, match="the disk is full"):
            prepare()
    assert (tmp_path / "prepared" / "work").is_dir()
    # batches go by the photos' places: with one photo replaced, all annotations would move
    moved = [(folder / part / "0-0.png", folder / part / "9-9.png") for part in ("images", "labels")]
    for old, new in moved:
        old.rename(new)
    with pytest.raises(ValueError, match=r"photos: '18 files \w+' then, '18 files \w+' now"):
        prepare()
    for old, new in moved:
        new.rename(old)
    write(folder, "identities.csv", rows(folder, "identities.csv")[:-3])
    monkeypatch.setattr(annotator, "read_photo", None)
    with pytest.raises(TypeError):  # control: reading would fail
        prepare("control")
    assert sum(prepare(references=2, val_fraction=0.4)["counts"]["pairs"].values()) == 30


def test_ctrl_c_keeps_what_was_done(prepare, tmp_path, monkeypatch):
    """Lightning may end a prediction quietly then: half of the photos must not pass for all of them."""
    seen = []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(path, content, notes):
        seen.append(path)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return read_photo(path, content, notes)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(annotator, "read_photo", interrupted)
            with pytest.raises((SystemExit, KeyboardInterrupt, StoppedError)):
                prepare(batch_size=4)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert not (tmp_path / "prepared" / "prepare.json").exists()
    lines = []
    assert prepare(say=lines.append)["counts"]["kept"] == 18
    assert "8 of 18 photos were done before" in lines

    monkeypatch.setattr(annotating, "_run", lambda *_: True)  # a pass that ends quietly
    with pytest.raises(StoppedError, match="stopped after 0 of 18 photos; the same command continues"):
        prepare("quiet")
