"""The pass over all photos: landmarks, masks and embeddings of those that have none.

It is a prediction of a LightningModule, so that several GPUs and nodes work through Lightning's strategies. A
writer stores every batch as one file; what is stored is not computed again.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from rpf_lightning.data.image_files import read_mask, read_photo
from rpf_lightning.data.pairing import grey_thumbnail
from rpf_lightning.data.preparation.options import MaskModel
from rpf_lightning.data.preparation.prepared_folder import pack_mask
from rpf_lightning.data.preparation.sources import Source
from rpf_lightning.errors import DamagedError
from rpf_lightning.faces.alignment import align_face, aligned_points
from rpf_lightning.faces.arcface import ArcFace, crop_face
from rpf_lightning.faces.detection import Detector, Face, FaceDetector
from rpf_lightning.faces.dlib_models import DlibDetector
from rpf_lightning.faces.landmarks import LandmarkModel, landmark_model
from rpf_lightning.faces.parsing import BiSeNetParser, hull_mask, template_mask
from rpf_lightning.faces.turned import find_any_way_up, is_placed, quarter_turns, upright_aligned
from rpf_lightning.files import write_atomically

logger = logging.getLogger(__name__)

SECOND_FACE = 0.25  # a face of at least this share of the main face's area makes "several faces"
Known = TypeVar("Known")


@dataclass(frozen=True)
class Annotated:
    """A photo on its way through the pass.

    Attributes:
        index: Position in the list of sources.
        sha256: Of the photo's file, or of the pixels of a face that is aligned here; "" if unreadable.
        reason: Why the photo is rejected; "" while it is not.
        image: (H, H, 3) uint8 RGB, dropped before storing; empty if unreadable.
        landmarks: (68, 2) in pixels of `image`.
        mask: (h, h) uint8 of 0 and 1.
        embedding: (D,) float32; D is 0 without embeddings.
    """

    index: int
    sha256: str = ""
    reason: str = ""
    image: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    landmarks: NDArray[np.float64] | None = None
    mask: NDArray[np.uint8] | None = None
    embedding: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class Photos(Dataset[Annotated]):
    """Reads photos and the annotations that exist; what cannot be read becomes a rejected item.

    Args:
        sources: All photos.
        todo: Indices of those to read.
        label_scheme: Order of the values of parsing maps.
        square: Refuse photos that are not square: only aligned faces are.

    Attributes:
        at_least: Length that is made up to: every process must have something to do.
    """

    def __init__(
        self, sources: Sequence[Source], todo: Sequence[int], label_scheme: str | None, square: bool
    ) -> None:
        self.sources, self.todo = sources, todo
        self.label_scheme, self.square = label_scheme, square
        self.at_least = 0

    def __len__(self) -> int:
        return max(len(self.todo), self.at_least)

    def __getitem__(self, position: int) -> Annotated:
        """Read one photo; what is there only to make up the number has index -1."""
        if position >= len(self.todo):
            return Annotated(-1, reason="none")
        index = self.todo[position]
        source = self.sources[index]
        notes: list[str] = []
        try:
            content = source.path.read_bytes()
            image = read_photo(source.path, content, notes)
            for note in notes:
                logger.warning("warning: %s", note)
            mask = None
            if source.label is not None:
                assert self.label_scheme is not None
                mask = read_mask(source.label, self.label_scheme)
        except (ValueError, OSError) as error:
            return Annotated(index, reason=str(error))
        height, width = image.shape[:2]
        if self.square and width != height:
            return Annotated(
                index, reason=f"not square ({width} x {height}), so no aligned face; --align always aligns it"
            )
        if mask is not None and not mask.any():
            return Annotated(index, reason=f"{source.label}: the parsing map shows no face")
        if mask is not None and mask.shape[0] != mask.shape[1]:
            return Annotated(index, reason=f"{source.label}: the parsing map is not square")
        digest = hashlib.sha256(content).hexdigest()
        return Annotated(index, digest, image=image, landmarks=source.landmarks, mask=mask)


def as_list(batch: list[Annotated]) -> list[Annotated]:
    """Collate nothing: photos differ in size."""
    return batch


class Annotator(LightningModule):
    """Adds what the photos of a batch lack.

    Args:
        landmark_spec: As `landmark_model` takes it; None leaves photos without landmarks rejected.
        mask_model: Where masks without a parsing map come from; None: every photo has a parsing map.
        side: Side of the aligned faces; None: the photos are aligned.
        pack: insightface pack of the detector and of the embeddings; None as in `insightface_pack`.
        embed: Whether to compute embeddings.
        missing_landmarks: Reason of rejection where `landmark_spec` is None.
        missing_mask: The same for masks.
    """

    def __init__(
        self,
        landmark_spec: str | None,
        mask_model: MaskModel | None,
        side: int | None,
        pack: str | None,
        embed: bool,
        missing_landmarks: str,
        missing_mask: str,
    ) -> None:
        super().__init__()
        self.landmark_spec, self.mask_model, self.side = landmark_spec, mask_model, side
        self.pack, self.embed = pack, embed
        self.missing_landmarks, self.missing_mask = missing_landmarks, missing_mask
        self.arcface: ArcFace | None = None

    def setup(self, stage: str) -> None:
        """Load the networks on this process's device.

        Raises:
            FileNotFoundError: If weights are missing.
        """
        spec = self.landmark_spec
        self.detector: Detector | None = None
        if self.side and spec:
            self.detector = DlibDetector() if spec == "dlib" else FaceDetector(self.pack)
        self.find_landmarks: LandmarkModel | None = (
            landmark_model(spec, str(self.device), self.pack) if spec else None
        )
        self.parser = BiSeNetParser(str(self.device)) if self.mask_model == "bisenet" else None
        self.arcface = ArcFace(self.pack).to(self.device) if self.embed else None

    def transfer_batch_to_device(
        self, batch: list[Annotated], device: torch.device, dataloader_idx: int
    ) -> list[Annotated]:
        """Leave the photos where they are; every network takes its own input from them."""
        return batch

    def predict_step(self, batch: list[Annotated], batch_idx: int) -> list[Annotated]:
        """Annotate a batch."""
        for step in (
            self._plausible,
            self._align,
            self._landmarks,
            self._plausible,
            self._masks,
            self._embeddings,
        ):
            done = {item.index: item for item in step([item for item in batch if not item.reason])}
            batch = [done.get(item.index, item) for item in batch]
        return batch

    def _align(self, batch: list[Annotated]) -> list[Annotated]:
        """Cut aligned faces out of photos of any kind."""
        return [self._aligned(item, self.side) for item in batch] if self.side else batch

    def _aligned(self, item: Annotated, side: int) -> Annotated:
        points = item.landmarks
        if points is None:
            if self.detector is None:
                return replace(item, reason=self.missing_landmarks)
            find = self.detector.detect
            faces = find_any_way_up(item.image, find, self.detector.sure_upright)
            if reason := face_count_problem(faces):
                return replace(item, reason=reason)
            face = upright_aligned(item.image, faces[0], find)
            if face is None:
                return replace(item, reason="the face is not upright once it is aligned")
            points = face.points
        try:
            image = align_face(item.image, points, side)
        except ValueError as error:  # eyes and mouth in one point place no square
            return replace(item, reason=f"cannot be aligned: {error}")
        landmarks = None if item.landmarks is None else aligned_points(item.landmarks, points, side)
        return replace(item, image=image, landmarks=landmarks)

    def _landmarks(self, batch: list[Annotated]) -> list[Annotated]:
        lacking = [item for item in batch if item.landmarks is None]
        if self.find_landmarks is None:
            return [replace(item, reason=self.missing_landmarks) for item in lacking]
        if not lacking:
            return []
        done = []
        found = self.find_landmarks([item.image for item in lacking])
        for item, result in zip(lacking, found, strict=True):
            reason = face_count_problem(result.faces) or self._landmark_problem(result.landmarks)
            done.append(replace(item, reason=reason, landmarks=None if reason else result.landmarks))
        return done

    def _landmark_problem(self, landmarks: NDArray[np.float64] | None) -> str:
        """What is wrong with the landmarks of a photo's face; "" if nothing is."""
        if landmarks is None or not np.isfinite(landmarks).all():
            return "the landmark network gave no landmarks"
        if self.side and not is_placed(landmarks, self.side):
            return "the detector and the landmark network found different faces"
        if not self.side and quarter_turns(landmarks):
            return "the face is not upright; --align always turns it"
        return ""

    def _plausible(self, batch: list[Annotated]) -> list[Annotated]:
        """Reject landmarks that a thin-plate spline could not use or that belong to a photo of another size."""
        done = []
        for item in batch:
            if item.landmarks is None:
                continue
            points = item.landmarks / item.image.shape[1::-1]
            reason = ""
            if np.linalg.matrix_rank(points - points.mean(0), tol=1e-3) < 2:
                reason = "the landmarks are all on one line"
            elif not ((points > -0.5) & (points < 1.5)).all():
                reason = f"landmarks lie far outside of the photo of {item.image.shape[1]} pixels"
            done.append(replace(item, reason=reason))
        return done

    def _masks(self, batch: list[Annotated]) -> list[Annotated]:
        lacking = [item for item in batch if item.mask is None]
        if self.parser is not None and lacking:
            masks = self.parser([item.image for item in lacking])
        elif self.mask_model == "hull":
            masks = [hull_mask(_known(item.landmarks) / item.image.shape[1], 512) for item in lacking]
        elif self.mask_model == "template":
            masks = [template_mask(512)] * len(lacking)
        else:
            return [replace(item, reason=self.missing_mask) for item in lacking]
        return [
            replace(item, mask=mask, reason="" if mask.any() else "the mask is empty: no face found")
            for item, mask in zip(lacking, masks, strict=True)
        ]

    def _embeddings(self, batch: list[Annotated]) -> list[Annotated]:
        if self.arcface is None or not batch:
            return batch
        # photos differ in size, their crops do not
        crops = [crop_face(self._tensor(item.image)) for item in batch]
        embeddings = self.arcface.features(torch.cat(crops)).float().cpu().numpy()
        return [replace(item, embedding=row) for item, row in zip(batch, embeddings, strict=True)]

    def _tensor(self, image: NDArray[np.uint8]) -> torch.Tensor:
        return torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255


