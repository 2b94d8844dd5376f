"""The two sets of face models that find and compare people: an insightface pack, or dlib's.

insightface's finds smaller faces and tells people apart at smaller sides; it is a download for non-commercial research
only. dlib's come with the installation.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.faces.detection import Detector, FaceDetector
from rpf_lightning.faces.dlib_models import LANDMARK_TERMS, DlibDetector, DlibRecogniser
from rpf_lightning.faces.weights import WEIGHTS, insightface_pack, is_here

Wanted = Literal["auto", "insightface", "dlib"]


class Recogniser(Protocol):
    """Describes faces so that those of one person have a larger cosine than those of two."""

    @property
    def file(self) -> str:
        """Name of the network's file."""
        ...

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, S, S), RGB in [0, 1], FFHQ/CelebA-HQ-aligned -> (B, D), not of unit length."""
        ...


class FaceModels(Protocol):
    """A detector and a recogniser, each loaded when it is first asked for.

    Asking raises FileNotFoundError where files are missing and ValueError where they are broken.
    """

    @property
    def kind(self) -> Literal["insightface", "dlib"]:
        """Which of the two."""
        ...

    @property
    def said(self) -> str:
        """What they are and their terms, for people; loads nothing."""
        ...

    @property
    def detector(self) -> Detector:
        """Finds faces with five points."""
        ...

    @property
    def recogniser(self) -> Recogniser:
        """Compares people."""
        ...


class InsightfaceModels:
    """SCRFD and ArcFace of an insightface pack.

    Args:
        pack: Its name; None as in `insightface_pack`.
        device: Of ArcFace.
    """

    kind: Literal["insightface"] = "insightface"

    def __init__(self, pack: str | None = None, device: str | torch.device = "cpu") -> None:
        self.pack, self.device = pack, device

    @property
    def said(self) -> str:
        """What they are and their terms."""
        here = insightface_pack(self.pack).name if not self.pack and is_here("pack") else self.pack
        weight = WEIGHTS["buffalo_l"]
        return f"insightface's pack {here or weight.name} ({weight.licence})"

    @cached_property
    def detector(self) -> FaceDetector:
        """SCRFD."""
        return FaceDetector(self.pack)

    @cached_property
    def recogniser(self) -> ArcFace:
        """ArcFace."""
        return ArcFace(self.pack).to(self.device)


class DlibModels:
    """dlib's detector with the points of its 68 landmarks, and its face descriptor."""

    kind: Literal["dlib"] = "dlib"
    said = f"dlib's detector (Boost licence), descriptor (CC0) and landmarks ({LANDMARK_TERMS})"

    @cached_property
    def detector(self) -> DlibDetector:
        """Histograms of oriented gradients."""
        return DlibDetector()

    @cached_property
    def recogniser(self) -> DlibRecogniser:
        """The descriptor."""
        return DlibRecogniser()


def face_models(
    wanted: Wanted = "auto", pack: str | None = None, device: str | torch.device = "cpu"
) -> FaceModels:
    """Choose the face models; loads and downloads nothing.

    Args:
        wanted: "auto": insightface's where a pack is named or found without a download, else dlib's, else, where dlib
            is not installed, insightface's after all.
        pack: insightface pack; None as in `insightface_pack`.
        device: Of ArcFace.

    Raises:
        ValueError: If another one is wanted, or dlib's and a pack.
    """
    if wanted not in get_args(Wanted):
        raise ValueError(f"face_models: expected {', '.join(get_args(Wanted))}, got {wanted!r}")
    if wanted == "dlib" and pack is not None:
        raise ValueError(
            f"face_models: expected insightface with the pack {pack!r}, got dlib, which has no packs"
        )
    if wanted == "auto":
        dlibs = pack is None and not is_here("pack") and dlib_models.is_installed()
        wanted = "dlib" if dlibs else "insightface"
    return DlibModels() if wanted == "dlib" else InsightfaceModels(pack, device)
