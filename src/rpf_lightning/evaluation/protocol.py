"""What is written about how it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from rpf_lightning.evaluation.methods import Method
from rpf_lightning.evaluation.statistics import LEVEL, RESAMPLES, SEED
from rpf_lightning.metrics.image import ERROR_FLOOR
from rpf_lightning.model import storage


def protocol(methods: Sequence[Method], lr_size: int, size: int, device: torch.device) -> dict[str, Any]:
    """Say how it is measured, and identify weights and software.

    Args:
        methods: What is compared.
        lr_size: Side of the LR.
        size: Side of the faces.
        device: Where.

    Returns:
        JSON types.
    """
    hashes: dict[int, str] = {}  # a network's once, however many methods it has
    described = {}
    for method in methods:
        described[method.name] = method.describe()
        if (network := method.network()) is not None:
            if id(network) not in hashes:
                hashes[id(network)] = storage.weights_hash(network.state_dict())
            described[method.name]["weights_sha256"] = hashes[id(network)]
    models = {d["weights_sha256"]: d for d in described.values() if "model_config" in d}
    (one,) = models.values() if len(models) == 1 else ({},)
    return {
        "range": "RGB in [0, 1], outputs clamped",
        "rounding": "outputs and GT unrounded (a folder's are files of 8 bit); the LR input as the data set gives "
        "it, rounded to 8 bit",
        "crop": "none, the border counts; psnr_face and detail_error inside the facial mask of the GT",
        "averaging": "per image, then the mean over the images that have a value (counts)",
        "intervals": f"bootstrap over images, {RESAMPLES} resamples, seed {SEED}, {LEVEL:.0%}, percentiles; gaps "
        "over the images that both methods have a value for",
        "psnr": f"all pixels and channels of an image; squared error of at least {ERROR_FLOOR:g}, so at most "
        f"{-10 * math.log10(ERROR_FLOOR):g} dB",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, RGB, reflected borders",
        "detail_error": "mean absolute error of y - up(down(y, lr_size)) inside the face, bicubic",
        "lr_consistency": "PSNR of the output reduced to lr_size (bicubic) against the LR",
        "resize": "bicubic, a = -0.5, antialiased",
        "lr_size": lr_size,
        "size": size,
        "methods": described,
        **{key: one[key] for key in ("weights_sha256", "model_config") if key in one},
        "device": device.type,
        "torch": torch.__version__,
        "rpf_lightning": version("rpf-lightning"),
    }
