"""Is the reference the same person as the face? Asked only where a measurement says that ArcFace can tell.

The constants follow from what `benchmarks/identity_roc.py` printed for one network (benchmarks/RESULTS.md).
The cosines of another one are others.
"""

from __future__ import annotations

from typing import NamedTuple

from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks

MEASURED = "rec_mbf_128.onnx"  # the network that the three below were measured with, by the file's name
SMALLEST_SIDE = 48  # pixels of the aligned square; at 32, 10 % of the pairs of one person are below OTHER
SAME = 0.36  # about 0.1 % of the pairs of two people exceed it, at every side from the smallest on
OTHER = 0.05  # two thirds of the pairs of two people are below, and 0 to 2.6 % of one person's


class Comparison(NamedTuple):
    """A face compared with a reference.

    Attributes:
        cosine: Of the ArcFace features, -1..1.
    """

    cosine: float

    @property
    def matches(self) -> bool:
        """Whether both surely show one person."""
        return self.cosine >= SAME

    @property
    def differs(self) -> bool:
        """Whether they clearly show two people."""
        return self.cosine < OTHER


def comparable(face: AlignedFace) -> bool:
    """Whether a face is large enough to compare people."""
    return face.side >= SMALLEST_SIDE


def not_measured(networks: FaceNetworks) -> str:
    """What to say where the limits were measured for another network than the one in use; "" where for this one.

    Raises:
        FileNotFoundError: If ArcFace's weights are missing.
    """
    file = networks.arcface.file
    if file == MEASURED:
        return ""
    return (
        f"the limits were not measured for {file}, only for {MEASURED}: nobody is refused, and make sure yourself that "
        "the right face was chosen and the reference shows the same person"
    )


def compare(face: AlignedFace, reference: AlignedFace, networks: FaceNetworks) -> Comparison | None:
    """Compare two faces.

    Returns:
        None where one of them is smaller than `SMALLEST_SIDE`: there, the cosine says too little.

    Raises:
        FileNotFoundError: If ArcFace's weights are missing.
    """
    if not (comparable(face) and comparable(reference)):
        return None
    return Comparison(float(networks.features(face) @ networks.features(reference)))
