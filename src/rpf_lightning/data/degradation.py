"""Degradations: how a GT becomes the LR (docs/method.md section 11, P Fig. 13 and beyond).

Three kinds; y is the GT of side H, L the side of the LR, everything RGB in [0, 1]:

* ``bicubic``: down(y), the paper's LR.
* ``dpsr`` (P Fig. 13, after Zhang et al., "Deep Plug-and-Play Super-Resolution", CVPR 2019):
  down(y) * k_sigma + n_delta, blur and noise at the LR. The paper gives no settings; ours are `DPSR_SIGMA`
  and `DPSR_NOISE`.
* ``realistic`` (GFPGAN, Wang et al., CVPR 2021; ReF-LDM, Hsiao et al., NeurIPS 2024):
  [down(y * k_sigma) + n_delta]_JPEG_q with the ranges of ReF-LDM's published configuration.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rpf_lightning.model.resize import full_precision, resize

Kind = Literal["bicubic", "dpsr", "realistic"]

DPSR_SIGMA = (0.3, 1.2)  # px of the LR
DPSR_NOISE = (0.0, 15.0)  # standard deviation, of 255

# github.com/ChiWeiHsiao/ref-ldm, configs/refldm.yaml, `degrad_opt`. GFPGAN (options/train_gfpgan_v1.yml) has the
# same kernels with sigma 0.1..10, noise 0..20 and quality 60..100, all inside these ranges, but reduces by 8 at
# most. 512 -> 16 is a reduction by 32, where ReF-LDM's range (1..32) ends.
REALISTIC_SIGMA = (0.0, 16.0)  # px of a face of side `REALISTIC_SIDE`
REALISTIC_KERNEL = 41  # taps at that side; they cut a Gaussian of sigma 16 at 1.3 sigma
REALISTIC_NOISE = (0.0, 20.0)  # standard deviation, of 255
REALISTIC_QUALITY = (30.0, 100.0)  # of JPEG, drawn uniformly and truncated to an integer, as there
REALISTIC_ANISOTROPIC = 0.5  # share of kernels with two sigmas and an angle
REALISTIC_SIDE = 512

# px: the samples of a narrower rotated kernel miss its ridge. At 0.3 the next pixel weighs 0.4 % of the centre.
MIN_SIGMA = 0.3


class Draw(NamedTuple):
    """What is random in the degradation of one sample.

    Attributes:
        sigma: The blur's standard deviations along its two axes, in LR pixels (``dpsr``) or in pixels of a
            512-pixel face (``realistic``); equal for an isotropic blur.
        angle: Direction of the first axis in radians, 0..pi; 0 for an isotropic blur.
        delta: Standard deviation of the noise, of 255.
        quality: JPEG quality; 0 for ``dpsr``, which has no JPEG.
        noise: (3, L, L) standard normal, on the CPU.
    """

    sigma: tuple[float, float]
    angle: float
    delta: float
    quality: int
    noise: Tensor


class Degradation(nn.Module):
    """GT -> LR.

    The random parameters and the noise of a sample depend on (kind, seed, epoch, id) alone, not on its place
    in the batch, the batch size or the device. Nothing is learned and no gradient passes.

    ``realistic`` differs from its sources:

    * the reduction is fixed (H to L), antialiased bicubic and the end; there it is random, bilinear without
      antialiasing, and the result is enlarged to 512 again;
    * sigma and the kernel's extent refer to a face of 512 pixels, as there, and are scaled to other sides.
      A larger GT is first reduced to 512. At the working side no sigma is below `MIN_SIGMA`;
    * JPEG is kornia's differentiable approximation (batched, on the device) in place of libjpeg;
    * GFPGAN's colour jitter and grey images are left out, as in ReF-LDM.

    Args:
        kind: ``"bicubic"``, ``"dpsr"`` or ``"realistic"``.
        lr_size: Side L of the LR in pixels.
        seed: Another seed gives other parameters and noise; ``bicubic`` has none.

    Raises:
        ValueError: if `kind` is none of the three, or `lr_size` is not positive.
    """

    def __init__(self, kind: Kind = "bicubic", lr_size: int = 16, seed: int = 0) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if lr_size < 1:
            raise ValueError(f"lr_size must be at least 1, got {lr_size}")
        self.kind = kind
        self.lr_size = lr_size
        self.seed = seed

    @torch.no_grad()
    def forward(self, gt: Tensor, ids: Sequence[str], epoch: int = 0) -> Tensor:
        """Degrade a batch, in fp32 whatever autocast says.

        Args:
            gt: (B, 3, H, H), B >= 1, floating point in [0, 1]. H is L times a power of two; H = L (the
                reduction is done already) only for ``bicubic`` and ``dpsr``.
            ids: Names of the B samples.
            epoch: Another epoch gives other parameters and noise.

        Returns:
            (B, 3, L, L) float32 in [0, 1], rounded to 8 bit (it would be a file), on gt's device.

        Raises:
            ValueError: if `gt` or `ids` is not as described.
        """
        self._check(gt, ids)
        with full_precision(gt.device):
            gt = gt.float()
            if self.kind == "bicubic":
                return _to_8_bit(resize(gt, self.lr_size))
            draws = [self.draw(sample_id, epoch) for sample_id in ids]
            if self.kind == "dpsr":
                lr = self._blur_lr(resize(gt, self.lr_size).clamp(0, 1), draws)
            else:
                lr = resize(self._blur_gt(gt, draws), self.lr_size).clamp(0, 1)
            noise = torch.stack([draw.noise * (draw.delta / 255) for draw in draws])
            lr = _to_8_bit(lr + noise.to(gt.device))
            return lr if self.kind == "dpsr" else _to_8_bit(self._jpeg(lr, draws))

    def draw(self, sample_id: str, epoch: int = 0) -> Draw:
        """Return the random parameters and the noise of a sample.

        Args:
            sample_id: Name of the sample.
            epoch: Number of the epoch.

        Raises:
            ValueError: for ``bicubic``, which has none.
        """
        if self.kind == "bicubic":
            raise ValueError("kind must be dpsr or realistic: nothing of bicubic is random")
        name = f"{self.kind} {self.seed} {epoch} {sample_id}"
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
        # always all numbers, so that none moves the others
        kernel, *u = torch.rand(6, dtype=torch.float64, generator=generator, device="cpu").tolist()
        noise = torch.randn(3, self.lr_size, self.lr_size, generator=generator, device="cpu")
        if self.kind == "dpsr":
            sigma = _between(DPSR_SIGMA, u[0])
            return Draw((sigma, sigma), 0.0, _between(DPSR_NOISE, u[3]), 0, noise)
        sigma, other, angle = _between(REALISTIC_SIGMA, u[0]), _between(REALISTIC_SIGMA, u[1]), math.pi * u[2]
        if kernel >= REALISTIC_ANISOTROPIC:
            other, angle = sigma, 0.0
        quality = int(_between(REALISTIC_QUALITY, u[4]))
        return Draw((sigma, other), angle, _between(REALISTIC_NOISE, u[3]), quality, noise)

    def _check(self, gt: Tensor, ids: Sequence[str]) -> None:
        """Raise a ValueError for what `forward` does not accept."""
        L = self.lr_size
        square = gt.ndim == 4 and len(gt) > 0 and gt.shape[1] == 3 and gt.shape[2] == gt.shape[3]
        if not square or not gt.is_floating_point():
            raise ValueError(f"gt must be (B, 3, H, H) floating point, got {tuple(gt.shape)} {gt.dtype}")
        H = gt.shape[-1]
        factor = H // L
        if H < L or H % L or factor & (factor - 1):
            raise ValueError(f"gt's side must be lr_size ({L}) times a power of two, got {H}")
        if self.kind == "realistic" and H == L:
            raise ValueError(
                f"gt's side must be above lr_size ({L}) for realistic, which blurs first, got {H}"
            )
        if isinstance(ids, str) or len(ids) != len(gt):
            got = repr(ids) if isinstance(ids, str) else str(len(ids))
            raise ValueError(f"ids must be one name for each of the {len(gt)} samples of gt, got {got}")

    # What kornia is given by sample stays on the CPU: there it is checked without waiting for the device.

    def _blur_lr(self, lr: Tensor, draws: list[Draw]) -> Tensor:
        """Blur each image of (B, 3, L, L) with its own isotropic Gaussian."""
        from kornia.filters import gaussian_blur2d

        # three sigma, but reflection at the border allows no more than the side
        radius = min(math.ceil(3 * DPSR_SIGMA[1]), self.lr_size - 1)
        sigma = torch.tensor([draw.sigma for draw in draws], dtype=torch.float32)
        return gaussian_blur2d(lr, 2 * radius + 1, sigma)

    def _blur_gt(self, gt: Tensor, draws: list[Draw]) -> Tensor:
        """Blur each image of (B, 3, H, H) with its own kernel, at 512 pixels or below."""
        from kornia.filters import filter2d

        side = min(gt.shape[-1], max(REALISTIC_SIDE, self.lr_size))
        kernels = torch.stack([_kernel(draw, side) for draw in draws])
        return filter2d(resize(gt, side).clamp(0, 1), kernels.float())

    @staticmethod
    def _jpeg(lr: Tensor, draws: list[Draw]) -> Tensor:
        """Compress each image of (B, 3, L, L) with its own quality; not rounded."""
        from kornia.enhance import jpeg_codec_differentiable

        return jpeg_codec_differentiable(lr, torch.tensor([float(draw.quality) for draw in draws]))


def _between(limits: tuple[float, float], u: float) -> float:
    """Map `u` in [0, 1) to the interval."""
    return limits[0] + (limits[1] - limits[0]) * u


def _to_8_bit(image: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to multiples of 1/255."""
    return (image.clamp(0, 1) * 255).round() / 255


def _kernel(draw: Draw, side: int) -> Tensor:
    """Sample the blur of a ``realistic`` draw on the pixels of an image of `side`.

    kornia has no rotated Gaussian. The extent of 41 pixels of 512 is scaled as well; where it ends inside a
    pixel, that pixel counts in part.

    Returns:
        (K, K) float64 with sum 1, K odd, on the CPU.
    """
    scale = side / REALISTIC_SIDE
    half = REALISTIC_KERNEL / 2 * scale
    radius = math.ceil(half - 0.5)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    inside = (half + 0.5 - x.abs()).clamp(0, 1)
    first, second = (max(sigma * scale, MIN_SIGMA) for sigma in draw.sigma)
    cos, sin = math.cos(draw.angle), math.sin(draw.angle)
    along, across = cos * x[None] + sin * x[:, None], cos * x[:, None] - sin * x[None]
    kernel = (-((along / first) ** 2 + (across / second) ** 2) / 2).exp() * inside[None] * inside[:, None]
    return kernel / kernel.sum()
