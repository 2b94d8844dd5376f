"""The state of all random generators, as plain types that a checkpoint may hold under `weights_only`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of torch's, CUDA's, Python's and NumPy's global generators."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of this process's GPU
        "python": (version, list(numbers), gauss),
        "numpy": {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}},
    }


def gather_random_states() -> list[dict[str, Any]]:
    """`random_state` of every process, in the order of their ranks; all of them have to call it."""
    own = random_state()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, own)
    return states


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned; CUDA's where there is a GPU."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})  # noqa: NPY002
