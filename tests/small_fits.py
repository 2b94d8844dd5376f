"""Trainers and configurations of fits that take a second: what several test files would repeat."""

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


def write_fit(path: Path, stage: str, trainer: dict[str, Any] | None = None, **init_args: Any) -> Path:
    """Write the configuration of a fit on a few drawn faces."""
    content = {
        "seed_everything": 0,
        "trainer": {**TRAINER, **(trainer or {})},
        "model": {"class_path": f"rpf_lightning.stages.{stage}", "init_args": init_args},
        "data": FACES,
    }
    path.write_text(yaml.safe_dump(deepcopy(content)))
    return path
