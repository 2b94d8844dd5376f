"""SIGTERM stops every long command as Ctrl-C does: a line, exit code 143, no temporary file, and it goes on."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rpf_lightning import predicting
from rpf_lightning.cli import main
from rpf_lightning.data.preparation import annotator
from rpf_lightning.evaluation.progress import Progress
from rpf_lightning.stages import WarpingStage
from rpf_lightning.stopping import SIGNALS, stoppable
from small_fits import entry, write_listed

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def handlers_as_before() -> Any:
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, found)
    assert after == before


def signalled(monkeypatch: Patch, owner: Any, name: str, number: int, call: int = 2) -> None:
    """The k-th call of a function gets a signal, as from another process."""
    whole, calls = getattr(owner, name), []

    def and_signal(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
            time.sleep(5)  # ends when it has come
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, and_signal)


def stopped(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str], number: int, goes_on: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 128 + number
    said = capsys.readouterr().err.splitlines()
    command = " ".join(words[: 2 if words[0] == "prepare" else 1])
    assert f"rpf {command}: stopped by {signal.Signals(number).name}; {goes_on}" in said
    assert not any("Traceback" in line for line in said)
    assert not [file for file in folder.rglob("*") if file.name.endswith((".tmp", ".part"))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["curriculum", "fit"])
def test_fits(
    command: str, number: int, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_listed(tmp_path, [entry("block1-warping")])
    words = ["curriculum", "--config", str(path), "--trainer.max_epochs", "2"]
    goes_on, more = "the same command continues", []
    if command == "fit":
        network = ["--model.init_args.network", '{"lr_size": 16, "scale": 2, "channels": 4, "width": 0.02}']
        where = ["--model.init_args.model_dir", str(tmp_path / "model")]
        words = [
            "fit",
            "--config",
            str(tmp_path / "warping.yaml"),
            "--trainer.max_epochs",
            "2",
            *network,
            *where,
        ]
        goes_on, more = "with --ckpt_path last the same command continues", ["--ckpt_path", "last"]
    with monkeypatch.context() as patch:
        signalled(patch, WarpingStage, "training_step", number, call=4)  # in the second epoch
        stopped(words, tmp_path, capsys, number, goes_on)
    steps: list[int] = []
    step = WarpingStage.training_step
    monkeypatch.setattr(
        WarpingStage, "training_step",
        lambda self, batch, batch_idx: (steps.append(self.current_epoch), step(self, batch, batch_idx))[1],
    )  # fmt: skip
    main([*words, *more])
    assert steps == [1, 1]
    last = tmp_path / "model" / "runs" / "block1-warping" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["generator_steps"] == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_preparing(
    number: int, folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        f"--landmarks {folder}/landmarks.csv --labels {folder}/labels --label-scheme bisenet --no-embeddings"
    )
    words = f"prepare faces --images {folder}/images {given} --num-workers 0 --batch-size 4".split()
    with monkeypatch.context() as patch:
        signalled(patch, annotator, "read_photo", number, call=9)
        stopped(
            [*words, "--out", str(tmp_path / "out")], tmp_path, capsys, number, "the same command continues"
        )
    main([*words, "--out", str(tmp_path / "out")])
    assert "were done before" in capsys.readouterr().out
    main([*words, "--out", str(tmp_path / "whole")])
    one, other = (json.loads((tmp_path / name / "prepare.json").read_text()) for name in ("out", "whole"))
    assert one["sha256"] == other["sha256"]


def test_evaluating(
    prepared: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = f"evaluate --data {prepared} --split all --lr-size 16 --size 64 --method bicubic --out {out}"
    words += " --batch-size 2 --grid-images 0 --contact-images 0"
    with monkeypatch.context() as patch:
        signalled(patch, Progress, "append", signal.SIGTERM)
        stopped(words.split(), tmp_path, capsys, signal.SIGTERM, "the same command continues")
    assert not (out / "results.json").exists()
    before = len((out / "progress.jsonl").read_text().splitlines())
    assert before == 3  # the setup and two pairs
    main(words.split())
    assert json.loads((out / "results.json").read_text())["per_image"]


def test_enhancing_a_list(
    model_dir: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("lr\na.png\nb.png\nc.png\n")
    out = tmp_path / "out"
    words = f"enhance --aligned --csv {tmp_path}/list.csv --model-dir {model_dir} --out {out} --batch-size 1"
    with monkeypatch.context() as patch:
        signalled(patch, predicting, "write_atomically", signal.SIGTERM)
        stopped(words.split(), tmp_path, capsys, signal.SIGTERM, "the same command continues")
    assert [file.name for file in out.iterdir()] == ["a.png"]
    main(words.split())
    assert "2 of them new" in capsys.readouterr().out


def test_a_signal_in_the_middle_of_a_write_leaves_nothing(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_listed(tmp_path, [entry("block1-warping")])
    signalled(monkeypatch, os, "fsync", signal.SIGTERM, call=5)  # before a file of the fit has its name
    words = ["curriculum", "--config", str(path)]
    stopped(words, tmp_path, capsys, signal.SIGTERM, "the same command continues")


def test_a_second_signal_does_not_disturb_the_cleaning(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned: list[str] = []

    def run() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # launchers send several
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append("all")

    with pytest.raises(SystemExit) as stop, stoppable("rpf x"):
        run()
    assert (stop.value.code, cleaned) == (143, ["all"])
    assert capsys.readouterr().err == "rpf x: stopped by SIGTERM\n"


def test_an_ignored_signal_stays_ignored_and_other_errors_pass(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        raise KeyError("its own")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with pytest.raises(KeyError), stoppable("rpf x"):
            run()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == ""
