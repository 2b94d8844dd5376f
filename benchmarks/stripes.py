"""Stripes in a model's pictures, and the pull of the perceptual term towards them.

    python benchmarks/stripes.py PREPARED --model celeba-hq-16to128

First table: power of outputs, and of the last block's synthesized images, relative to the GTs', at some periods, along
rows and along columns; validation pairs of the folder, brightness, windowed. Where detail is missing values are below
1 and fall slowly; a value far above its neighbours' is a pattern.

Second table: the same power in the perceptual term's gradient, averaged over the images: what is left is at the same
place of the pixel grid in all of them. It is relative to the mean of the periods between 4.6 and 6.4 pixels; without
and with `perceptual_jitter: 4`. AlexNet's weights are needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import measure
import torch
from torch import Tensor

from rpf_lightning import RPFModel
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.losses import PerceptualLoss
from rpf_lightning.model.resize import resize

PERIODS = (16.0, 8.0, 5.33, 4.57, 4.0, 3.56, 3.2, 2.67, 2.29, 2.0)
LOW = 3  # frequencies across a stripe that count as constant


def power(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean power spectrum of images (B, C, S, S), along rows and along columns: (S / 2 + 1,) each."""
    side = images.shape[-1]
    window = torch.hann_window(side)
    centred = images - images.mean((2, 3), keepdim=True)
    spectrum = torch.fft.fft2(centred * window[:, None] * window).abs().square().mean((0, 1))
    half = side // 2 + 1
    return spectrum[:LOW, :half].sum(0), spectrum[:half, :LOW].sum(1)


def at(spectrum: Tensor, period: float) -> float:
    """Value at a period in pixels."""
    side = 2 * (len(spectrum) - 1)
    return float(spectrum[round(side / period)])


def pictures(model: RPFModel, batches: Iterator[ReferenceBatch] | list[ReferenceBatch]) -> list[list[object]]:
    """Rows of the first table."""
    outputs, synthesized, gts = [], [], []
    for batch in batches:
        with torch.inference_mode():
            output, blocks = model(batch.lr, batch.reference, return_intermediates=True)
        outputs.append(output)
        synthesized.append(blocks[-1].synthesized.clamp(0, 1))
        gts.append(batch.gt)
    spectra = [power(torch.cat(images).mean(1, keepdim=True)) for images in (outputs, synthesized, gts)]
    rows: list[list[object]] = []
    for name, of in zip(("output", "synthesized"), spectra, strict=False):
        for direction in (0, 1):
            ratio = of[direction] / spectra[2][direction]
            rows.append(
                [f"{name}, along {('rows', 'columns')[direction]}", *(f"{at(ratio, p):.2f}" for p in PERIODS)]
            )
    return rows


def gradients(batches: list[ReferenceBatch], jitter: int) -> list[object]:
    """A row of the second table: stripes along rows."""
    torch.manual_seed(0)
    loss, total, count = PerceptualLoss(jitter=jitter), torch.zeros(1), 0
    for batch in batches:
        start = resize(batch.lr, batch.gt.shape[-1]).clamp(0, 1)
        for image, gt in zip(start.split(1), batch.gt.split(1), strict=True):  # each with a shift of its own
            x = image.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(x, gt), x)
            total, count = total + gradient / gradient.norm(), count + 1
    spectrum = power(total / count)[0]
    side = 2 * (len(spectrum) - 1)
    usual = spectrum[round(side / 6.4) : round(side / 4.6)].mean()
    name = "without" if jitter == 1 else f"perceptual_jitter: {jitter}"
    return [name, *(f"{at(spectrum / usual, p):.2f}" for p in PERIODS)]


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="celeba-hq-16to128")
    parser.add_argument("--pairs", type=int, default=64, help="validation pairs, evenly spread")
    known = parser.parse_args(args)
    model = RPFModel.from_pretrained(known.model)
    batches = measure.validation_batches(known.prepared, model, known.pairs)
    print(measure.heading())
    periods = [f"{p:g} px" for p in PERIODS]
    print(f"\n{known.model}, {sum(len(b.id) for b in batches)} pairs, power relative to the GTs'", end="\n\n")
    print(measure.markdown(["", *periods], pictures(model, batches)))
    print("\nThe perceptual term's mean gradient, along rows", end="\n\n")
    print(measure.markdown(["", *periods], [gradients(batches, jitter) for jitter in (1, 4)]))


if __name__ == "__main__":
    main()
