"""Environment variables that more than one part of the package reads."""

from __future__ import annotations

import os

OFFLINE_VARIABLE = "RPF_OFFLINE"


def offline() -> bool:
    """Whether `RPF_OFFLINE` forbids every download: set, not empty, and not 0."""
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")
