"""What the loss terms do to an image, and what rounding x^(n) does to a model's output: no times, numbers only.

    python benchmarks/gradients.py PREPARED                   # real AlexNet and ArcFace (docs/weights.md)
    python benchmarks/gradients.py PREPARED --model DIR       # and the rounding, for a model of two blocks or more

The first table gives the norm of each term's gradient at the image, all weights 1, relative to that of mean L1
(eq. 6 to 9): of bicubically enlarged LRs against their GTs, at the side of every block. The second compares a model's
last block fed with x^(n) and with x^(n) rounded to 8 bit, as the cache of a fit keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator

import measure
import torch
from torch import Tensor

from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import collate
from rpf_lightning.losses import IdentityLoss, PerceptualLoss, generator_loss, masked_l1
from rpf_lightning.metrics import psnr
from rpf_lightning.model import Critic, RPFModel
from rpf_lightning.model.resize import resize
from rpf_lightning.stages.gradients import gradient_norms

LR = 16


def batches(
    root: str, side: int, count: int, batch: int, size: int | None = None
) -> Iterator[ReferenceBatch]:
    """Validation pairs at a level."""
    data = ReferencePairsDataModule(root, lr_size=LR, size=size or side, side=side, limit_val=count)
    samples = data.val_dataset(side=side)
    for start in range(0, len(samples), batch):
        yield collate([samples[i] for i in range(start, min(start + batch, len(samples)))])


def terms_table(root: str, sides: list[int], count: int, batch: int) -> list[str]:
    """Relative gradient norms, smallest to largest over the batches."""
    perceptual, identity = PerceptualLoss(), IdentityLoss()
    rows: list[list[object]] = []
    for side in sides:
        torch.manual_seed(0)
        critic = Critic(side)  # untrained: how strongly it pulls is what the penalty will make of it
        found: list[dict[str, Tensor]] = []
        for given in batches(root, side, count, batch):
            image = resize(given.lr, side).requires_grad_()
            terms = {
                "reconstruction": masked_l1(image, given.gt),
                "perceptual": perceptual(image, given.gt),
                "identity": identity(image, given.gt),
                "adversarial": generator_loss(critic(image)),
            }
            found.append(gradient_norms(terms, image))
        columns = {name: [norms[name].item() for norms in found] for name in found[0]}
        first, *others = (f"{min(values):.3g} to {max(values):.3g}" for values in columns.values())
        rows.append([side, first, *others])
    head = ["side", "L1, norm", "perceptual / L1", "identity / L1", "adversarial / L1 (critic untrained)"]
    return [f"{count} pairs in batches of {batch}, ArcFace {identity.arcface.pack}/{identity.arcface.file}.", "",
            measure.markdown(head, rows)]  # fmt: skip


def rounding(root: str, directory: str, count: int, batch: int) -> list[str]:
    """What 8 bit cost."""
    model = RPFModel.from_pretrained(directory)
    n = len(model.blocks)
    changes, between = [], []
    with torch.no_grad():
        for given in batches(root, model.size, count, batch, model.size):
            x, _ = model.prefix(given.lr, given.reference, n)
            exact, rounded = (
                model.blocks[n - 1](y, given.reference).output.clamp(0, 1)
                for y in (x, (x * 255).round() / 255)
            )
            changes.append((psnr(exact, given.gt) - psnr(rounded, given.gt)).abs())
            between.append(psnr(rounded, exact))
    return [
        f"x^({n}) in 8 bit, {count} pairs at side {model.size}: PSNR to the GT changes by at most "
        f"{torch.cat(changes).max():.4f} dB; outputs with and without differ by {torch.cat(between).mean():.1f} dB."
    ]


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", help="a model directory")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    known = parser.parse_args(args)
    print(
        measure.heading(), "", *terms_table(known.prepared, known.sides, known.pairs, known.batch), sep="\n"
    )
    if known.model:
        print("", *rounding(known.prepared, known.model, known.pairs, known.batch), sep="\n")


if __name__ == "__main__":
    main()
