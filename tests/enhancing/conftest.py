"""Drawn photos whose faces are coloured squares, and networks that see them: no weights are needed."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ImageCms
from scipy import ndimage

from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks
from rpf_lightning.enhancing.identity_check import LIMITS
from rpf_lightning.faces.detection import Face
from rpf_lightning.model import RPFModel

Square = tuple[int, int, int, int]  # left, top, side, blue


class SquareDetector:
    """Finds squares that are red, with any blue, from 12 pixels on; their aligned square is the square itself.

    It sees what SCRFD sees: photos of up to 1920 pixels.

    `nose` moves the nose: a pose of its own, told by the square's green.
    """

    pack = "squares"
    smallest_face, smallest_square, input_side, max_input_side = 20, 20, 640, 1920
    sure_upright = 0.6

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        red = (image[..., 0] > 200) & (image[..., 1] < 60)
        faces = []
        for rows, columns in ndimage.find_objects(ndimage.label(red)[0]):
            left, top, right, bottom = columns.start, rows.start, columns.stop, rows.stop
            side = max(right - left, bottom - top)
            if side < 12:
                continue
            nose = image[(top + bottom) // 2, (left + right) // 2, 1] / 255
            box = np.array([left, top, right, bottom], np.float64)
            faces.append(Face(box, min(1.0, 0.6 + side / 1000), points_of(left, top, side, nose)))
        return sorted(faces, key=lambda face: -face.area)


def points_of(left: float, top: float, side: float, nose: float = 0.0) -> NDArray[np.float64]:
    """Five points that FFHQ's recipe turns into this square."""
    eye, mouth = side / 4, side / 4
    x, y = left + side / 2, top + side / 2 - 0.1 * mouth
    return np.array(
        [
            [x - eye / 2, y],
            [x + eye / 2, y],
            [x + nose * side, y + mouth / 2],
            [x - eye / 3, y + mouth],
            [x + eye / 3, y + mouth],
        ]
    )


class Networks(FaceNetworks):
    """The detector above; a person is a shade of blue, black and full blue have cosine 0; the template mask."""

    def __init__(self) -> None:
        super().__init__(mask_model="template")
        recogniser = SimpleNamespace(file=LIMITS["insightface"].file)
        self.models = SimpleNamespace(
            kind="insightface", said="squares", detector=SquareDetector(), recogniser=recogniser
        )
        self.compared = 0

    def features(self, face: AlignedFace) -> torch.Tensor:
        self.compared += 1
        middle = face.crop(8)[2:6, 2:6, 2].mean() / 255 * np.pi / 2
        return torch.tensor([np.cos(middle), np.sin(middle)])


def draw(width: int, height: int, *squares: Square, green: int = 0) -> NDArray[np.uint8]:
    """Squares on a smooth background."""
    x, y = np.meshgrid(np.linspace(60, 180, width), np.linspace(90, 190, height))
    image = np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8)
    for left, top, side, blue in squares:
        image[top : top + side, left : left + side] = (255, green, blue)
    return image


@pytest.fixture
def networks() -> Networks:
    return Networks()


@pytest.fixture
def bicubic() -> RPFModel:
    """A model 16 -> 64 that enlarges bicubically, block by block: its last convolutions are 0."""
    model = RPFModel(
        lr_size=16, scale=4, channels=4, width=1 / 64, residual=True, synthesis_residual=True
    ).eval()
    with torch.no_grad():
        for block in model.blocks:
            for module in (block.refinement, block.synthesis):
                for parameter in module.to_rgb.parameters():
                    parameter.zero_()
    return model


@pytest.fixture
def drawn() -> Callable[..., NDArray[np.uint8]]:
    return draw


@pytest.fixture
def portraits() -> Sequence[NDArray[np.uint8]]:
    """The person of blue 0, facing ahead and with the nose far to the side."""
    return [draw(120, 120, (10, 10, 100, 0), green=50), draw(120, 120, (10, 10, 100, 0))]


@pytest.fixture
def face_points() -> Callable[..., NDArray[np.float64]]:
    return points_of


def fixed(value: float) -> bytes:
    return round(value * 65536).to_bytes(4, "big", signed=True)


@pytest.fixture
def wide_profile() -> bytes:
    """A profile of Display P3's primaries and a gamma of 2.2: lcms's sRGB with other columns and curves."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    for number in range(int.from_bytes(content[128:132], "big")):
        at = 132 + 12 * number
        tag, start = bytes(content[at : at + 4]), int.from_bytes(content[at + 4 : at + 8], "big")
        if tag in columns:
            content[start + 8 : start + 20] = b"".join(fixed(value) for value in columns[tag])
        elif tag == b"desc":
            size = int.from_bytes(content[at + 8 : at + 12], "big")
            name = "wide".encode("utf-16-be")
            place = content.find("sRGB".encode("utf-16-be"), start, start + size)
            content[place : place + len(name)] = name
    return bytes(content)
