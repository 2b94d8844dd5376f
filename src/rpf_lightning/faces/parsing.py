"""Facial masks m of non-facial region removal (P III-A, eq. 1; docs/method.md section 1), with and without a network.

Without one a mask is cruder. Mean IoU with hand-made CelebAMask-HQ masks of aligned photos: `hull_mask` 0.83,
`template_mask` 0.76 (tests/faces/test_parsing.py measures both).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.faces.alignment import check_photo
from rpf_lightning.faces.labels import facial_mask
from rpf_lightning.faces.weights import weight_file, whole
from rpf_lightning.model.resize import full_precision, resize

CHIN, BROWS = 8, slice(17, 27)  # of the 68 landmarks
# Both fitted to the hand-made masks: how far the forehead reaches above the brows, as a share of the distance from
# chin to brows, and how much less it does at the temples.
FOREHEAD, TEMPLES = 0.42, 0.5
TEMPLATE_FILE = "template_mask.png"
TEMPLATE_SIDE = 128


class BiSeNetParser:
    """facexlib's BiSeNet, trained on CelebAMask-HQ, with its own loader.

    Args:
        device: "cpu", "cuda", ...

    Raises:
        FileNotFoundError: If the weights "bisenet" of `weight_file` are missing.
    """

    SIDE = 512  # of what the network was trained on
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    def __init__(self, device: str | torch.device = "cpu") -> None:
        from facexlib.parsing import init_parsing_model  # imported here: it is slow to import

        file = weight_file("bisenet")
        self._device = torch.device(device)
        with whole(file):  # the loader finds it by its name
            network = init_parsing_model("bisenet", device="cpu", model_rootpath=str(file.parent))
        self._network = network.to(self._device)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Compute masks, all in one batch.

        Args:
            images: (H, W, 3) uint8, RGB, of any sizes; faces aligned as in CelebA-HQ.

        Returns:
            (512, 512) uint8 each, 1 inside the facial classes and 0 elsewhere.

        Raises:
            ValueError: If an image is no photo.
        """
        return [facial_mask(labels, "bisenet") for labels in self.labels(images)]

    @torch.no_grad()
    def labels(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Compute parsing maps: as `__call__`, but (512, 512) uint8 labels in BiSeNet's order."""
        if not images:
            return []
        with full_precision(self._device):
            batch = torch.cat([self._prepared(image) for image in images])
            labels = self._network(batch)[0].argmax(1)  # the other two are auxiliary outputs for training
        return list(labels.byte().cpu().numpy())

    def _prepared(self, image: NDArray[np.uint8]) -> torch.Tensor:
        check_photo(image)
        pixels = torch.from_numpy(np.array(image)).to(self._device).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (self.MEAN, self.STD))
        return (resize(pixels, self.SIDE).clamp(0, 1) - mean) / std


def hull_mask(landmarks: NDArray[np.floating], side: int) -> NDArray[np.uint8]:
    """Convex hull of the landmarks and of a forehead.

    The forehead is the ten brow points moved along the axis from the chin c to the mean brow point b, by
    ``0.42 (1 - 0.5 t^2) (b - c)`` with t = -1 at the outer end of one brow and 1 at that of the other.

    Args:
        landmarks: (68, 2), x and y as fractions of the side.
        side: Side of the mask in pixels.

    Returns:
        (side, side) uint8, 1 where the pixel's centre lies inside.

    Raises:
        ValueError: If the landmarks have another shape, are not finite or lie on one line.
    """
    from scipy.spatial import ConvexHull, QhullError

    points = np.asarray(landmarks, np.float64)
    if points.shape != (68, 2) or not np.isfinite(points).all():
        raise ValueError(f"expected 68 finite landmarks, got {points.shape}")
    axis = points[BROWS].mean(0) - points[CHIN]
    rise = FOREHEAD * (1 - TEMPLES * np.linspace(-1, 1, 10) ** 2)
    forehead = points[BROWS] + rise[:, None] * axis
    try:
        lines = ConvexHull(np.concatenate([points, forehead])).equations  # (N, 3): outside is positive
    except QhullError as error:
        raise ValueError("the landmarks lie on one line, they have no hull") from error
    x, y = lines[:, :2].T[..., None] * ((np.arange(side) + 0.5) / side)
    inside = np.ones((side, side), bool)
    for along, down, offset in zip(x, y, lines[:, 2], strict=True):
        inside &= along + down[:, None] + offset <= 0
    return inside.astype(np.uint8)


def template_mask(side: int) -> NDArray[np.uint8]:
    """Where at least half of 3,000 hand-made masks of aligned CelebA-HQ photos are facial; looks at no photo.

    Args:
        side: Side of the mask in pixels.

    Returns:
        (side, side) uint8 of 0 and 1.
    """
    with files("rpf_lightning.faces").joinpath(TEMPLATE_FILE).open("rb") as file, Image.open(file) as mean:
        return (np.asarray(mean.resize((side, side), Image.Resampling.BILINEAR)) >= 128).astype(np.uint8)


def mean_mask(label_files: Iterable[Path], scheme: str) -> NDArray[np.uint8]:
    """Average the facial masks of label maps; this made the file that `template_mask` reads.

    Args:
        label_files: Square images of labels 0..18, of faces aligned as in CelebA-HQ.
        scheme: "bisenet" or "celebamask-hq".

    Returns:
        (128, 128) uint8: 255 where every mask is facial.

    Raises:
        ValueError: If there is no file, or as in `facial_mask`.
    """
    total, count = np.zeros((TEMPLATE_SIDE, TEMPLATE_SIDE)), 0
    for path in label_files:
        with Image.open(path) as labels:
            mask = Image.fromarray(facial_mask(np.asarray(labels), scheme) * np.uint8(255))
        total += np.asarray(mask.resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Image.Resampling.BOX))
        count += 1
    if not count:
        raise ValueError("no label map to average")
    return np.rint(total / count).astype(np.uint8)
