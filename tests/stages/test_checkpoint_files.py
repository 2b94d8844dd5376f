"""Checkpoints are whole or not there, checked, and data only."""

import random
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rpf_lightning.errors import DamagedError
from rpf_lightning.stages.checkpoint_files import CheckpointFiles
from stage_fits import make

CONTENT = {"state_dict": {"a": torch.arange(3000.0), "b": torch.ones(7, 5)}, "epoch": 3, "names": ["x", "y"]}


def equal(found: dict[str, Any]) -> bool:
    same = all(torch.equal(found["state_dict"][name], value) for name, value in CONTENT["state_dict"].items())
    return same and {**found, "state_dict": 0} == {**CONTENT, "state_dict": 0}


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path: Path) -> None:
    """What torch itself would read without a word, in most places."""
    path, files, draw = tmp_path / "last.ckpt", CheckpointFiles(), random.Random(0)
    files.save_checkpoint(CONTENT, path)
    whole = path.read_bytes()
    assert equal(files.load_checkpoint(path))
    noticed = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert equal(files.load_checkpoint(path))  # of what nobody reads, such as a date
        except DamagedError:
            noticed += 1
    assert noticed > 300
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match="delete it: then the fit starts from its beginning"):
        files.load_checkpoint(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt: there is no such checkpoint"):
        files.load_checkpoint(path)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may become larger: a write fails in its middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 5000, 100_000])
def test_a_write_that_fails_in_its_middle_leaves_the_checkpoint_before(tmp_path: Path, size: int) -> None:
    path, files = tmp_path / "last.ckpt", CheckpointFiles()
    files.save_checkpoint(CONTENT, path)
    with room_for(size), pytest.raises(OSError, match=rf"{path}"):
        files.save_checkpoint({**CONTENT, "more": torch.zeros(200_000)}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert equal(files.load_checkpoint(path))


def test_fits_write_no_file_elsewhere(
    model_dir: Path, fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own way takes the space twice: in /tmp, and then here."""

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a file in /tmp")

    monkeypatch.setattr(tempfile, "mkstemp", elsewhere)
    trainer = fit(make("warping", model_dir))
    assert isinstance(trainer.strategy.checkpoint_io, CheckpointFiles)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert CheckpointFiles().load_checkpoint(tmp_path / "a.ckpt")["fit"] == "block2-warping"
