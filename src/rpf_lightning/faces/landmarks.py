"""68 facial landmarks (iBUG order): the package face-alignment, dlib's, or any ONNX network of 68 points.

Coordinates are continuous: a photo spans 0..W and 0..H, pixel ``i`` has its centre at ``i + 0.5``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.faces.alignment import check_photo, five_points
from rpf_lightning.faces.detection import Face, FaceDetector
from rpf_lightning.faces.turned import find_any_way_up, points_back, quarter_turns, turned_back
from rpf_lightning.faces.weights import weight_file, whole

POINTS = 68
# Landmark i of a photo is landmark MIRRORED[i] of its mirror image.
MIRRORED = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one photo.

    Attributes:
        landmarks: (68, 2) float64, x and y in pixels, of the largest face; None if there is no face.
        faces: All faces, largest box first, so that the caller can refuse a photo without a face or with several.
    """

    landmarks: NDArray[np.float64] | None
    faces: list[Face]


class LandmarkModel(Protocol):
    """Finds the 68 landmarks of the largest face of every photo."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Found]:
        """Find landmarks in (H, W, 3) uint8 RGB photos of any sizes."""
        ...


def landmark_model(spec: str, device: str | torch.device = "cpu", pack: str | None = None) -> LandmarkModel:
    """Choose a landmark model.

    Args:
        spec: "face-alignment"; "dlib" (`DlibLandmarks`); "onnx:PATH" (`OnnxLandmarks` with a `FaceDetector`);
            "my_module.MyLandmarks", or "my_module.MyLandmarks:ARGUMENT": what calling that gives, a `LandmarkModel` of
            one's own.
        device: For face-alignment; onnxruntime takes the GPU if it can.
        pack: insightface pack of the `FaceDetector`.

    Raises:
        ValueError: If the specification is another one.
        FileNotFoundError: If weights are missing.
    """
    if spec == "face-alignment":
        return FaceAlignmentLandmarks(device)
    if spec == "dlib":
        from rpf_lightning.faces.dlib_models import DlibLandmarks  # imported here: it builds on this module

        return DlibLandmarks()
    kind, _, argument = spec.partition(":")
    if kind == "onnx":
        return OnnxLandmarks(argument, FaceDetector(pack))
    check_landmark_spec(spec)
    made: LandmarkModel = pkgutil.resolve_name(kind)(*([argument] if argument else []))
    return made


def check_landmark_spec(spec: str) -> None:
    """Check what `landmark_model` takes, without loading a network.

    Raises:
        ValueError: If it is something else, or names something that cannot be imported.
    """
    kind = spec.partition(":")[0]
    if spec in ("face-alignment", "dlib") or spec.startswith("onnx:"):
        return
    if "." not in kind:
        raise ValueError(f"expected face-alignment, dlib, onnx:PATH or my_module.MyLandmarks, got {spec!r}")
    try:
        pkgutil.resolve_name(kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec!r}: {error}") from error


class FaceAlignmentLandmarks:
    """The package face-alignment: S3FD finds faces, FAN-4 finds landmarks.

    Photos are brought to a longest side of 640 pixels: the package gives landmarks as whole pixels, rounded down,
    and S3FD takes any size, however much memory that needs. Half a pixel is added to what it gives: the middle of
    the pixel that it rounded down to.

    Args:
        device: "cpu", "cuda" or "cuda:0".

    Raises:
        FileNotFoundError: If the weights "s3fd" or "fan" of `weight_file` are missing.
    """

    SIDE = 640

    def __init__(self, device: str | torch.device = "cpu") -> None:
        detector, fan = weight_file("s3fd"), weight_file("fan")
        self._network = _face_alignment(str(device), detector, fan)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Found]:
        """Find landmarks; neighbouring photos of one size are searched in one batch.

        Args:
            images: (H, W, 3) uint8, RGB, of any sizes.

        Raises:
            ValueError: If an image is no photo.
        """
        for image in images:
            check_photo(image)
        return [
            found
            for _, group in groupby(images, key=lambda image: image.shape)
            for found in self._same_size(list(group))
        ]

    def landmarks_in(
        self, image: NDArray[np.uint8], boxes: Sequence[NDArray[np.floating]]
    ) -> list[NDArray[np.float64]]:
        """Find the landmarks of the faces in given boxes.

        Args:
            image: (H, W, 3) uint8, RGB.
            boxes: (4,) x0, y0, x1, y1 in pixels each, as S3FD draws them: from the forehead to the chin.

        Returns:
            (68, 2) float64 in pixels for each box.
        """
        if not boxes:
            return []
        picture, scale = _longest_side(image, self.SIDE)
        scaled = [np.asarray(box, np.float64) * np.tile(scale, 2) for box in boxes]
        landmarks = self._network.get_landmarks_from_image(picture, detected_faces=scaled)
        return [(points.astype(np.float64) + 0.5) / scale for points in landmarks]

    def _same_size(self, images: list[NDArray[np.uint8]]) -> list[Found]:
        pictures, scales = zip(*(_longest_side(image, self.SIDE) for image in images), strict=True)
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        detected = self._network.face_detector.detect_from_batch(batch)
        return [
            self._found(image, np.array(boxes, np.float64).reshape(-1, 5), scale)
            for image, boxes, scale in zip(images, detected, scales, strict=True)
        ]

    def _found(
        self, image: NDArray[np.uint8], detected: NDArray[np.float64], scale: NDArray[np.float64]
    ) -> Found:
        boxes = list(detected[:, :4] / np.tile(scale, 2))
        landmarks = self.landmarks_in(image, boxes)
        faces = [
            (Face(box, float(score), five_points(points)), points)
            for box, score, points in zip(boxes, detected[:, 4], landmarks, strict=True)
        ]
        faces.sort(key=lambda pair: -pair[0].area)
        return Found(faces[0][1] if faces else None, [face for face, _ in faces])


def _longest_side(image: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Resize with antialiasing; returns the picture and its (width, height) divided by the photo's."""
    size = np.array(image.shape[1::-1])
    new = np.maximum(np.round(size * side / size.max()), 1).astype(int)
    picture = Image.fromarray(image).resize((int(new[0]), int(new[1])), Image.Resampling.BICUBIC)
    return np.asarray(picture), new / size


