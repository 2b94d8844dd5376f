"""Face detection with five points: what a detector is, and SCRFD of an insightface model pack.

Coordinates are continuous: a photo spans 0..W and 0..H, pixel ``i`` has its centre at ``i + 0.5``. SCRFD's need no
conversion: they are distances from anchors at multiples of the stride in a picture whose edge is 0, and detections
in photos and their mirror images add up to W within half a pixel of the network's input, not to W - 1.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.faces.alignment import check_photo
from rpf_lightning.faces.weights import insightface_pack, whole

MIN_SCORE = 0.5
# Every photo is searched at 320 pixels, where a face that fills it is found (at 640 alone most aligned portraits
# are missed), and at 640, where small faces are; larger photos also at about their own size.
INPUT_SIDES = (320, 640)
MAX_INPUT_SIDE = 1920


@dataclass(frozen=True, eq=False)
class Face:
    """One face in a photo.

    Attributes:
        box: (4,) float64, x0, y0, x1, y1 in pixels; may reach beyond the photo.
        score: How sure the detector is, 0.4..1.
        points: (5, 2) float64 in pixels: left eye, right eye, nose, left and right corner of the mouth, where
            "left" is the image's left.
    """

    box: NDArray[np.float64]
    score: float
    points: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return float(np.prod(self.box[2:] - self.box[:2]))


class Detector(Protocol):
    """Finds the faces of a photo.

    Attributes:
        pack: What it is a part of, for people.
        smallest_face: Side of the box of the smallest faces that it finds in what it sees, in pixels.
        smallest_square: Side of the aligned square of those of which it misses few; some of smaller ones.
        input_side: Longest side of a photo that it sees as it is; smaller ones are enlarged to it.
        max_input_side: The same of larger ones, which are reduced to it.
        sure_upright: From which score on a face is surely upright, if its points are (`faces.turned`).
    """

    @property
    def pack(self) -> str: ...  # noqa: D102

    @property
    def smallest_face(self) -> int: ...  # noqa: D102

    @property
    def smallest_square(self) -> int: ...  # noqa: D102

    @property
    def input_side(self) -> int: ...  # noqa: D102

    @property
    def max_input_side(self) -> int: ...  # noqa: D102

    @property
    def sure_upright(self) -> float: ...  # noqa: D102

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find faces in a photo (H, W, 3) uint8 RGB; largest box first."""
        ...


class FaceDetector:
    """SCRFD of an insightface pack, run by onnxruntime on the GPU if it can, else on the CPU.

    Args:
        pack: Name of an insightface pack; None as in `insightface_pack`. Licence of insightface's models:
            non-commercial research.

    Raises:
        FileNotFoundError: If the pack, or a detector with five points in it, is missing.

    Attributes:
        sure_upright: From which score on a face is surely upright, if its points are (`faces.turned`). Measured with
            the pack "mbf" in four quarter turns of 60 unaligned photos of 16 people, at 16 to 200 pixels of the aligned
            square, and of 60 aligned ones, at 64 and 512: none that lay reached it (.68 at most, of 840), and of those
            on their heads 4 of 420 (.79). Upright ones that fell short, whose photos are searched in the other turns
            too: 68 % at 16 pixels, 32 % at 24, 7 % at 48, 3 % at 96 and 200; of aligned ones 13 to 18 %. Every face
            that was found upright had a better score than in the other turns.
    """

    smallest_face = 20
    smallest_square = 20
    input_side = INPUT_SIDES[-1]
    max_input_side = MAX_INPUT_SIDE
    sure_upright = 0.76

    def __init__(self, pack: str | None = None) -> None:
        directory = insightface_pack(pack)
        self.pack = directory.name
        file = _detection_network(directory)
        with redirect_stdout(StringIO()):  # some versions print
            import onnxruntime  # these two are imported here: they are slow to import
            from insightface.model_zoo import get_model

            onnxruntime.set_default_logger_severity(3)  # its warnings about unused initializers say nothing
            available = onnxruntime.get_available_providers()
            providers = [
                name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available
            ]
            # one session serves all input sizes: a session per size would be kept for every size of photo
            with whole(file):
                self._network = get_model(str(file), providers=providers, static_shape_sessions=False)

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of a photo.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            The faces with a score of at least 0.5, largest box first; none in a sliver.

        Raises:
            ValueError: If the image is no photo.
        """
        check_photo(image)
        height, width = image.shape[:2]
        if min(height, width) * INPUT_SIDES[0] < max(height, width):
            return []  # nothing would be left of the shorter side
        bgr = np.ascontiguousarray(image[..., ::-1])
        finds = [self._at(bgr, side) for side in _input_sides(max(height, width))]
        boxes, points = (np.concatenate(arrays) for arrays in zip(*finds, strict=True))
        kept = self._network.nms(boxes.astype(np.float32)) if len(boxes) else []
        faces = [Face(boxes[i, :4], float(boxes[i, 4]), points[i]) for i in kept]
        return sorted(faces, key=lambda face: -face.area)

    def _at(self, bgr: NDArray[np.uint8], side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Find faces in a reduction or enlargement to `side`: (n, 5) boxes with scores, (n, 5, 2) points.

        The network's own reduction cuts the shorter side to whole pixels, and takes that side's ratio for both.
        """
        import cv2  # of insightface; imported here: it is slow to import

        height, width = bgr.shape[:2]
        scale = side / max(height, width)
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[: small[1], : small[0]] = cv2.resize(bgr, small)
        with redirect_stdout(StringIO()):
            boxes, points = self._network.detect(canvas, input_size=(side, side), det_thresh=MIN_SCORE)
        ratio = np.array([width / small[0], height / small[1]])
        boxes, points = boxes.astype(np.float64), points.astype(np.float64) * ratio
        boxes[:, :4] *= np.tile(ratio, 2)
        return boxes, points


def _input_sides(longest: int) -> list[int]:
    own = min(ceil(longest / 32) * 32, MAX_INPUT_SIDE)  # the network's largest stride is 32
    return [*INPUT_SIDES, own] if own > INPUT_SIDES[-1] else [*INPUT_SIDES]


def _detection_network(directory: Path) -> Path:
    import onnx

    for file in sorted(directory.glob("*.onnx")):
        # scores, boxes and five points at three or five strides; insightface tells detectors in the same way
        with whole(file):
            outputs = len(onnx.load(file, load_external_data=False).graph.output)
        if outputs in (9, 15):
            return file
    raise FileNotFoundError(
        f"{directory} holds no ONNX file of a face detector with five points (9 or 15 outputs)"
    )