def face_count_problem(faces: Sequence[Face]) -> str:
    """Say what is wrong with the number of faces in a photo, largest first; "" if it shows one person.

    Faces much smaller than the largest are people in the background and do not count.
    """
    if not faces:
        return "no face found"
    count = sum(face.area >= SECOND_FACE * faces[0].area for face in faces)
    return "" if count == 1 else f"{count} faces found; expected one person"


def _known(annotation: Known | None) -> Known:
    assert annotation is not None
    return annotation


class BatchWriter(BasePredictionWriter):
    """Stores every annotated batch as one file, and aligned faces as PNG.

    Args:
        folder: Where the batches go.
        faces: Aligned face of every source, or None where photos are aligned already.
    """

    def __init__(self, folder: Path, faces: Sequence[Path] | None) -> None:
        super().__init__("batch")
        self.folder, self.faces = folder, faces

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: list[Annotated], *_: Any
    ) -> None:
        """Write one batch."""
        batch = [self._with_face(item) for item in prediction if item.index >= 0]
        if batch:
            # every photo is in one batch only, so its index names the file, on whatever process
            write_atomically(self.folder / f"{batch[0].index:08d}.npz", _encode(batch))

    def _with_face(self, item: Annotated) -> Annotated:
        """Write an aligned face and take the hash of its pixels."""
        if self.faces is None or item.reason:
            return item
        buffer = io.BytesIO()
        Image.fromarray(item.image).save(buffer, "PNG")
        path = self.faces[item.index]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        return replace(item, sha256=hashlib.sha256(item.image.tobytes()).hexdigest())


