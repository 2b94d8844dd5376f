"""Slow versions of the layers in numpy and scipy, one sample at a time, written from docs/method.md and StyleGAN2."""

import math

import numpy as np
import torch
from scipy.signal import convolve2d, correlate2d

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8
LOW_PASS = np.outer(TAPS, TAPS)


def array(tensor):
    return tensor.detach().double().numpy()


def randomize(module, std=1.0):
    """Replace every parameter, biases and zero-initialised ones too, so that each of them matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module


def stir(module, std=0.05):
    """Move every parameter a little away from its initial value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=std)
    return module


def stir_all(model):
    """Give every weight of an RPFModel a part in an output that is not all clamped; the flow too."""
    stir(model, std=0.1)
    with torch.no_grad():
        for block in model.blocks:
            block.synthesis.to_rgb.weight.mul_(0.05)
            block.refinement.to_rgb.weight.mul_(0.1)
            block.refinement.to_rgb.bias.add_(0.0 if block.refinement.residual else 0.5)
    return model.eval()


def conv(x, weight):
    """(I, H, H) and (O, I, 3, 3) -> (O, H, H), zero padding."""
    return np.stack([sum(correlate2d(c, w, "same") for c, w in zip(x, row, strict=True)) for row in weight])


def conv_down(x, weight):
    """Low-pass filter, then convolution with stride 2: (O, H/2, H/2)."""
    low = np.stack([convolve2d(channel, LOW_PASS, "full")[1:-1, 1:-1] for channel in x])
    return np.stack(
        [sum(correlate2d(c, w, "valid") for c, w in zip(low, row, strict=True))[::2, ::2] for row in weight]
    )


def conv_up(x, weight):
    """Zeros between the pixels, convolution, low-pass filter: (O, 2H, 2H)."""
    channels, side, _ = x.shape
    spread = np.zeros((channels, 2 * side - 1, 2 * side - 1))
    spread[:, ::2, ::2] = x
    full = [sum(convolve2d(c, w, "full") for c, w in zip(spread, row, strict=True)) for row in weight]
    return np.stack([convolve2d(channel, 4 * LOW_PASS, "full")[2:-2, 2:-2] for channel in full])


def equalized(layer, x, down=False):
    weight = array(layer.weight)
    weight = weight / math.sqrt(weight[0].size)
    return (conv_down if down else conv)(x, weight) + array(layer.bias)[:, None, None]


def linear(layer, x):
    weight = array(layer.weight)
    return weight @ x / math.sqrt(weight.shape[1]) + array(layer.bias)


def modulated(layer, x, latent, up=False):
    """The weights of one sample: multiplied by its style, then brought to norm 1 per output channel."""
    weight = array(layer.weight)
    weight = weight / math.sqrt(weight[0].size) * linear(layer.style, latent)[None, :, None, None]
    weight = weight / np.sqrt((weight**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
    return (conv_up if up else conv)(x, weight) + array(layer.bias)[:, None, None]


def pixel_shuffle(x):
    """(4C, H, H) -> (C, 2H, 2H): four channels become the pixels of a 2x2 cell, row by row."""
    quadruple, side, _ = x.shape
    out = np.empty((quadruple // 4, 2 * side, 2 * side))
    for channel in range(quadruple):
        out[channel // 4, (channel % 4) // 2 :: 2, channel % 2 :: 2] = x[channel]
    return out
