"""Two gloo processes on the CPU: equal weights, disjoint data, exact resume, and one process goes on from theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rpf_lightning.model import RPFModel

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
import torch
from lightning import Callback, Trainer
from rpf_lightning.callbacks import AveragedWeights, LastCheckpoint
from rpf_lightning.data import SyntheticFacesDataModule
from rpf_lightning.model.storage import weights_hash
from rpf_lightning.stages import JointStage, SynthesisStage

class Watch(Callback):
    def __init__(self): self.places, self.hashes, self.average = [], [], []
    def on_train_epoch_start(self, trainer, stage):
        if trainer.current_epoch == 1 and trainer.is_global_zero and (OUT / "last.ckpt").is_file():
            shutil.copy(OUT / "last.ckpt", OUT / "first.ckpt")
    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        self.places.append([trainer.current_epoch, *batch.place])
        if KIND == "poison" and trainer.global_rank == 1 and len(self.places) == 2: batch.gt[0, 0, 3, 3] = float("nan")
    def on_train_batch_end(self, trainer, stage, *args):
        critic = weights_hash(stage.critic.state_dict()) if stage.critic else ""
        self.hashes.append(weights_hash(stage.trained_module.state_dict()) + critic)
    def on_validation_batch_end(self, trainer, stage, *args):
        self.average.append(weights_hash(stage.trained_module.state_dict()))
    def on_exception(self, trainer, stage, exception): self.write(trainer, repr(exception))
    def on_fit_end(self, trainer, stage):
        self.average.append(weights_hash(stage.trained_module.state_dict()))
        self.write(trainer, "")
    def write(self, trainer, error):
        val = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        seen = {"places": self.places, "hashes": self.hashes, "average": self.average, "error": error, "val": val}
        (OUT / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))

if __name__ == "__main__":
    OUT, MODEL, KIND, DEVICES, EPOCHS = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    torch.manual_seed(0)
    if KIND == "joint":
        stage = JointStage(MODEL, 1, 2, perceptual_weight=0.0, identity_weight=0.0, entry_fraction=0.5)
        drawn = dict(references="all", max_references=3, several_fraction=0.5, wrong_fraction=0.2, absent_fraction=0.3)
    else:
        stage, drawn = SynthesisStage(MODEL, 2, learning_rate=1e-2, accumulate=2), {}
    # on purpose other random numbers in each process: what is drawn may differ, what is trained may not
    torch.manual_seed(100 + int(os.environ.get("LOCAL_RANK", 0)))
    data = SyntheticFacesDataModule(people=8, photos_each=3, batch_size=2, val_fraction=0.25, flip=True, **drawn)
    Trainer(
        accelerator="cpu", devices=DEVICES, max_epochs=EPOCHS, limit_val_batches=1, num_sanity_val_steps=0,
        strategy="ddp_find_unused_parameters_true" if DEVICES > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=OUT,
        callbacks=[LastCheckpoint(OUT), *([AveragedWeights()] if KIND == "averaged" else []), Watch()],
    ).fit(stage, data, ckpt_path=sys.argv[6] if len(sys.argv) > 6 else None)
"""


def run(
    out: Path,
    model_dir: Path,
    kind: str = "plain",
    devices: int = 2,
    epochs: int = 2,
    ckpt: Path | None = None,
) -> list[dict[str, Any]]:
    out.mkdir()
    (out / "train.py").write_text(SCRIPT)
    words = [out / "train.py", out, model_dir, kind, devices, epochs, *([ckpt] if ckpt else [])]
    # another test's `seed_everything` leaves its seed there, and Lightning would seed both processes with it
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode == 0) is (kind != "poison"), done.stdout + done.stderr
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.slow
def test_two_processes_stay_in_sync_and_two_that_go_on_equal_them(model_dir: Path, tmp_path: Path) -> None:
    """Also where each draws random numbers of its own; both keep the same average."""
    kind = "averaged"
    fresh = (model_dir / "model.safetensors").read_bytes()
    ranks = run(tmp_path / "two", model_dir, kind)
    hashes, average = ranks[0]["hashes"], ranks[0]["average"]
    assert len(hashes) == 8  # 18 samples, 2 processes, batches of 2: 4 steps in each of 2 epochs
    assert len(set(hashes)) == 5  # the start, and a step every two batches
    assert len(set(average)) == 2  # after each epoch, and the last one at the end
    for name in ("hashes", "average", "val"):  # those of different photos in each: the mean of both
        assert ranks[0][name] == ranks[1][name]
    assert {"val/reconstruction", "val/psnr"} <= ranks[0]["val"].keys()
    for epoch in (0, 1):
        parts = [{p % 18 for e, *places in rank["places"] if e == epoch for p in places} for rank in ranks]
        assert [len(part) for part in parts] == [8, 8]
        assert parts[0].isdisjoint(parts[1])
    written = RPFModel.from_pretrained(model_dir).blocks[1].synthesis.state_dict()
    two = torch.load(tmp_path / "two" / "last.ckpt", weights_only=True)
    for key, value in written.items():
        assert torch.equal(value, two["state_dict"][f"model.blocks.1.synthesis.{key}"])
    states = two["random_states"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])

    (model_dir / "model.safetensors").write_bytes(fresh)
    rest = run(tmp_path / "rest", model_dir, kind, ckpt=tmp_path / "two" / "first.ckpt")
    assert [(rank["hashes"], rank["average"]) for rank in rest] == [(hashes[4:], average[1:])] * 2

    # one process continues the two's checkpoint
    alone = run(tmp_path / "one", model_dir, kind, 1, 3, tmp_path / "two" / "last.ckpt")
    assert {epoch for epoch, *_ in alone[0]["places"]} == {2}
    one = torch.load(tmp_path / "one" / "last.ckpt", weights_only=True)
    assert one.keys() == two.keys()
    assert one["state_dict"].keys() == two["state_dict"].keys()


@pytest.mark.slow
def test_a_nan_in_one_process_stops_both(model_dir: Path, tmp_path: Path) -> None:
    ranks = run(tmp_path / "two", model_dir, "poison")
    assert [len(rank["places"]) for rank in ranks] == [3, 3]
    assert all("FloatingPointError" in rank["error"] for rank in ranks)
    folder = model_dir / "runs" / "block2-synthesis"
    assert json.loads((folder / "rank1_not_finite.json").read_text())["step"] == 1


@pytest.mark.slow
def test_joint_training_with_several_references_absent_ones_and_entries(
    tmp_path: Path, network: dict[str, Any]
) -> None:
    """In one step a process may have one reference per sample and the other several, or none."""
    torch.manual_seed(0)
    model = RPFModel(**{**network, "synthesis_copy": True, "flow_from": "previous", "refinement_mean": False})
    model.save_pretrained(tmp_path / "model")
    ranks = run(tmp_path / "two", tmp_path / "model", "joint")
    assert [rank["error"] for rank in ranks] == ["", ""]
    assert ranks[0]["hashes"] == ranks[1]["hashes"]
    assert len(set(ranks[0]["hashes"])) == len(ranks[0]["hashes"]) == 8
    assert ranks[0]["val"] == ranks[1]["val"]
    after = RPFModel.from_pretrained(tmp_path / "model").state_dict()
    unchanged = [name for name, value in model.state_dict().items() if torch.equal(value, after[name])]
    assert unchanged == []
