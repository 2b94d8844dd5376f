"""Face-parsing labels and the facial mask m of non-facial region removal (P III-A, eq. 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The order of BiSeNet's 19 outputs (facexlib, face-parsing.PyTorch).
BISENET = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
    "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip

# The order of CelebAMask-HQ's own label maps.
CELEBAMASK_HQ = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip

SCHEMES: dict[str, tuple[str, ...]] = {"bisenet": BISENET, "celebamask-hq": CELEBAMASK_HQ}

# Neck, necklace, clothing, hair, hat and background are removed from the reference (P III-A).
FACIAL = frozenset({
    "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
    "nose", "mouth", "u_lip", "l_lip",
})  # fmt: skip


def label_names(scheme: str) -> tuple[str, ...]:
    """Return the 19 class names of a scheme in the order of their label values.

    Args:
        scheme: "bisenet" or "celebamask-hq".

    Raises:
        ValueError: if the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown label scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    return SCHEMES[scheme]


def facial_mask(labels: NDArray[np.integer], scheme: str) -> NDArray[np.uint8]:
    """Turn a map of parsing labels into the facial mask m (eq. 1).

    Args:
        labels: (H, W) integers in 0..18.
        scheme: "bisenet" or "celebamask-hq"; their orders differ and cannot be told apart by the values.

    Returns:
        (H, W) uint8, 1 inside the 13 facial classes and 0 elsewhere.

    Raises:
        ValueError: if the scheme is unknown or a label is outside 0..18.
    """
    names = label_names(scheme)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(names):
        raise ValueError(f"labels must be in 0..{len(names) - 1} ({scheme}), got values in {low}..{high}")
    return np.array([name in FACIAL for name in names], dtype=np.uint8)[labels]