def _face_alignment(device: str, detector: Path, fan: Path) -> Any:
    from face_alignment import FaceAlignment, LandmarksType  # imported here: slow to import
    from face_alignment.api import FAN

    class Local(FaceAlignment):
        """Reads FAN from our file instead of downloading it; all else is the package's."""

        def _load_native(self, network_name: str, network_size: int, device: str, dtype: torch.dtype) -> Any:
            network = FAN(network_size)
            with whole(fan):
                network.load_state_dict(torch.load(fan, map_location="cpu", weights_only=True))
            return network.to(device, dtype=dtype).eval()

    return Local(
        LandmarksType.TWO_D,
        device=device,
        compile=False,  # would compile for minutes, and writes a cache into the home folder
        face_detector_kwargs={"path_to_detector": str(detector)},
    )


class OnnxLandmarks:
    """An ONNX network of 68 points: (B, 3, s, s) RGB in 0..1 -> (B, 136), x and y as fractions of the crop.

    The crop is the square around the face box's centre with 1.1 times its longer side; what lies outside of the
    photo repeats its edge. A face that lies is turned before. The mean of the crop's and its mirror image's landmarks
    is taken, since networks trained without mirror images lean to one side.

    Args:
        path: The ONNX file.
        detector: Finds the boxes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no ONNX file, or its input or output has other shapes.
    """

    ENLARGE = 1.1

    def __init__(self, path: str | Path, detector: FaceDetector) -> None:
        self.detector = detector
        self._session = _session(Path(path))
        (graph_input,) = self._session.get_inputs()
        self._input = graph_input.name
        self.side = int(graph_input.shape[2])

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Found]:
        """Find landmarks; all crops go through the network at once.

        Args:
            images: (H, W, 3) uint8, RGB, of any sizes.

        Raises:
            ValueError: If an image is no photo.
        """
        detector = self.detector
        faces = [find_any_way_up(image, detector.detect, detector.sure_upright) for image in images]
        seen = [i for i, found in enumerate(faces) if found]
        turns = [quarter_turns(faces[i][0].points) for i in seen]
        standing = [np.rot90(images[i], turn) for i, turn in zip(seen, turns, strict=True)]
        squares = [
            _square(turned_back(faces[i][0], -turn % 4, image.shape).box, self.ENLARGE)
            for i, turn, image in zip(seen, turns, standing, strict=True)
        ]
        crops = [_crop(image, square, self.side) for image, square in zip(standing, squares, strict=True)]
        landmarks = {
            i: points_back(points * square[2] + square[:2], turn, images[i].shape)
            for i, turn, points, square in zip(seen, turns, self._run(crops), squares, strict=True)
        }
        return [Found(landmarks.get(i), found) for i, found in enumerate(faces)]

    def _run(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        if not crops:
            return np.empty((0, POINTS, 2))
        batch = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255
        both = np.concatenate([batch, batch[..., ::-1]])
        (output,) = self._session.run(None, {self._input: both})
        straight, mirrored = output.astype(np.float64).reshape(2, len(crops), POINTS, 2)
        mirrored = mirrored[:, MIRRORED] * (-1, 1) + (1, 0)
        return (straight + mirrored) / 2


def _session(path: Path) -> Any:
    import onnxruntime  # imported here: slow to import

    if not path.is_file():
        raise FileNotFoundError(f"no landmark network at {path}")
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    try:
        session = onnxruntime.InferenceSession(path, providers=providers)
    except Exception as error:  # its exceptions have no common base class
        raise ValueError(f"{path} is no ONNX file that onnxruntime can run: {error}") from error
    shapes = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
    if not (
        len(shapes) == 2
        and len(shapes[0]) == 4
        and shapes[0][1] == 3
        and isinstance(shapes[0][2], int)
        and shapes[0][2] == shapes[0][3]
        and shapes[1][1:] == [2 * POINTS]
        and not isinstance(shapes[0][0], int)
    ):
        raise ValueError(
            f"{path} must take (B, 3, s, s) and give (B, {2 * POINTS}) with a free B; it has {shapes}"
        )
    return session


def _square(box: NDArray[np.float64], enlarge: float) -> NDArray[np.float64]:
    """(x0, y0, side) of the square around a box's centre, `enlarge` times its longer side."""
    side = (box[2:] - box[:2]).max() * enlarge
    return np.array([*(box[:2] + box[2:] - side) / 2, side])


def _crop(image: NDArray[np.uint8], square: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Cut a square with antialiasing; beyond the photo its edge is repeated."""
    x0, y0, length = square
    start = np.floor((x0, y0)).astype(int)
    stop = np.ceil((x0 + length, y0 + length)).astype(int)
    columns, rows = (np.arange(start[axis], stop[axis]).clip(0, image.shape[1 - axis] - 1) for axis in (0, 1))
    cut = Image.fromarray(image[rows[:, None], columns])
    x0, y0 = x0 - start[0], y0 - start[1]
    box = (x0, y0, min(x0 + length, cut.width), min(y0 + length, cut.height))
    return np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR, box=box))
