"""Which device a command computes on."""

from __future__ import annotations

import torch


def place_of(device: str) -> torch.device:
    """Return a torch device such as "cpu", "cuda" or "cuda:1"; "auto" is the GPU where there is one.

    Raises:
        ValueError: If torch knows no such device, or this machine has none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:1, got {device!r}") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {device} is not here; CUDA devices: {torch.cuda.device_count()}")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: mps is not here")
    return place
