"""What a model makes of faces between its entry sides: 20, 48 or 100 pixels, as in photos.

    python benchmarks/face_sides.py PREPARED --model celeba-hq-16to128

Validation pairs of the folder. The photo is the GT reduced to `side` pixels and rounded to 8 bits; the model is given
its reduction to the largest entry side not above it. Beside each other: bicubic enlargement, the same corrected by the
photo's own pixels (`enhancing.back_projection`), which only sharpens, the model's output, and the output corrected,
which is what `rpf enhance --aligned` writes. In a whole photo the face is turned and scaled as well, and fades out.
`better` is the share of pairs whose LPIPS is below that of the corrected enlargement. AlexNet's and ArcFace's weights
are needed.
"""

from __future__ import annotations

import measure
import torch
from torch import Tensor

from rpf_lightning import RPFModel
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.enhancing.back_projection import back_project
from rpf_lightning.enhancing.enhance import entry_side
from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.metrics import LPIPS, isc, psnr_face
from rpf_lightning.model.resize import resize

SIDES = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112)
NAMES = ("bicubic", "bicubic corrected", "output", "output corrected")
METRICS = {"PSNR face": 2, "LPIPS": 3, "ISC": 3}  # and their digits


def quantised(image: Tensor) -> Tensor:
    """Rounded to 8 bits."""
    return (image.clamp(0, 1) * 255).round() / 255


def pictures(model: RPFModel, batch: ReferenceBatch, side: int) -> dict[str, Tensor]:
    """Pictures (B, 3, S, S) of a batch whose photos have `side` pixels."""
    photo = quantised(resize(batch.gt, side))
    lr = quantised(resize(photo, entry_side(model, side)))
    bicubic, output = resize(photo, model.size).clamp(0, 1), model(lr, batch.reference)
    return {
        "bicubic": bicubic,
        "bicubic corrected": back_project(bicubic, photo),
        "output": output,
        "output corrected": back_project(output, photo),
    }


def measured(
    model: RPFModel, batches: list[ReferenceBatch], side: int, perceptual: LPIPS, identity: ArcFace
) -> list[object]:
    """A row of the table: PSNR inside the face, LPIPS and ISC of the pictures, and the share of better pairs."""
    found: dict[str, dict[str, list[Tensor]]] = {metric: {} for metric in METRICS}
    for batch in batches:
        with torch.inference_mode():
            for name, image in pictures(model, batch, side).items():
                values = (
                    psnr_face(image, batch.gt, batch.gt_mask),
                    perceptual.measure(image, batch.gt),
                    isc(image, batch.gt, identity),
                )
                for metric, value in zip(METRICS, values, strict=True):
                    found[metric].setdefault(name, []).append(value)
    columns = {metric: {name: torch.cat(v) for name, v in of.items()} for metric, of in found.items()}
    cells = [
        f"{v.nanmean():.{digits}f}" for metric, digits in METRICS.items() for v in columns[metric].values()
    ]
    lpips = columns["LPIPS"]
    better = (lpips["output corrected"] < lpips["bicubic corrected"]).float().mean()
    return [side, entry_side(model, side), *cells, f"{better:.0%}"]


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="celeba-hq-16to128")
    parser.add_argument("--pairs", type=int, default=64, help="validation pairs, evenly spread")
    parser.add_argument("--pack", help="insightface pack of ISC")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    known = parser.parse_args(args)
    model = RPFModel.from_pretrained(known.model)
    if not all(model.lr_size <= side < model.size for side in known.sides):
        parser.error(f"--sides: expected {model.lr_size} to {model.size - 1}, got {known.sides}")
    batches = measure.validation_batches(known.prepared, model, known.pairs)
    perceptual, identity = LPIPS(), ArcFace(known.pack)
    print(measure.heading())
    print(f"\n{known.model}, {sum(len(b.id) for b in batches)} pairs", end="\n\n")
    names = [f"{metric}: {name}" for metric in METRICS for name in NAMES]
    rows = [measured(model, batches, side, perceptual, identity) for side in known.sides]
    print(measure.markdown(["side", "entry", *names, "better"], rows))


if __name__ == "__main__":
    main()
