"""The model directory that every fit reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpf_lightning.model import RPFModel


def open_model(model_dir: Path, network: dict[str, Any] | None) -> RPFModel:
    """Read the model of a directory, or make a new one and write it there.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None.
        ValueError: If `network` differs from the model's configuration.
    """
    if (model_dir / "config.json").is_file():
        model = RPFModel.from_pretrained(model_dir)
        changed = {
            k: (model.config.get(k), v) for k, v in (network or {}).items() if model.config.get(k) != v
        }
        if changed:
            text = ", ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
            raise ValueError(f"{model_dir} holds a model with other arguments ({text})")
        return model
    if network is None:
        raise FileNotFoundError(
            f"{model_dir} holds no model: expected config.json and model.safetensors. Make one with "
            "`rpf curriculum`, RPFModel(...).save_pretrained(directory), or the argument network"
        )
    model = RPFModel(**network)
    model.save_pretrained(model_dir)
    return model
