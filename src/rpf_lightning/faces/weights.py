"""Where third-party weights are found: an explicit path, then the folder `RPF_WEIGHTS_DIR`.

Nothing is downloaded on import; what is missing is an error that says what to put where.
"""

from __future__ import annotations

import os
from pathlib import Path

WEIGHTS_VARIABLE = "RPF_WEIGHTS_DIR"
ALEXNET_FILES = ("alexnet_features.pth", "alexnet-owt-7be5be79.pth")
DEFAULT_PACK = "buffalo_l"


def weights_dir() -> Path | None:
    """The folder named by the environment variable `RPF_WEIGHTS_DIR`, if it is set."""
    value = os.environ.get(WEIGHTS_VARIABLE)
    return Path(value) if value else None


def alexnet_file(explicit: str | None = None) -> Path:
    """Find AlexNet's ImageNet convolutions.

    Args:
        explicit: A file to use instead of searching.

    Raises:
        FileNotFoundError: If there is none; says what is needed, where, and its licence.
    """
    folder = weights_dir()
    candidates = [Path(explicit)] if explicit else [folder / name for name in ALEXNET_FILES if folder]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"AlexNet's weights are missing: looked for {_places(candidates)}. Put torchvision's "
        f"{ALEXNET_FILES[1]} (BSD-3-Clause code, trained on ImageNet) into the folder that {WEIGHTS_VARIABLE} "
        "names, or switch the perceptual term off (perceptual_weight: 0)"
    )


def insightface_pack(name: str | None = None) -> Path:
    """Find an insightface model pack `insightface/models/<pack>/`.

    Args:
        name: Name of the pack. None: buffalo_l; if that is absent and exactly one pack is there, that one.

    Raises:
        FileNotFoundError: If there is none; says what is needed, where, and its licence.
    """
    folder = weights_dir()
    models = folder / "insightface" / "models" if folder else None
    wanted = name or DEFAULT_PACK
    if models is not None and (models / wanted).is_dir():
        return models / wanted
    packs = sorted(path for path in models.iterdir() if path.is_dir()) if models and models.is_dir() else []
    if name is None and len(packs) == 1:
        return packs[0]
    present = ", ".join(path.name for path in packs) or "none"
    raise FileNotFoundError(
        f"the insightface model pack {wanted!r} is missing: looked for {_places([models / wanted] if models else [])} "
        f"(packs there: {present}). Put the pack (non-commercial research only) there, or switch the "
        "identity term off (identity_weight: 0)"
    )


def _places(candidates: list[Path]) -> str:
    return ", ".join(map(str, candidates)) or f"nothing, since {WEIGHTS_VARIABLE} is not set"
