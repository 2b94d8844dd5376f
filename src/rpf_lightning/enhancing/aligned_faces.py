"""Finds the faces of a photo, tiny ones too, and prepares references: alignment, mask, features.

Coordinates are continuous, as in `faces.detection`: a photo spans 0..W and 0..H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rpf_lightning.faces import dlib_models
from rpf_lightning.faces.alignment import align_face, aligned_points, alignment_matrix, check_photo
from rpf_lightning.faces.detection import Detector, Face
from rpf_lightning.faces.face_models import FaceModels, Recogniser, Wanted, face_models
from rpf_lightning.faces.landmarks import LandmarkModel, landmark_model
from rpf_lightning.faces.parsing import BiSeNetParser, hull_mask, template_mask
from rpf_lightning.faces.turned import SAME_FACE, find_any_way_up, shared_area
from rpf_lightning.faces.weights import WEIGHTS, is_here
from rpf_lightning.pictures import to_tensor

TILE = 640  # of the enlarged photo
OVERLAP = 160  # of the enlarged photo; larger faces are found at a smaller scale
# of what is searched at that scale, a reduction by 2, the photo itself or an enlargement; 24 million: 20 seconds
MAX_PIXELS = {0.5: 64e6, 1: 24e6, 2: 24e6, 4: 16e6}
CUT = 160  # least side of what a face is found again in: at the detector's input side, it is enlarged by 4
FEATURE_SIDE = 512  # the recognisers see 112 or 150 pixels of a crop; larger ones only cost time


MaskModel = Literal["auto", "bisenet", "hull", "template"]
MaskOf = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class RefusedError(ValueError):
    """A photo or a reference that cannot serve; the message says why and what would."""


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face in its photo.

    Attributes:
        image: (H, W, 3) uint8, RGB, the photo.
        points: (5, 2) float64 in pixels of the photo, see `faces.detection.Face`; None: the photo is aligned.
        matrix: (2, 3) float64: fractions of the aligned square -> pixels of the photo (`alignment_matrix`).
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float64] | None
    matrix: NDArray[np.float64]

    @classmethod
    def found(cls, image: NDArray[np.uint8], face: Face) -> AlignedFace:
        """A face that the detector found."""
        return cls(image, face.points, alignment_matrix(face.points))

    @classmethod
    def whole(cls, image: NDArray[np.uint8], name: str) -> AlignedFace:
        """A photo that is an aligned square already; its name is for messages.

        Raises:
            RefusedError: If it is not square.
        """
        check_photo(image)
        height, width = image.shape[:2]
        if height != width:
            raise RefusedError(f"{name}: expected a square, aligned photo, got {width} x {height}")
        return cls(image, None, np.array([[width, 0, 0], [0, height, 0]], np.float64))

    @property
    def side(self) -> float:
        """Side of the aligned square in pixels of the photo: the resolution that the face really has."""
        return float(np.hypot(*self.matrix[:, 0]))

    def crop(self, side: int) -> NDArray[np.uint8]:
        """Cut the aligned square out with antialiasing, (side, side, 3) uint8."""
        if self.points is not None:
            return align_face(self.image, self.points, side)
        return np.asarray(Image.fromarray(self.image).resize((side, side), Image.Resampling.BICUBIC))

    def own_points(self) -> NDArray[np.float64]:
        """The five points as fractions of the aligned square, (5, 2).

        Raises:
            ValueError: If no detector found them.
        """
        if self.points is None:
            raise ValueError("a photo that was aligned before has no points")
        return aligned_points(self.points, self.points)


@dataclass(frozen=True)
class Search:
    """What a search has found, and how it searched.

    Attributes:
        faces: Largest box first, in pixels of the photo.
        scales: At which the photo was searched in tiles.
        smallest: Side of the smallest face that was sought, in pixels of the photo.
        complete: Whether a smaller photo would not be searched for smaller faces.
    """

    faces: tuple[Face, ...]
    scales: tuple[float, ...]
    smallest: int
    complete: bool

    @property
    def hint(self) -> str:
        """What helps where a face was missed; "" if the size of the photo is no reason."""
        if self.complete:
            return ""
        return (
            f"faces below {self.smallest} pixels were not sought, since the photo is large: cut it to the surroundings "
            "of a tiny face that was missed"
        )


def find_faces(image: NDArray[np.uint8], detector: Detector) -> list[Face]:
    """Find the faces of a photo, see `search_faces`: largest box first, in pixels of the photo."""
    return list(search_faces(image, detector).faces)


def search_faces(image: NDArray[np.uint8], detector: Detector) -> Search:
    """Find faces in a photo and in its enlargements: tiny faces are missed otherwise.

    The detector sees a photo at up to its `max_input_side`. Beside that, these are searched, in tiles: the enlargements
    by 4 (up to 16 million pixels of the enlargement) and by 2 (up to 24 million), else the photo at its own size (up to
    24 million), else reduced by 2. Of several finds of one face the one with the highest score is kept; a face that was
    found in a reduced photo is found again in a cut around it. Where no face is surely upright, the photo's other
    quarter turns are searched in the same way (`find_any_way_up`).

    Args:
        image: (H, W, 3) uint8, RGB.
        detector: The detector.

    Raises:
        ValueError: If the image is no photo.
    """
    check_photo(image)
    height, width = image.shape[:2]
    longest, area = max(height, width), height * width
    zoom = detector.input_side / TILE  # how much the detector enlarges a tile
    # the detector itself enlarges small photos to its input's side
    seen = max(min(1.0, detector.max_input_side / longest), detector.input_side / longest)
    possible = [scale for scale, limit in MAX_PIXELS.items() if scale**2 * area <= limit]
    scales = [scale for scale in possible if scale > 1 and scale * zoom > seen]
    if not scales:
        scales = [scale for scale in possible[-1:] if scale * zoom > seen]
    elif detector.smallest_face / seen > OVERLAP / 2 and 1 in possible:
        scales.insert(0, 1)  # faces too large for the tiles of the enlargement are tiny in the reduced photo
    faces = find_any_way_up(image, lambda turned: _at_scales(turned, detector, scales), detector.sure_upright)
    most = max(MAX_PIXELS) * zoom  # an icon's enlargement shows nothing more
    densest = min(max([*(scale * zoom for scale in scales), seen]), most)
    return Search(tuple(faces), tuple(scales), ceil(detector.smallest_square / densest), densest >= most)


def _at_scales(image: NDArray[np.uint8], detector: Detector, scales: Sequence[float]) -> list[Face]:
    """Find faces in a photo and, in tiles, at some scales; each once, largest box first."""
    found = detector.detect(image)
    if max(image.shape) > detector.max_input_side:
        found = [_again(image, face, detector) for face in found]
    for scale in scales:
        tiled = _in_tiles(image, detector, scale)
        found += tiled if scale >= 1 else (_again(image, face, detector) for face in tiled)
    kept: list[Face] = []
    for face in sorted(found, key=lambda face: -face.score):
        if face.area > 0 and all(shared_area(face, other) < SAME_FACE for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: -face.area)


def _again(image: NDArray[np.uint8], face: Face, detector: Detector) -> Face:
    """Find a face of a reduced photo again in a cut of the photo itself, so that its points are exact."""
    height, width = image.shape[:2]
    middle, size = (face.box[:2] + face.box[2:]) / 2, face.box[2:] - face.box[:2]
    if size.max() >= TILE:
        return face  # exact enough
    half = max(1.5 * size.max(), CUT / 2)
    left, top = np.floor(middle - half).astype(int).clip(0, (width, height))
    right, bottom = np.ceil(middle + half).astype(int).clip(0, (width, height))
    if right <= left or bottom <= top:
        return face
    corner = np.array([left, top])
    finds = [
        Face(other.box + np.tile(corner, 2), other.score, other.points + corner)
        for other in detector.detect(image[top:bottom, left:right])
    ]
    finds = [other for other in finds if other.area > 0 and shared_area(face, other) >= SAME_FACE]
    return max(finds, key=lambda other: shared_area(face, other, whole=True), default=face)


def _in_tiles(image: NDArray[np.uint8], detector: Detector, scale: float) -> Iterator[Face]:
    height, width = image.shape[:2]
    tile = int(TILE / scale)
    for top in _starts(height, tile, scale):
        for left in _starts(width, tile, scale):
            part = Image.fromarray(image[top : top + tile, left : left + tile])
            size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
            enlarged = part.resize(size, Image.Resampling.BICUBIC)
            corner = np.array([left, top])
            for face in detector.detect(np.asarray(enlarged)):
                low, high = face.box[:2] / scale, face.box[2:] / scale
                # what a tile cuts off is whole in the next tile or at a smaller scale
                cut = (low <= 0) & (corner > 0)
                cut |= (high >= part.size) & (corner + part.size < (width, height))
                if not cut.any():
                    box = np.concatenate([low + corner, high + corner])
                    yield Face(box, face.score, face.points / scale + corner)


def _starts(length: int, tile: int, scale: float) -> Sequence[int]:
    """Where tiles begin: at most `tile` long, an overlap apart, the last one at the end."""
    last = max(0, length - tile)
    return sorted({*range(0, last, tile - int(OVERLAP / scale)), last})


class FaceNetworks:
    """The pretrained networks around the model, each loaded when it is first needed.

    Args:
        pack: insightface pack; None as in `insightface_pack`.
        mask_model: Where the reference's mask comes from: "bisenet" (facexlib), "hull" (of 68 landmarks), "template"
            (the mean mask of aligned faces), or "auto": "bisenet" where its weights are found, else "hull" where dlib
            is installed, else "bisenet" after all.
        landmarks: For "hull", as `landmark_model` takes it; None: dlib's where they are installed, else face-alignment.
        device: Of BiSeNet, ArcFace and face-alignment.
        models: What finds and compares faces, as `face_models` takes it.

    Raises:
        ValueError: If `mask_model` or `models` is another one, or a pack is named for dlib's models.
    """

    def __init__(
        self,
        pack: str | None = None,
        mask_model: MaskModel = "auto",
        landmarks: str | None = None,
        device: str | torch.device = "cpu",
        models: Wanted = "auto",
    ) -> None:
        if mask_model not in get_args(MaskModel):
            raise ValueError(f"mask_model: expected {' or '.join(get_args(MaskModel))}, got {mask_model!r}")
        dlibs = dlib_models.is_installed()
        if mask_model == "auto":
            mask_model = "hull" if dlibs and not is_here("bisenet") else "bisenet"
        self.pack, self.mask_model = pack, mask_model
        self.landmarks = landmarks or ("dlib" if dlibs else "face-alignment")
        self.device = torch.device(device)
        self.models: FaceModels = face_models(models, pack, self.device)
        self._features: WeakKeyDictionary[AlignedFace, Tensor] = WeakKeyDictionary()

    @property
    def said(self) -> str:
        """What is used and its terms, two lines for people; loads nothing."""
        terms = {"dlib": dlib_models.LANDMARK_TERMS, "face-alignment": WEIGHTS["fan"].licence}
        landmarks = (
            f"{self.landmarks} ({terms[self.landmarks]})" if self.landmarks in terms else self.landmarks
        )
        masks = {
            "bisenet": f"facexlib's BiSeNet ({WEIGHTS['bisenet'].licence})",
            "hull": f"the hull of 68 landmarks of {landmarks}",
            "template": "the mean mask of aligned faces",
        }
        return f"faces: {self.models.said}\nmask of the reference: {masks[self.mask_model]}"

    @property
    def detector(self) -> Detector:
        """Finds faces; raises FileNotFoundError where its weights are missing."""
        return self.models.detector

    @property
    def recogniser(self) -> Recogniser:
        """Compares people; raises FileNotFoundError where its weights are missing."""
        return self.models.recogniser

    def features(self, face: AlignedFace) -> Tensor:
        """Features of a face at the resolution that it has, (D,) fp32 of unit length, on the CPU."""
        if face not in self._features:
            self._features[face] = self._compute(face)
        return self._features[face]

    @torch.no_grad()
    def _compute(self, face: AlignedFace) -> Tensor:
        crop = face.crop(min(max(1, round(face.side)), FEATURE_SIDE))
        pixels = to_tensor(crop).to(self.device)
        return torch.nn.functional.normalize(self.recogniser(pixels)[0].float(), dim=0).cpu()

    @cached_property
    def mask(self) -> MaskOf:
        """Masks an aligned face (eq. 1): (S, S, 3) uint8 RGB -> (S, S) uint8, 1 on the face and 0 elsewhere.

        Reading it loads the mask's network and raises FileNotFoundError where that is missing, naming the mask
        models that need none. Calling it raises ValueError where the network finds no face.
        """
        if self.mask_model == "template":
            return lambda face: template_mask(len(face))
        if self.mask_model == "hull":
            return self._hull(self._find_landmarks)
        return self._parsed(self._parser)

    @property
    def labels(self) -> MaskOf | None:
        """Parses an aligned face: (S, S, 3) uint8 RGB -> (512, 512) uint8 in BiSeNet's order.

        None where the mask model tells no classes apart. Raises as `mask`.
        """
        if self.mask_model in ("hull", "template"):
            return None
        return lambda face: self._parser.labels([face])[0]

    @staticmethod
    def _hull(find_landmarks: LandmarkModel) -> MaskOf:
        def mask(face: NDArray[np.uint8]) -> NDArray[np.uint8]:
            (found,) = find_landmarks([face])
            if found.landmarks is None:
                raise ValueError("no landmarks found in it; --mask-model template needs none")
            return hull_mask(found.landmarks / len(face), len(face))

        return mask

    @staticmethod
    def _parsed(parser: BiSeNetParser) -> MaskOf:
        def mask(face: NDArray[np.uint8]) -> NDArray[np.uint8]:
            (parsed,) = parser([face])
            if not parsed.any():
                raise ValueError(
                    "the parsing network finds no face in it; --mask-model template needs no network"
                )
            size = (len(face), len(face))
            return np.asarray(Image.fromarray(parsed).resize(size, Image.Resampling.NEAREST))

        return mask

    @cached_property
    def _parser(self) -> BiSeNetParser:
        try:
            return BiSeNetParser(self.device)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}. Without BiSeNet: --mask-model hull (from 68 landmarks) or --mask-model template "
                "(the mean mask of aligned faces, needs no network)"
            ) from error

    @cached_property
    def _find_landmarks(self) -> LandmarkModel:
        try:
            return landmark_model(self.landmarks, self.device, self.pack)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}. Other landmarks: --landmark-model dlib or onnx:PATH; --mask-model template needs none"
            ) from error
