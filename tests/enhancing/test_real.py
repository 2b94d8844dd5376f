"""The real detector and ArcFace: the example of docs/enhance.md, and unaligned photos of real people."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.image_files import read_photo
from rpf_lightning.enhancing import FaceNetworks, enhance_photo
from rpf_lightning.enhancing.aligned_faces import AlignedFace, find_faces
from rpf_lightning.enhancing.paste import corrected, paste
from rpf_lightning.faces.alignment import align_face
from rpf_lightning.metrics import LPIPS, psnr
from rpf_lightning.model import RPFModel
from rpf_lightning.pictures import to_tensor

PAGE = Path(__file__).parents[2] / "docs" / "enhance.md"

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def networks() -> FaceNetworks:
    return FaceNetworks(mask_model="template", models="insightface")


def shrunk(photo: NDArray[np.uint8], networks: FaceNetworks, side: float) -> NDArray[np.uint8]:
    """The photo at a size where its largest face has about `side` pixels."""
    factor = side / AlignedFace.found(photo, networks.detector.detect(photo)[0]).side
    size = round(photo.shape[1] * factor), round(photo.shape[0] * factor)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def test_the_example_of_the_page(
    real_weights: Path, bicubic: RPFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A person of the group photo is found among six by the portrait, and the face lands where it was."""
    monkeypatch.chdir(tmp_path)
    bicubic.save_pretrained("model")
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n(.*?get_image.*?)```", page, flags=re.DOTALL)
    exec(code, {})
    (command,) = re.findall(r"^    rpf (enhance group.png .*?)$", page, flags=re.MULTILINE)
    main([*command.split(), "--model_dir", "model", "--mask-model", "template"])
    assert re.match(r"face \d: 5\d -> 64 pixels, entering at 32", capsys.readouterr().out)
    with Image.open("sharp.png") as image, Image.open("group.png") as group:
        assert image.width == 2 * group.width
        before = group.resize(image.size, Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(before))
    rows, columns = np.nonzero(difference.max(2))
    # the man at the top: around x 935, y 125 of 1280
    assert np.hypot(columns.mean() - 935 / 2, rows.mean() - 125 / 2) < 15
    assert (
        difference.mean(2)[difference.max(2) > 0].mean() < 8
    )  # the bicubic model adds nothing, the correction sharpens


def test_the_picture_of_the_readme(
    real_weights: Path, networks: FaceNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The packaged model, which is the default, brings the face nearer to the true one than enlarging it does."""
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n((?:(?!```).)*?skimage.*?)```", page, flags=re.DOTALL)
    given: dict[str, Any] = {}
    exec(code, given)
    (command,) = re.findall(r"^    rpf (enhance small.png .*?) --mask-model", page, flags=re.MULTILINE)
    main([*command.split(), "--mask-model", "template"])
    assert re.search(r"face 0: \d\d -> 128 pixels, entering at 16", capsys.readouterr().out)
    photo = np.asarray(given["photo"].convert("RGB"))
    with Image.open("astronaut.png") as image, Image.open("small.png") as small:
        assert image.size[0] % small.width == 0
        sizes = image.size
        enhanced, enlarged = (
            np.asarray(
                picture.convert("RGB").resize(photo.shape[1::-1], Image.Resampling.BICUBIC), np.float64
            )
            for picture in (image, small.resize(sizes, Image.Resampling.BICUBIC))
        )
    box = AlignedFace.found(photo, networks.detector.detect(photo)[0])
    middle = np.rint(box.matrix @ (0.5, 0.55, 1)).astype(int)
    reach = round(box.side / 4)
    inside = np.s_[middle[1] - reach : middle[1] + reach, middle[0] - reach : middle[0] + reach]
    errors = [float(((picture[inside] - photo[inside]) ** 2).mean()) for picture in (enhanced, enlarged)]
    assert errors[0] < 0.83 * errors[1]  # enlarged and corrected, without the model: 0.85
    detail = [np.abs(np.diff(picture[inside], axis=0)).mean() for picture in (enhanced, enlarged)]
    assert detail[0] > 1.2 * detail[1]


@pytest.mark.realdata
@pytest.mark.slow
def test_people(real_weights: Path, shared: Path, networks: FaceNetworks, bicubic: RPFModel) -> None:
    """At 60 pixels another photo of the person is accepted; of somebody else, it is not, or with a warning."""
    people = sorted((shared / "data" / "wild_photos").iterdir())[:5]
    photos = [[read_photo(path) for path in sorted(person.iterdir())[:2]] for person in people]
    accepted, refused = 0, 0
    for (photo, own), (_, others) in zip(photos, photos[1:] + photos[:1], strict=True):
        small = shrunk(photo, networks, 60)
        result = enhance_photo(small, [own], bicubic, networks)
        assert 54 < result.face_side < 64
        assert result.identity is not None
        accepted += result.identity.matches
        forced = enhance_photo(small, [others], bicubic, networks, force=True)
        assert "another person than" in forced.warnings[0]
        refused += "clearly another person" in forced.warnings[0]
    assert accepted >= 4
    assert refused >= 2


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(("side", "wanted"), [(24, 0.03), (48, 0.03), (96, -0.02)])
def test_between_the_entry_sides_it_is_better_than_enlarging(
    side: int, wanted: float, real_weights: Path, shared: Path, networks: FaceNetworks
) -> None:
    """Nothing that the photo has is lost, and up to 48 pixels the correction alone would give less by LPIPS."""
    model = RPFModel.from_pretrained("celeba-hq-16to128")
    lpips = LPIPS().measure
    gains, perceived = [], []
    for person in sorted((shared / "data" / "wild_photos").iterdir())[:6]:
        photo, own = (read_photo(path) for path in sorted(person.iterdir())[:2])
        if AlignedFace.found(photo, networks.detector.detect(photo)[0]).side < 1.5 * side:
            continue
        small = shrunk(photo, networks, side)
        result = enhance_photo(small, [own], model, networks, face=0, force=True)
        truth = np.asarray(Image.fromarray(photo).resize(result.image.shape[1::-1], Image.Resampling.BICUBIC))
        middle, reach = result.matrix @ (0.5, 0.55, 1), np.hypot(*result.matrix[:, 0]) / 5
        (left, top), (right, bottom) = (np.rint(middle + sign * reach).astype(int) for sign in (-1, 1))
        sharpened = corrected(result.before, small, result.matrix)
        before, after, alone, true = (
            to_tensor(image[top:bottom, left:right])
            for image in (result.before, result.image, sharpened, truth)
        )
        gains.append(float(psnr(after, true) - psnr(before, true)))
        perceived.append(float(lpips(alone, true) - lpips(after, true)))
    assert len(gains) >= 3
    assert np.mean(gains) > 0.2
    assert np.mean(perceived) > wanted


@pytest.mark.realdata
def test_faces_sit_exactly(real_weights: Path, shared: Path, networks: FaceNetworks) -> None:
    """The true face pasted into the blurred photo is nearer to the true photo than one displaced by a pixel."""
    path = sorted((shared / "data" / "wild_photos" / "7204").iterdir())[0]
    photo = read_photo(path)
    points = find_faces(photo, networks.detector)[0].points
    face = AlignedFace(photo, points, np.eye(2, 3))
    small = Image.fromarray(photo).resize(
        (photo.shape[1] // 6, photo.shape[0] // 6), Image.Resampling.BICUBIC
    )
    blurred = np.asarray(small.resize(photo.shape[1::-1], Image.Resampling.BICUBIC))
    matrix = AlignedFace.found(photo, find_faces(photo, networks.detector)[0]).matrix
    pasted = paste(blurred, align_face(photo, face.points, 256), matrix)
    middle = np.rint(matrix @ (0.5, 0.55, 1)).astype(int)
    inside = np.s_[middle[1] - 50 : middle[1] + 50, middle[0] - 40 : middle[0] + 40]

    def error(image: NDArray[np.uint8]) -> float:
        return float(np.abs(image[inside].astype(float) - photo[inside]).mean())

    assert error(pasted) < 0.5 * error(blurred)
    assert error(pasted) < 0.5 * min(error(np.roll(pasted, 1, axis)) for axis in (0, 1))
