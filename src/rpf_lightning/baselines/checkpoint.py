"""Other people's files of weights: read, and compared with what a network has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights alone, or of a dictionary with `params_ema` (preferred) or `params`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else.
    """
    with path.open("rb") as file:  # an error of the file system names the file
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path}: not a whole file of weights alone: {error}") from error
    for name in ("params_ema", "params"):
        if isinstance(content, Mapping) and name in content:
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of weights, got {type(content).__name__}")
    others = [k for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if others:
        raise ValueError(f"{path}: expected weights alone, but these are no tensors: {listed(others)}")
    return dict(content)


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Say which weights are missing, left over or of another shape."""
    missing = listed(key for key in expected if key not in state)
    unexpected = listed(key for key in state if key not in expected)
    misshapen = listed(
        f"{key} has {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    )
    named = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return [f"{name}: {keys}" for name, keys in named.items() if keys]


def listed(names: Iterable[object], shown: int = 8) -> str:
    """Join names, and say how many more there are."""
    every = [str(name) for name in names]
    rest = len(every) - shown
    return ", ".join(every[:shown]) + (f" and {rest} more" if rest > 0 else "")
