"""The metrics of a comparison, and what the protocol says of their networks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from rpf_lightning.faces.arcface import BOX_X, BOX_Y, ArcFace
from rpf_lightning.faces.dlib_models import LANDMARKS, model_file
from rpf_lightning.faces.landmarks import landmark_model
from rpf_lightning.faces.weights import alexnet_file, insightface_pack, is_here, weight_file
from rpf_lightning.metrics import (
    ISC,
    LPIPS,
    PSNR,
    SSIM,
    DetailError,
    LandmarkDistance,
    LRConsistency,
    PerImageMetric,
    PSNRFace,
    ReferenceISC,
)

Metrics = dict[str, PerImageMetric]
SHA256 = {
    "lpips": "lpips_sha256", "isc": "isc_sha256", "isc_reference": "isc_sha256",
    "landmark_distance": "landmark_sha256",
}  # fmt: skip
"""Where the protocol says which network a metric asks."""


def image_metrics() -> Metrics:
    """Return the metrics that need no network."""
    return {
        "psnr": PSNR(), "ssim": SSIM(), "psnr_face": PSNRFace(), "detail_error": DetailError(),
        "lr_consistency": LRConsistency(),
    }  # fmt: skip


def choose_metrics(
    lpips: bool | None, isc: bool | None, pack: str | None, landmarks: str | None, device: torch.device
) -> tuple[Metrics, dict[str, Any]]:
    """Make the metrics that are asked for; those of `image_metrics` always are.

    Args:
        lpips: LPIPS with AlexNet; None: where its weights are here, without a download.
        isc: ISC to the GT and to the reference; None likewise.
        pack: Name of the insightface pack, of ISC and of the face detector of landmarks.
        landmarks: See `rpf_lightning.faces.landmarks.landmark_model`.
        device: Of the landmarks; `compare` moves the others.

    Returns:
        The metrics by name, and what the protocol says of their networks: names, and the SHA-256 of the files of
        weights.

    Raises:
        FileNotFoundError: If weights are missing.
        ValueError: If `landmarks` is something else.
    """
    metrics, said = image_metrics(), dict[str, Any]()
    here = {"lpips": is_here("alexnet"), "isc": pack is not None or is_here("pack")}
    for metric, wanted in (("lpips", lpips), ("isc", isc)):
        said[metric] = "on" if wanted or here[metric] else "off: no weights here"
        if wanted is False:
            said[metric] = "off: not asked for"
    if said["lpips"] == "on":
        metrics["lpips"] = LPIPS()
        said["lpips_network"] = "AlexNet, heads of lpips v0.1, images clamped to [0, 1]"
        said["lpips_sha256"] = _sha256(alexnet_file())
    if said["isc"] == "on":
        arcface = ArcFace(pack)
        metrics |= {"isc": ISC(arcface), "isc_reference": ReferenceISC(arcface)}
        said["isc_network"] = f"{arcface.pack}/{arcface.file}"
        said["isc_crop"] = f"x {BOX_X}, y {BOX_Y} of the aligned image, antialiased to 112"
        said["isc_sha256"] = _sha256(insightface_pack(pack) / arcface.file)
    if landmarks:
        model = landmark_model(landmarks, device=device, pack=pack)
        metrics["landmark_distance"] = LandmarkDistance(model)
        kind, _, path = landmarks.partition(":")
        said["landmark_network"] = f"{kind}:{Path(path).name}" if path else kind
        if kind in ("face-alignment", "dlib", "onnx"):  # of one's own nothing can be known
            said["landmark_sha256"] = [_sha256(file) for file in _landmark_files(kind, path, pack)]
    return metrics, said


def _landmark_files(kind: str, path: str, pack: str | None) -> list[Path]:
    """The files of weights that landmarks depend on: the network's, and its face detector's."""
    if kind == "dlib":
        return [model_file(LANDMARKS)]
    if not path:
        return [weight_file("s3fd"), weight_file("fan")]
    return [Path(path), *sorted(insightface_pack(pack).glob("*.onnx"))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
