"""LPIPS with AlexNet: the `lpips` package's own heads on weights that are already on disk."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from rpf_lightning.faces.weights import alexnet_file


class LPIPS(nn.Module):
    """LPIPS distance per image (paper IV-A).

    The package would download AlexNet; here it comes from the weights folder.

    Args:
        weights: See `AlexNetFeatures`.

    Raises:
        FileNotFoundError: If AlexNet's weights are missing.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        import lpips

        state = torch.load(alexnet_file(weights), map_location="cpu", weights_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision with arguments that are deprecated
            self.lpips = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
        # the package keeps torchvision's layers under their numbers, cut into five slices
        slices = self.lpips.net
        for name, layer in slices.named_modules():
            if isinstance(layer, nn.Conv2d):
                number = name.split(".")[-1]
                layer.load_state_dict({key: state[f"features.{number}.{key}"] for key in ("weight", "bias")})

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Measure.

        Args:
            prediction: (B, 3, S, S), RGB in [0, 1]; clamped.
            target: (B, 3, S, S), RGB in [0, 1].

        Returns:
            (B,), 0 for equal images.
        """
        return self.lpips(prediction.clamp(0, 1), target, normalize=True).flatten()
