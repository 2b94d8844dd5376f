"""Trainers, configurations and curricula of fits that take a second: what several test files would repeat."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "callbacks": [{"class_path": "rpf_lightning.callbacks.FreezeEarlierBlocks"}],
}
FACES = {
    "class_path": "rpf_lightning.data.SyntheticFacesDataModule",
    "init_args": {"people": 6, "photos_each": 2, "batch_size": 2, "val_fraction": 0.34},
}


def write_fit(
    path: Path, stage: str, trainer: dict[str, Any] | None = None, data: Any = FACES, **init_args: Any
) -> Path:
    """Write the configuration of a fit, on a few drawn faces if on nothing else."""
    content = {
        "seed_everything": 0,
        "trainer": {**TRAINER, **(trainer or {})},
        "model": {"class_path": f"rpf_lightning.stages.{stage}", "init_args": init_args},
        "data": data,
    }
    path.write_text(yaml.safe_dump(deepcopy(content)))
    return path


NETWORK = {"lr_size": 16, "scale": 8, "channels": 4, "width": 1 / 64, "residual": True}
LISTED = ["block1-warping", "block2-synthesis", "joint1-2", "block3-refinement", "joint1-3", "joint3-3"]


def entry(name: str, **options: Any) -> dict[str, Any]:
    """A listed fit by its name."""
    if name.startswith("joint"):
        first, last = name.removeprefix("joint").split("-")
        place: dict[str, Any] = {"stage": "joint", "first": int(first), "last": int(last)}
    else:
        block, stage = name.removeprefix("block").split("-")
        place = {"stage": stage, "block": int(block)}
    return {**place, "file": f"{place['stage']}.yaml", **({"options": options} if options else {})}


def write_listed(folder: Path, fits: Any = None, **changes: Any) -> Path:
    """Write a curriculum that lists its fits, and the files of its stages; the folder also holds its model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_fit(
        folder / "refinement.yaml", "RefinementStage", input="lr", perceptual_weight=0, identity_weight=0
    )
    write_fit(folder / "warping.yaml", "WarpingStage", flow_weight=0.02)
    write_fit(folder / "synthesis.yaml", "SynthesisStage", adversarial_weight=0)
    write_fit(folder / "joint.yaml", "JointStage", perceptual_weight=0, identity_weight=0)
    content = {
        "model_dir": str(folder / "model"),
        "network": NETWORK,
        "fits": [entry(name) for name in LISTED] if fits is None else fits,
        **changes,
    }
    path = folder / "curriculum.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