def _encode(batch: Sequence[Annotated]) -> bytes:
    kept = [item for item in batch if not item.reason]
    # networks' last digits differ between processors, and nobody sees them
    landmarks = np.rint(np.array([_known(item.landmarks) for item in kept], np.float64) * 100) / 100
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        index=[item.index for item in batch],
        sha256=np.array([item.sha256 for item in batch], dtype=str),
        reason=np.array([item.reason for item in batch], dtype=str),
        side=np.array([len(item.image) for item in kept], dtype=np.int64),
        landmarks=landmarks,
        mask=np.array([pack_mask(_known(item.mask)) for item in kept], dtype=np.uint8),
        thumbnail=np.array([grey_thumbnail(item.image) for item in kept], dtype=np.uint8),
        embedding=np.array([item.embedding for item in kept], dtype=np.float32),
    )
    return buffer.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open what `BatchWriter` stored, and raise a DamagedError where it is something else."""
    try:
        with np.load(path, allow_pickle=False) as content:
            yield content
    except Exception as error:  # one bit can make it stumble over anything
        raise DamagedError(f"{path}: damaged ({error}). Delete it: its photos are looked at again") from error


def read_batches(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """Join what `BatchWriter` stored, in the order of the sources; masks stay where they are.

    Returns:
        Of the N photos that are usable: `index` in the list of sources, `sha256` as in `Annotated`, `side` in
        pixels, `landmarks` (N, 68, 2) in pixels to 0.01, `thumbnail` (N, 32, 32) uint8, `embedding` (N, D)
        float32; {} without any. And index -> reason of those that are rejected.

    Raises:
        DamagedError: If a file is something else; names it.
    """
    reasons: dict[int, str] = {}
    parts: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.npz")):
        with _opened(path) as content:
            reason = content["reason"]
            kept = reason == ""
            fields = {name: content[name][kept] for name in ("index", "sha256")}
            fields |= {name: content[name] for name in ("side", "landmarks", "thumbnail", "embedding")}
            if any(len(values) != kept.sum() for values in fields.values()):
                raise ValueError("its parts differ in length")
            reasons.update(zip(content["index"][~kept].tolist(), reason[~kept].tolist(), strict=True))
        if kept.any():
            for name, values in fields.items():
                parts[name].append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    order = np.unique(joined["index"], return_index=True)[1] if joined else slice(None)
    return {name: values[order] for name, values in joined.items()}, reasons


def fill_masks(folder: Path, index: NDArray[np.int64], masks: NDArray[np.uint8]) -> None:
    """Put the packed masks of the photos `index`, ascending, into `masks` (N, 512, 64).

    Raises:
        DamagedError: If a file is something else; names it.
    """
    for path in folder.glob("*.npz"):
        with _opened(path) as content:
            kept = content["index"][content["reason"] == ""]
            if len(kept):
                masks[np.searchsorted(index, kept)] = content["mask"]
