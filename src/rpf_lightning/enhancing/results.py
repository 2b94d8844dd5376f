"""What enhancing a photo gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rpf_lightning.enhancing.found import LeftFace
from rpf_lightning.enhancing.identity_check import Comparison
from rpf_lightning.enhancing.inputs import Metadata


@dataclass(frozen=True, eq=False)
class EnhancedFace:
    """One face that was super-resolved.

    Attributes:
        face: (S, S, 3) uint8, what the model made.
        lr: (l, l, 3) uint8, what it was given, l = L * 2^k.
        references: (K, S, S, 3) uint8, the aligned references that the model got: one, or K of a model that takes
            several (`synthesis_copy`). The first has the nearest pose.
        masks: (K, S, S) uint8, 1 on the references' faces and 0 elsewhere.
        matrix: (2, 3) float64: fractions of the face's aligned square -> pixels of the enhanced photo.
        face_index: Which face of the photo, 0 is the largest.
        face_side: Side of the aligned square in pixels of the photo: the resolution that the face had.
        reference_indices: Which of the portraits that were given for it these references are.
        names: What messages call them: the files.
        identity: How alike face and first reference are; None where it was not compared.
    """

    face: NDArray[np.uint8]
    lr: NDArray[np.uint8]
    references: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    matrix: NDArray[np.float64]
    face_index: int
    face_side: float
    reference_indices: tuple[int, ...]
    names: tuple[str, ...]
    identity: Comparison | None

    @property
    def reference(self) -> NDArray[np.uint8]:
        """The first reference, (S, S, 3) uint8."""
        return self.references[0]

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Its mask, (S, S) uint8."""
        return self.masks[0]

    @property
    def reference_index(self) -> int:
        """Which of the portraits it is."""
        return self.reference_indices[0]


@dataclass(frozen=True, eq=False)
class Enhanced(EnhancedFace):
    """An enhanced photo and how it came about; it has the attributes of its first face.

    Attributes:
        image: (H factor, W factor, 3) uint8 RGB: the photo, enlarged, with the faces, which are corrected by the
            photo's own pixels (`back_project`); of an aligned crop the face alone.
        before: The same size: the enlarged photo without the faces; of an aligned crop its enlargement.
        factor: How much the photo was enlarged; 1 of an aligned crop.
        warnings: What the user should know, as sentences.
        faces: Those that were super-resolved, the largest first.
        left: Those that were to be and stay as they are.
        sought: From which side on faces were sought, in pixels of the photo; 0 of an aligned crop.
        metadata: What the photo's file says beside its pixels.
    """

    image: NDArray[np.uint8]
    before: NDArray[np.uint8]
    factor: int
    warnings: tuple[str, ...]
    faces: tuple[EnhancedFace, ...]
    left: tuple[LeftFace, ...] = ()
    sought: int = 0
    metadata: Metadata = field(default_factory=Metadata)
