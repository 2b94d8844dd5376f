"""LPIPS: the `lpips` package's own heads on weights that are already on disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rpf_lightning.faces.weights import (
    WEIGHTS_VARIABLE,
    alexnet_file,
    cache_dir,
    weight_file,
    weights_dir,
    whole,
)

VGG_FILE = "vgg16-397923af.pth"  # torchvision's


def lpips(pred: Tensor, gt: Tensor, network: nn.Module) -> Tensor:
    """LPIPS distance per image (paper IV-A).

    Args:
        pred: (B, 3, S, S), RGB, clamped to [0, 1].
        gt: (B, 3, S, S), RGB in [0, 1].
        network: See `lpips_network`.

    Returns:
        (B,), 0 for equal images.
    """
    distance: Tensor = network(pred.clamp(0, 1), gt, normalize=True)
    return distance.flatten()


def lpips_network(net: Literal["alex", "vgg"] = "alex", weights: str | None = None) -> nn.Module:
    """Make the `lpips` package's network; the package would download AlexNet, here it comes from the weights folder.

    Args:
        net: The network, ``"alex"`` or ``"vgg"``.
        weights: A file of torchvision's weights; None searches: AlexNet's as `AlexNetFeatures` does, VGG16's
            `vgg16-397923af.pth` in `RPF_WEIGHTS_DIR` and the cache.

    Raises:
        FileNotFoundError: If the weights are missing. VGG16's are not downloaded.
        ValueError: If the network is another one.
    """
    from lpips import LPIPS

    if net not in ("alex", "vgg"):
        raise ValueError(f"net: expected 'alex' or 'vgg', got {net!r}")
    path = alexnet_file(weights) if net == "alex" else _vgg_file(weights)
    with whole(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # its random weights are replaced
        warnings.simplefilter("ignore")  # lpips calls torchvision with arguments that are deprecated
        network: nn.Module = LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
    # the package keeps torchvision's layers under their numbers, cut into five slices
    for name, layer in network.get_submodule("net").named_modules():
        if isinstance(layer, nn.Conv2d):
            number = name.split(".")[-1]
            layer.load_state_dict({key: state[f"features.{number}.{key}"] for key in ("weight", "bias")})
    return network


def _vgg_file(explicit: str | None) -> Path:
    if explicit:
        return weight_file("vgg16", explicit)
    candidates = [folder / VGG_FILE for folder in (weights_dir(), cache_dir()) if folder]
    if found := next(filter(Path.is_file, candidates), None):
        return found
    raise FileNotFoundError(
        f"LPIPS with VGG16 needs torchvision's {VGG_FILE} (528 MB), which is not downloaded: looked for "
        f"{', '.join(map(str, candidates))}. Fetch it from https://download.pytorch.org/models/{VGG_FILE} into the "
        f"folder that {WEIGHTS_VARIABLE} names, name a file in `weights`, or take AlexNet, net='alex'"
    )
