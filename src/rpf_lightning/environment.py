"""Environment variables that more than one part of the package reads."""

from __future__ import annotations

import os

OFFLINE_VARIABLE = "RPF_OFFLINE"


def offline() -> bool:
    """Whether `RPF_OFFLINE` forbids every download: set, not empty, and not 0."""
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")


def first_process() -> bool:
    """Whether this is the only process, or the first one of several on one or more machines."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    ranks = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)
