"""Methods and networks of metrics from what a command line says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch

from rpf_lightning.baselines.gcfsr import Blend
from rpf_lightning.evaluation.folder import Folder
from rpf_lightning.evaluation.measuring import Networks
from rpf_lightning.evaluation.methods import (
    KINDS,
    Bicubic,
    CopiedReference,
    Method,
    Model,
    PublishedGCFSR,
    Reference,
    RefinementChain,
    Synthesized,
)
from rpf_lightning.model import RPFModel

BLENDS = get_args(Blend)


def build_methods(specs: Sequence[str], model_dir: str | None = None) -> list[Method]:
    """Make methods from text; a model directory is loaded once, however many methods name it.

    Args:
        specs: See `rpf_lightning.evaluation.methods`.
        model_dir: The directory of models that name none.

    Raises:
        ValueError: If a text is of another form, or two methods have one name.
        FileNotFoundError: If what it names is missing.
    """
    models: dict[str, RPFModel] = {}

    def model(directory: str) -> RPFModel:
        key = str(Path(directory).resolve()) if Path(directory).exists() else directory
        if key not in models:
            models[key] = RPFModel.from_pretrained(directory)
        return models[key]

    methods = [_build(spec, model_dir, model) for spec in specs]
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"expected a name of its own for every method, but {', '.join(twice)} is given twice"
        )
    return methods


def _build(spec: str, model_dir: str | None, model: Callable[[str], RPFModel]) -> Method:
    kind, colon, rest = spec.partition(":")
    name, _, argument = rest.partition("=")
    name = name or kind
    if kind not in KINDS or (colon and not rest):
        raise ValueError(f"method {spec!r}: expected kind[:NAME[=ARGUMENT]], kind one of {', '.join(KINDS)}")
    if kind in ("bicubic", "reference", "reference-unmasked"):
        if argument:
            raise ValueError(f"method {spec!r}: {kind} takes no argument")
        return Bicubic(name) if kind == "bicubic" else CopiedReference(name, masked=kind == "reference")
    if kind in ("gcfsr", "folder"):
        if not argument:
            raise ValueError(f"method {spec!r}: expected {kind}:NAME={'FILE' if kind == 'gcfsr' else 'DIR'}")
        return _gcfsr(spec, name, argument) if kind == "gcfsr" else Folder(name, argument)
    directory = argument or model_dir
    if not directory:
        raise ValueError(f"method {spec!r}: expected {kind}:NAME=DIR, or a model_dir for all models")
    if kind in ("refinement", "synthesized"):
        part = RefinementChain if kind == "refinement" else Synthesized
        return part(name, model(directory), Path(directory).name)
    given = cast(Reference, kind.partition("-")[2] or "own")
    return Model(name, model(directory), given, Path(directory).name)


def _gcfsr(spec: str, name: str, argument: str) -> PublishedGCFSR:
    """The network of `FILE[,blend=...][,normalize=...]`."""
    path, *readings = re.split(r",(?=(?:blend|normalize)=)", argument)
    given = dict(reading.split("=", 1) for reading in readings)
    blend, normalize = given.get("blend", BLENDS[0]), given.get("normalize", "true")
    if blend not in BLENDS or normalize not in ("true", "false"):
        raise ValueError(f"method {spec!r}: expected blend={' or '.join(BLENDS)} and normalize=true or false")
    return PublishedGCFSR(name, path, cast(Blend, blend), normalize == "true")


def load_networks(
    lpips: bool | None, isc: bool | None, isc_pack: str | None, landmarks: str | None, device: torch.device
) -> tuple[Networks, dict[str, Any]]:
    """Load the networks of the metrics that are asked for.

    Args:
        lpips: LPIPS with AlexNet; None: where its weights are here, without a download.
        isc: ISC; None likewise.
        isc_pack: Name of the insightface pack, of ISC and of the face detector of landmarks.
        landmarks: "face-alignment" or "onnx:PATH".
        device: Of the landmarks; `compare` moves the others.

    Returns:
        The networks, and what the protocol says of them: their names, and the SHA-256 of the files of weights.

    Raises:
        FileNotFoundError: If weights are missing.
        ValueError: If `landmarks` is something else.
    """
    from rpf_lightning.faces.weights import is_here

    networks, said = Networks(), dict[str, Any]()
    for metric, wanted, weights in (("lpips", lpips, "alexnet"), ("isc", isc, "pack")):
        here = (isc_pack is not None and metric == "isc") or is_here(weights)
        if wanted is False:
            said[metric] = "off: not asked for"
        else:
            said[metric] = "on" if wanted or here else "off: no weights here"
    lpips, isc = said["lpips"] == "on", said["isc"] == "on"
    if lpips:
        from rpf_lightning.faces.weights import alexnet_file
        from rpf_lightning.metrics.perceptual import LPIPS

        networks = networks._replace(perceptual=LPIPS())
        said["lpips_network"] = "AlexNet, heads of lpips v0.1, images clamped to [0, 1]"
        said["lpips_sha256"] = _sha256(alexnet_file())
    if isc:
        from rpf_lightning.faces.identity import BOX_X, BOX_Y, ArcFace
        from rpf_lightning.faces.weights import insightface_pack

        arcface = ArcFace(isc_pack)
        networks = networks._replace(identity=arcface)
        said["isc_network"] = f"{arcface.pack}/{arcface.file}"
        said["isc_crop"] = f"x {BOX_X}, y {BOX_Y} of the aligned image, antialiased to 112"
        said["isc_sha256"] = _sha256(insightface_pack(isc_pack) / arcface.file)
    if landmarks:
        from rpf_lightning.faces.landmarks import landmark_model

        networks = networks._replace(landmarks=landmark_model(landmarks, device=device, pack=isc_pack))
        kind, _, path = landmarks.partition(":")
        said["landmark_network"] = f"{kind}:{Path(path).name}" if path else kind
        said["landmark_sha256"] = [_sha256(file) for file in _landmark_files(path, isc_pack)]
    return networks, said


def _landmark_files(path: str, pack: str | None) -> list[Path]:
    """The files of weights that landmarks depend on: the network's, and its face detector's."""
    from rpf_lightning.faces.weights import insightface_pack, weight_file

    if not path:
        return [weight_file("s3fd"), weight_file("fan")]
    return [Path(path), *sorted(insightface_pack(pack).glob("*.onnx"))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
