"""Which face models are taken, and what is said about them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.faces.dlib_models import DlibDetector, DlibRecogniser
from rpf_lightning.faces.face_models import face_models


@pytest.fixture(params=[True, False])
def dlib_is_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(dlib_models, "is_installed", lambda: request.param)
    return request.param


def test_dlibs_without_a_pack(dlib_is_here: bool) -> None:
    models = face_models()
    assert models.kind == ("dlib" if dlib_is_here else "insightface")
    assert models.said == (
        "dlib's detector (Boost licence), descriptor (CC0) and landmarks (CC0, trained on iBUG 300-W: non-commercial "
        "use)"
        if dlib_is_here
        else "insightface's pack buffalo_l (non-commercial research only)"
    )


def test_a_pack_that_is_found_is_taken(make_pack: Callable[..., Path], dlib_is_here: bool) -> None:
    make_pack("mine")
    models = face_models()
    assert models.kind == "insightface"
    assert models.said == "insightface's pack mine (non-commercial research only)"
    assert isinstance(models.recogniser, ArcFace)
    assert models.recogniser is models.recogniser
    assert face_models("dlib").kind == "dlib"


def test_what_is_asked_for_is_taken(dlib_is_here: bool) -> None:
    assert face_models("insightface").kind == "insightface"
    named = face_models(pack="antelopev2")
    assert (named.kind, named.said) == (
        "insightface", "insightface's pack antelopev2 (non-commercial research only)",
    )  # fmt: skip
    for missing in (named, face_models("insightface")):
        with pytest.raises(FileNotFoundError, match="insightface are missing"):
            missing.detector  # noqa: B018
    assert face_models("dlib").kind == "dlib"


@pytest.mark.skipif(not dlib_models.is_installed(), reason="dlib is not installed")
def test_dlibs_are_loaded_once() -> None:
    models = face_models("dlib")
    assert isinstance(models.detector, DlibDetector)
    assert isinstance(models.recogniser, DlibRecogniser)
    assert models.detector is models.detector
    assert models.recogniser.file == dlib_models.DESCRIPTOR


def test_refusals() -> None:
    with pytest.raises(ValueError, match="face_models: expected auto, insightface, dlib, got 'mtcnn'"):
        face_models("mtcnn")
    with pytest.raises(ValueError, match="expected insightface with the pack 'mine', got dlib"):
        face_models("dlib", "mine")
