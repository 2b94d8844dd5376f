"""A second face recogniser for the benchmarks: dlib's face descriptor, which no loss of this project uses.

Raw descriptors of any two faces have a cosine of about .83, so the similarity is the cosine after a mean descriptor,
of people that models are trained with, at the GTs' side, is subtracted from both: about 0 for two people, .75 for two
photos of one. It stays above 0 for images without detail, as colours and shape are seen too: read it as a share of the
way from the bicubic enlargement's to that of another photo of the person.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.pairs_datamodule import evenly
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import gt_at, image_tensor
from rpf_lightning.faces.dlib_models import FEATURES, DlibRecogniser


class CentredRecogniser:
    """Descriptors of aligned faces around a mean face: an `Identity` of `rpf_lightning.metrics.face_networks`.

    Args:
        mean: (128,) what is subtracted, see `mean_descriptor`; None: nothing.

    Raises:
        FileNotFoundError: If dlib or its models are not installed.
    """

    def __init__(self, mean: Tensor | None = None) -> None:
        self._recogniser = DlibRecogniser()
        self.mean = torch.zeros(FEATURES) if mean is None else mean

    def __call__(self, images: Tensor) -> Tensor:
        """Compute centred descriptors (B, 128) of images (B, 3, S, S) in [0, 1]."""
        return self._recogniser(images) - self.mean


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
