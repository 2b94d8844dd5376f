"""Makes and measures the classifiers of `faces/glasses.py`, from photos and their hand-made parsing maps.

   python benchmarks/glasses.py IMAGES LABELS IDENTITIES.csv --out src/rpf_lightning/faces/glasses.npz

IMAGES are aligned, NAME.jpg; LABELS/NAME.png are in CelebAMask-HQ's order; IDENTITIES.csv has the columns file and
identity. Glasses are those around the eyes; dark are those behind which no eye is labelled, or where the places of the
eyes have less than 0.4 of the skin's brightness. Training adds photos that are shifted, turned and mirrored a little.

The table is measured in five folds of people. The limits: 3 % of the faces without glasses are taken for faces with,
and 12 % of those with clear glasses for such with dark ones.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from rpf_lightning.faces.glasses import SIDES, features, reduced
from rpf_lightning.faces.labels import CELEBAMASK_HQ
from rpf_lightning.files import write_atomically

WRONG = {"any": 0.03, "dark": 0.12}
FOLDS, COPIES, DECAY = 5, 3, 0.01
PLACES = ((slice(57, 65), slice(41, 56)), (slice(57, 65), slice(72, 87)))  # of the eyes, of 128 pixels
BAND = (slice(46, 79), slice(24, 104))
Features = NDArray[np.float32]


def main() -> None:
    """Read, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "labels", "identities", "--out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    with given.identities.open(newline="", encoding="utf-8") as file:
        people = {row["file"]: row["identity"] or row["file"] for row in csv.DictReader(file)}
    names = sorted(name for name in people if (given.labels / name).with_suffix(".png").is_file())
    numbers: dict[str, int] = {}
    person = np.array([numbers.setdefault(people[name], len(numbers)) for name in names])
    fold = np.random.default_rng(0).integers(0, FOLDS, len(numbers))[person]
    photos, wears = [], []
    for name in track(names, "reading"):
        photo = np.asarray(
            Image.open(given.images / name).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
        )
        labels = Image.open((given.labels / name).with_suffix(".png")).resize(
            (128, 128), Image.Resampling.NEAREST
        )
        photos.append(photo)
        wears.append(worn(photo, np.asarray(labels)))
    truth = np.array(wears)
    print(f"{len(names)} photos, glasses {truth[:, 0].sum()}, of them dark {truth[:, 1].sum()}\n")
    print("| side | glasses | without, taken for it | found: clear | dark |\n|---:|---|---:|---:|---:|")
    stored: dict[str, Features] = {}
    for side in SIDES:
        rng = np.random.default_rng(side)
        copies = [
            features([reduced(photo if copy == 0 else moved(photo, rng), side) for photo in photos])
            for copy in range(COPIES)
        ]
        weights, biases = [], []
        for place, (kind, wrong) in enumerate(WRONG.items()):
            scores = np.zeros(len(names))
            for held in range(FOLDS):
                weight, bias = fit([copy[fold != held] for copy in copies], truth[fold != held, place])
                scores[fold == held] = copies[0][fold == held] @ weight + bias
            clear, dark = truth[:, 0] & ~truth[:, 1], truth[:, 1]
            limit = np.quantile(scores[~truth[:, 0] if kind == "any" else clear], 1 - wrong)
            shares = " | ".join(f"{(scores[of] > limit).mean():.1%}" for of in (~truth[:, 0], clear, dark))
            print(f"| {side} | {kind} | {shares} |")
            weight, bias = fit(copies, truth[:, place])
            weights.append(weight)
            biases.append(bias - limit)
        stored |= {f"weight{side}": np.stack(weights), f"bias{side}": np.array(biases, np.float32)}
    if given.out:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            **{
                name: array.astype(np.float16 if array.ndim == 2 else np.float32)
                for name, array in stored.items()
            },
        )
        write_atomically(given.out, buffer.getvalue())


def worn(photo: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[bool, bool]:
    """Whether a face wears glasses, and dark ones, by its parsing map: both 128 pixels."""
    named = {name: labels == value for value, name in enumerate(CELEBAMASK_HQ)}
    if named["eye_g"][BAND].mean() <= 0.02:
        return False, False
    light = photo @ np.array([0.299, 0.587, 0.114])
    at_eyes = np.mean([np.median(light[place]) for place in PLACES]) / np.median(light[named["skin"]])
    return True, bool(at_eyes < 0.4 or not (named["l_eye"] | named["r_eye"])[BAND].any())


def moved(photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A face as another detector might align it, or its mirror image."""
    angle, scale, (x, y) = rng.normal(0, 0.03), np.exp(rng.normal(0, 0.03)), rng.normal(0, 1.5, 2)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    data = (cos, -sin, 64 - 64 * (cos - sin) + x, sin, cos, 64 - 64 * (cos + sin) + y)
    image = Image.fromarray(photo).transform(
        (128, 128), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(image)[:, :: rng.choice((-1, 1))]


def fit(copies: list[Features], wears: NDArray[np.bool_]) -> tuple[Features, float]:
    """Logistic regression of standardised features with weight decay; returns weights and bias of the features."""
    seen = np.concatenate(copies)
    mean, deviation = seen.mean(0), seen.std(0) + 1e-3
    x = torch.from_numpy((seen - mean) / deviation)
    wanted = torch.from_numpy(np.tile(wears, len(copies)).astype(np.float32))
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight + bias, wanted) + DECAY * (weight**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    own = weight.detach().numpy() / deviation
    return own, float(bias.detach()) - float(own @ mean)


if __name__ == "__main__":
    main()
