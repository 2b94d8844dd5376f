"""Perceptual loss on AlexNet's features (eq. 8)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rpf_lightning.faces.weights import alexnet_file, whole
from rpf_lightning.losses.optional import optional_term
from rpf_lightning.model.resize import full_precision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


def alexnet_layers() -> nn.Sequential:
    """AlexNet up to its fifth ReLU, with torchvision's numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class AlexNetFeatures(nn.Module):
    """The outputs of AlexNet's five ReLUs, frozen.

    Args:
        weights: A file with torchvision's keys, the whole network or its features only; None searches.

    Raises:
        FileNotFoundError: If no weights are found.
        ValueError: If the file lacks a convolution.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.features = alexnet_layers()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        path = alexnet_file(weights)
        with whole(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = {key: value for key, value in state.items() if key.startswith("features.")}
        wanted = {f"features.{key}" for key in self.features.state_dict()}
        if wanted - state.keys():
            raise ValueError(
                f"{path}: expected torchvision's AlexNet, it lacks {sorted(wanted - state.keys())}"
            )
        self.load_state_dict({**state, "mean": self.mean, "std": self.std})
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, S, S) RGB in [0, 1], S >= 32 -> five feature maps, in fp32."""
        with full_precision(image.device):
            x, taps = (image.float() - self.mean) / self.std, []
            for layer in self.features:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    taps.append(x)
            return taps


class PerceptualLoss(nn.Module):
    """Sum over the five ReLU outputs of the mean squared difference (eq. 8).

    Args:
        norm: ``"mse"``, or ``"l2"``: the root of each sample's mean square, nearer to the L2 norm that eq. 8
            prints.
        weights: See `AlexNetFeatures`.
        jitter: Both images are shifted by the same random number of pixels below this, in each direction anew. The
            first convolution has a stride of 4: without a shift it always sees a pixel at the same place of its
            window, and the gradient has a pattern that is the same in all images (`benchmarks/stripes.py`). Not in
            the paper; 1 shifts nothing.

    Raises:
        FileNotFoundError: If no weights are found: says how to get them and how to switch the term off.
        ValueError: See `AlexNetFeatures`; or if `jitter` is not positive.
    """

    def __init__(
        self, norm: Literal["mse", "l2"] = "mse", weights: str | None = None, jitter: int = 1
    ) -> None:
        super().__init__()
        if jitter < 1:
            raise ValueError(f"perceptual_jitter: expected a positive number of pixels, got {jitter}")
        self.norm = norm
        self.jitter = jitter
        with optional_term("perceptual_weight"):
            self.features = AlexNetFeatures(weights)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two batches (B, 3, S, S), RGB nominally in [0, 1] -> a scalar."""
        if self.jitter > 1:
            right, down = torch.randint(self.jitter, (2,)).tolist()
            prediction, target = _shifted(prediction, right, down), _shifted(target, right, down)
        with torch.no_grad():
            wanted = self.features(target)
        total = prediction.new_zeros(())
        for tap, goal in zip(self.features(prediction), wanted, strict=True):
            squares = (tap - goal).square().flatten(1).mean(1)
            if self.norm == "l2":
                squares = (squares + 1e-12).sqrt()  # the root alone has no gradient at zero
            total = total + squares.mean()
        return total


def _shifted(image: Tensor, right: int, down: int) -> Tensor:
    """Move the content by some pixels; what moves in is mirrored, what moves out is lost."""
    height, width = image.shape[-2:]
    return F.pad(image, (right, 0, down, 0), mode="reflect")[..., :height, :width]
