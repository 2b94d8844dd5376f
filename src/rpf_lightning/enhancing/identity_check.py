"""Is the reference the same person as the face? Asked only where a measurement says that the network can tell.

The constants follow from what `benchmarks/identity_roc.py` printed for two networks (benchmarks/RESULTS.md).
The cosines of another one are others.
"""

from __future__ import annotations

from typing import NamedTuple

from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks


class Limits(NamedTuple):
    """What was measured for one network.

    Attributes:
        file: The network, by its file's name.
        smallest_side: Pixels of the aligned square; in smaller faces people cannot be told apart.
        same: From this cosine on two faces surely show one person.
        other: Below, they clearly show two.
    """

    file: str
    smallest_side: int
    same: float
    other: float


LIMITS = {
    # at 32, 10 % of the pairs of one person are below `other`; about 0.1 % of the pairs of two people exceed `same`, at
    # every side from the smallest on; two thirds of them are below `other`, and 0 to 2.6 % of one person's
    "insightface": Limits("rec_mbf_128.onnx", 48, 0.36, 0.05),
    # at 48, 14 % of the pairs of one person are no more alike than the 1 % of strangers that are most alike, at 56 9 %,
    # as above; less than 0.1 % of the pairs of two people exceed `same`; below `other` are 66 % of them and more, and 0
    # to 1.1 % of one person's
    "dlib": Limits("dlib_face_recognition_resnet_model_v1.dat", 56, 0.94, 0.87),
}


class Comparison(NamedTuple):
    """A face compared with a reference.

    Attributes:
        cosine: Of the features, -1..1.
        limits: Of the network.
    """

    cosine: float
    limits: Limits

    @property
    def matches(self) -> bool:
        """Whether both surely show one person."""
        return self.cosine >= self.limits.same

    @property
    def differs(self) -> bool:
        """Whether they clearly show two people."""
        return self.cosine < self.limits.other


def limits_of(networks: FaceNetworks) -> Limits:
    """The limits that were measured for the kind of face models; loads nothing."""
    return LIMITS[networks.models.kind]


def comparable(face: AlignedFace, networks: FaceNetworks) -> bool:
    """Whether a face is large enough to compare people."""
    return face.side >= limits_of(networks).smallest_side


def not_measured(networks: FaceNetworks) -> str:
    """What to say where the limits were measured for another network than the one in use; "" where for this one.

    Raises:
        FileNotFoundError: If the network's weights are missing.
    """
    file, measured = networks.recogniser.file, limits_of(networks).file
    if file == measured:
        return ""
    return (
        f"the limits were not measured for {file}, only for {measured}: nobody is refused, and make sure yourself that "
        "the right face was chosen and the reference shows the same person"
    )


def compare(face: AlignedFace, reference: AlignedFace, networks: FaceNetworks) -> Comparison | None:
    """Compare two faces.

    Returns:
        None where one of them is smaller than the smallest side: there, the cosine says too little.

    Raises:
        FileNotFoundError: If the network's weights are missing.
    """
    if not (comparable(face, networks) and comparable(reference, networks)):
        return None
    return Comparison(float(networks.features(face) @ networks.features(reference)), limits_of(networks))
