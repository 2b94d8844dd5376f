"""The model directory that every fit reads and writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from rpf_lightning.data.locking import locked
from rpf_lightning.model import RPFModel, storage
from rpf_lightning.model.storage import CONFIG_FILE

LOCK = ".lock"


def open_model(model_dir: Path, network: dict[str, Any] | None) -> RPFModel:
    """Read the model of a directory, or make a new one and write it there.

    Raises:
        FileNotFoundError: If the directory holds no model and `network` is None.
        ValueError: If `network` differs from the model's configuration.
    """
    if network is not None and not (model_dir / CONFIG_FILE).is_file():
        with locked(model_dir / LOCK):  # of several processes that start at once, one makes it
            if not (model_dir / CONFIG_FILE).is_file():
                model = RPFModel(**network)
                model.save_pretrained(model_dir)
                return model
    if not (model_dir / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{model_dir} holds no model: expected config.json and model.safetensors. Make one with "
            "`rpf curriculum`, RPFModel(...).save_pretrained(directory), or the argument network"
        )
    model = RPFModel.from_pretrained(model_dir)
    changed = {k: (model.config.get(k), v) for k, v in (network or {}).items() if model.config.get(k) != v}
    if changed:
        text = ", ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
        raise ValueError(f"{model_dir} holds a model with other arguments ({text})")
    return model


def write_module(model_dir: Path, model: RPFModel, prefix: str, read: Iterable[str] = ()) -> None:
    """Write one trained module into the directory's model; what others trained there meanwhile stays.

    Where that is something which this module was trained on, a warning says so.

    Args:
        model_dir: The model directory.
        model: The model that was trained.
        prefix: Beginning of the module's names in it.
        read: Beginnings of the names of the modules that it was trained on.

    Raises:
        ValueError: If the directory holds a model of another network by now.
    """
    with locked(model_dir / LOCK):
        config, state = model.config, model.state_dict()
        if (model_dir / CONFIG_FILE).is_file():
            config, there = storage.load(model_dir)
            if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in state.items()}:
                raise ValueError(
                    f"{model_dir} holds another network than the trained one by now; nothing was written"
                )
            beginnings = tuple(read)
            changed = [
                name for name, value in state.items()
                if name.startswith(beginnings) and not torch.equal(value.cpu(), there[name].to(value.dtype))
            ]  # fmt: skip
            if beginnings and changed:
                rank_zero_warn(
                    f"{model_dir}: {changed[0]} and others changed there while {prefix} was trained on them"
                )
            state = {**there, **{name: value for name, value in state.items() if name.startswith(prefix)}}
        storage.save(model_dir, config, state)
