"""Pastes a super-resolved face back into its photo, which is enlarged by a whole factor."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.enhancing.back_projection import back_project
from rpf_lightning.faces.parsing import template_mask
from rpf_lightning.pictures import to_tensor, to_uint8

FEATHER = 0.1  # of the aligned square's side: within this distance of the mean face the pasted one fades out
RIM = 0.05  # the same along the edge of the square, where chins may reach
WEIGHT_SIDE = 256
CORNERS = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])  # of the aligned square
MARGIN = 4  # pixels of the photo around it, so that resizing does not see the edge of what is cut out
MAX_PIXELS = 100e6  # of an enlarged photo: 0.3 GB, held three times: without the face, with it, corrected


def enlargement(image: NDArray[np.uint8], face_side: float, size: int) -> tuple[int, bool]:
    """How much to enlarge a photo so that it takes a super-resolved face without loss.

    Args:
        image: (H, W, 3), the photo.
        face_side: Side of the aligned face in pixels of the photo.
        size: S, side of the super-resolved face.

    Returns:
        The least whole factor, 1 at least, and whether it had to be less to keep the photo below 100 million pixels.
    """
    wanted = max(1, ceil(size / face_side))
    height, width = image.shape[:2]
    possible = max(1, int((MAX_PIXELS / (height * width)) ** 0.5))
    return min(wanted, possible), possible < wanted


def enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Enlarge a photo with bicubic interpolation: (H, W, 3) -> (H factor, W factor, 3) uint8."""
    height, width = image.shape[:2]
    size = (width * factor, height * factor)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def box_around(
    matrix: NDArray[np.float64], photo: NDArray[np.uint8], margin: int = 0
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what an aligned square covers of a photo, with a margin; it may be empty."""
    height, width = photo.shape[:2]
    corners = matrix @ CORNERS
    left, top = (np.floor(corners.min(1)).astype(int) - margin).clip(0, (width, height)).tolist()
    right, bottom = (np.ceil(corners.max(1)).astype(int) + margin).clip(0, (width, height)).tolist()
    return left, top, right, bottom


def paste(
    photo: NDArray[np.uint8], face: NDArray[np.uint8], matrix: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Blend a face into a photo with a soft mask.

    Inside the mean face of aligned portraits the pasted one covers the photo, around it and towards the edge of the
    square it fades out.

    Args:
        photo: (H, W, 3) uint8.
        face: (S, S, 3) uint8, aligned.
        matrix: (2, 3): fractions of the aligned square -> pixels of the photo, see `alignment_matrix`.

    Returns:
        (H, W, 3) uint8; pixels outside of the soft mask are the photo's.
    """
    box = left, top, right, bottom = box_around(matrix, photo)
    if right <= left or bottom <= top:
        return photo.copy()
    # a face that is denser than the photo would alias
    side = min(len(face), ceil(float(np.hypot(*matrix[:, 0]))))
    source = Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC)
    sharp = np.asarray(_placed(source, matrix, box, Image.Resampling.BICUBIC), np.float32)
    weights = np.asarray(_placed(_weight_image(), matrix, box, Image.Resampling.BILINEAR))[..., None]
    result = photo.copy()
    region = result[top:bottom, left:right]
    region[:] = np.rint(region + weights * (sharp - region)).astype(np.uint8)
    return result


def corrected(
    image: NDArray[np.uint8], photo: NDArray[np.uint8], matrix: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """Make an enlarged photo with a pasted face agree with the photo's own pixels, see `back_project`.

    This is done in the pixels of the photo: an aligned crop of it was interpolated and is softer.

    Args:
        image: (H f, W f, 3) uint8.
        photo: (H, W, 3) uint8.
        matrix: Of the pasted face, see `paste`: where its weight is 0, nothing is changed. None: everywhere.

    Returns:
        (H f, W f, 3) uint8.
    """
    if matrix is None:
        return to_uint8(back_project(to_tensor(image), to_tensor(photo))[0])
    factor = len(image) // len(photo)
    if factor == 1:
        return image  # to agree with the photo's pixels would be to keep them
    left, top, right, bottom = box_around(matrix / factor, photo, MARGIN)
    if right <= left or bottom <= top:
        return image
    box = (left * factor, top * factor, right * factor, bottom * factor)
    weights = np.array(
        _placed(_weight_image(), matrix, box, Image.Resampling.BILINEAR)
    )  # writable, for torch
    result = image.copy()
    region = result[box[1] : box[3], box[0] : box[2]]
    found = back_project(
        to_tensor(region), to_tensor(photo[top:bottom, left:right]), torch.from_numpy(weights)
    )
    region[:] = to_uint8(found[0])
    return result


def _placed(
    square: Image.Image,
    matrix: NDArray[np.float64],
    box: tuple[int, int, int, int],
    filtering: Image.Resampling,
) -> Image.Image:
    """The part `box` of the photo, filled from an aligned square; 0 where the square does not reach."""
    left, top, right, bottom = box
    inverse = np.linalg.inv(matrix[:, :2]) * square.width
    offset = inverse @ (np.array([left, top]) - matrix[:, 2])
    data = np.column_stack([inverse, offset]).ravel().tolist()
    return square.transform((right - left, bottom - top), Image.Transform.AFFINE, data, filtering)


@lru_cache(maxsize=1)
def _weight_image() -> Image.Image:
    return Image.fromarray(paste_weights(WEIGHT_SIDE))


def paste_weights(side: int) -> NDArray[np.float32]:
    """Weights of a pasted face in its aligned square.

    Args:
        side: Side in pixels.

    Returns:
        (side, side) float32: 1 in the mean face (`template_mask`), 0 a tenth of the side away from it and along the
        square's edge.
    """
    from scipy.ndimage import distance_transform_edt  # imported here: slow to import

    distance = distance_transform_edt(template_mask(side) == 0) / side
    centres = (np.arange(side) + 0.5) / side
    rim = _smooth(np.minimum(centres, 1 - centres) / RIM - 0.5)
    return (_smooth(1 - distance / FEATHER) * np.minimum(rim[:, None], rim)).astype(np.float32)


def _smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 up to x = 0, 1 from x = 1 on, smooth between them."""
    x = x.clip(0, 1)
    return x * x * (3 - 2 * x)
