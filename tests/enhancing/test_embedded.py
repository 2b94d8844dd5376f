"""`rpf enhance` with what comes with the installation: dlib's models, no weights of others, no network."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.image_files import read_photo
from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks, search_faces
from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.dlib_models import DlibDetector, DlibLandmarks
from rpf_lightning.faces.parsing import hull_mask

installed = pytest.mark.skipif(not dlib_models.is_installed(), reason="dlib is not installed")


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dlib_models, "is_installed", lambda: True)
    networks = FaceNetworks()
    assert (networks.models.kind, networks.mask_model, networks.landmarks) == ("dlib", "hull", "dlib")
    assert networks.said.startswith("faces: dlib's detector (Boost licence), descriptor (CC0)")
    assert networks.said.endswith(
        "\nmask of the reference: the hull of 68 landmarks of dlib (CC0, trained on iBUG 300-W: non-commercial use)"
    )
    assert FaceNetworks(mask_model="hull", landmarks="onnx:a").said.endswith("68 landmarks of onnx:a")
    other = FaceNetworks(mask_model="hull", landmarks="face-alignment").said
    assert "68 landmarks of face-alignment (BSD-3-Clause" in other
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "parsing_bisenet.pth").touch()
    assert FaceNetworks().mask_model == "bisenet"
    assert "facexlib's BiSeNet (MIT code, trained on CelebAMask-HQ, which is for non" in FaceNetworks().said
    assert FaceNetworks(mask_model="hull").mask_model == "hull"


def test_defaults_where_dlib_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlib_models, "is_installed", lambda: False)
    networks = FaceNetworks()
    assert (networks.models.kind, networks.mask_model, networks.landmarks) == (
        "insightface", "bisenet", "face-alignment",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--face-models dlib --pack mine", "expected insightface with the pack 'mine', got dlib"),
        ("--face-models mtcnn", "Got value: mtcnn"),
    ],
)
def test_refusals(
    options: str, message: str, drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(drawn(64, 64)).save(tmp_path / "a.png")
    a, out = str(tmp_path / "a.png"), str(tmp_path / "out.png")
    with pytest.raises(SystemExit, match="2"):
        main(["enhance", a, "--reference", a, "--out", out, *options.split()])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


class Coarse:
    """Sees faces of 80 pixels and more in photos of up to 3840, as dlib's detector does."""

    pack = "coarse"
    smallest_face, smallest_square, input_side, max_input_side = 80, 192, 1280, 3840
    sure_upright = 0.6

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    def detect(self, image: NDArray[np.uint8]) -> Any:
        step = -(-max(image.shape) // self.max_input_side)
        faces = self.detector.detect(image[::step, ::step])
        return [
            type(face)(face.box * step, face.score, face.points * step)
            for face in faces
            if face.box[2] - face.box[0] >= 80
        ]


def test_faces_between_the_reduced_photo_and_the_tiles(drawn: Any, networks: Any) -> None:
    """Of 121 pixels: 60 where a photo of 7680 is reduced, and cut by the tiles of the enlargement by 2."""
    photo = drawn(7600, 700, (230, 500, 121, 0))
    detector = Coarse(networks.detector)
    assert detector.detect(photo) == []
    (face,) = search_faces(photo, detector).faces
    np.testing.assert_allclose(face.box, [230, 500, 351, 621], atol=1)


@installed
@pytest.mark.realdata
def test_offline_after_the_installation(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo of two people side by side: the portrait's is taken, the face lands where it was; nothing is fetched."""

    def refused(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.delenv("RPF_OFFLINE")
    people = sorted((shared / "data" / "wild_photos").iterdir())
    (own, portrait), (other, _) = (sorted(person.iterdir())[:2] for person in people[:2])
    detector = DlibDetector()
    sides = []
    pair = Image.new("RGB", (300, 200), "grey")
    for place, path in enumerate((own, other)):
        photo = read_photo(path)
        factor = 70 / AlignedFace.found(photo, detector.detect(photo)[0]).side
        small = Image.fromarray(photo).resize(
            (round(photo.shape[1] * factor), round(photo.shape[0] * factor))
        )
        pair.paste(small, (150 * place, 20))
        sides.append(small.width)
    monkeypatch.chdir(tmp_path)
    pair.save("pair.png")
    main(["enhance", "pair.png", "--reference", str(portrait), "--out", "sharp.png"])
    out, err = capsys.readouterr()
    assert err.startswith("faces: dlib's detector")
    assert "downloading" not in err
    assert "pixels, entering at 64, photo enlarged 2 times, identity cosine 0.9" in out
    with Image.open("sharp.png") as sharp:
        enlarged = pair.resize(sharp.size, Image.Resampling.BICUBIC)
        changed = np.abs(np.asarray(sharp).astype(int) - np.asarray(enlarged)).max(2) > 3
    columns = np.nonzero(changed)[1] / 2
    assert columns.min() >= 0
    assert columns.max() < sides[0] + 5
    networks = FaceNetworks()
    crop = AlignedFace.found(read_photo(portrait), detector.detect(read_photo(portrait))[0]).crop(512)
    (found,) = DlibLandmarks(detector)([crop])
    np.testing.assert_array_equal(networks.mask(crop), hull_mask(found.landmarks / 512, 512))
