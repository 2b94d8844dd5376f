"""How much of the reference arrives: models on fixed validation pairs, at the output of the block of one side.

    python benchmarks/gate.py PREPARED --models celeba-hq-16to128 --landmark-model onnx:pfld.onnx --out shipped.json
    python benchmarks/gate.py PREPARED --models runs/new --landmark-model onnx:pfld.onnx --against shipped.json
    python benchmarks/gate.py PREPARED --models runs/new --references 3

The split is that of a fit with the default `val_fraction` and `seed`; the pairs are evenly spread. GTs are the photos
reduced to `--side` in one step. All metrics compare with them at that side: ISC by ArcFace, which enlarges small
images, the same by a second recogniser (`dlib_recogniser.py`: cosine around the mean descriptor of training people),
PSNR, PSNR inside the face, LPIPS, mean distance of 68 landmarks in percent of the side (failed: no face was found).

- `- wrong`: own minus another validation person's reference, the photo with the nearest landmarks, whose pose is no
  worse; `- random`: minus a random other person's. `PSNR face wrong` and `random` are what these two reach.
- `ISC none`: without a reference: none of a model with `synthesis_copy` is there, others see the enlarged LR instead.
- `share`: of the way from the bicubic enlargement to another photo of the person (its nearest, unmasked).
- `gate`: mean of the gate inside the face, of models that have one.
- `flow error`: distance to the thin-plate flow inside the face, in pixels of the side; behind it that of no flow.

`--references K`: instead of all this, GTs of people who have K other photos, given the nearest of them, one drawn from
all others, and, by models with `synthesis_copy`, the K nearest at once. `--entry 32`: the LR has 32 pixels and enters
at block 2. References are rounded to 8 bits. `--out` keeps the values of each image. Differences are of the same
images; their 95 % intervals draw people, with all images of each. `--cache` keeps what does not depend on the model.
AlexNet's and ArcFace's weights are needed, and dlib (docs/weights.md).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dlib_recogniser
import gate_samples
import measure
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rpf_lightning import ReferencePairsDataModule, RPFModel
from rpf_lightning.data.dataset import fingerprint
from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.faces.landmarks import landmark_model
from rpf_lightning.faces.weights import insightface_pack
from rpf_lightning.files import write_atomically
from rpf_lightning.metrics import LPIPS, end_point_error, psnr, psnr_face
from rpf_lightning.metrics.face_networks import distance_between, find_landmarks, similarity
from rpf_lightning.model.resize import resize

Values = dict[str, list[float]]  # metric -> a value per image
METRICS = {
    "isc": ("ISC", 3), "second": ("second", 3), "isc_gain": ("ISC - wrong", 3), "second_gain": ("second - wrong", 3),
    "isc_gain_random": ("ISC - random", 3), "isc_none": ("ISC none", 3), "psnr": ("PSNR", 2),
    "psnr_face": ("PSNR face", 2), "psnr_face_wrong": ("PSNR face wrong", 2),
    "psnr_face_random": ("PSNR face random", 2), "lpips": ("LPIPS", 3), "landmarks": ("landmarks", 2),
    "gate": ("gate", 2), "flow_error": ("flow error", 2), "no_flow_error": ("of no flow", 2),
}  # fmt: skip
BICUBIC, MASKED, PHOTO = "bicubic", "the masked reference itself", "another photo of the person"
MEAN_OF = 300  # people for the second recogniser's mean
BATCH = 8
RESAMPLES = 2000


class Judge:
    """Compares images with GTs; what it saw in the GTs it keeps.

    Args:
        pack: insightface pack of ISC.
        landmarks: See `landmark_model`; None: no landmarks are looked for.
        given: See `gate_samples.samples`, with the second recogniser's "mean".
    """

    def __init__(self, pack: str | None, landmarks: str | None, given: dict[str, Any]) -> None:
        second = dlib_recogniser.CentredRecogniser(given["mean"])
        self.identities = {"isc": ArcFace(pack), "second": second}
        self.landmarks = None if landmarks is None else landmark_model(landmarks, pack=pack)
        self.lpips = LPIPS()
        self.gt, self.gt_mask = given["gt"], given["gt_mask"]
        self.features: dict[str, Tensor] = {}
        self.found: list[NDArray[np.float64] | None] = []

    def identity(self, name: str, images: Tensor) -> Tensor:
        """Similarity of images (N, 3, S, S) with the GTs by one of the recognisers: (N,)."""
        if name not in self.features:
            self.features[name] = batched(self.identities[name], self.gt)
        return similarity(batched(self.identities[name], images), self.features[name])

    def values(self, images: Tensor) -> Values:
        """Compare images (N, 3, S, S) in [0, 1]."""
        found = {name: self.identity(name, images) for name in self.identities}
        found["psnr"] = psnr(images, self.gt)
        found["psnr_face"] = psnr_face(images, self.gt, self.gt_mask)
        found["lpips"] = batched(self.lpips.measure, images, self.gt)
        if self.landmarks is not None:
            self.found = self.found or find_landmarks(self.gt, self.landmarks)
            seen = find_landmarks(images, self.landmarks)
            found["landmarks"] = distance_between(seen, self.found, images.shape[-1])
        return {name: value.tolist() for name, value in found.items()}


def batched(function: Any, *images: Tensor) -> Tensor:
    """Apply a function to a few images at a time."""
    parts = zip(*(image.split(BATCH) for image in images), strict=True)
    return torch.cat([function(*part) for part in parts])


def reconstruct(
    model: RPFModel, given: dict[str, Any], chosen: list[int] | None, side: int
) -> tuple[Tensor, Values]:
    """Output of the block of a side (N, 3, side, side), and what that block says about itself.

    Args:
        model: The model.
        given: See `gate_samples.samples`.
        chosen: Which references; None: none.
        side: S.
    """
    images, records = [], []
    for start in range(0, len(given["ids"]), BATCH):
        part = slice(start, start + BATCH)
        lr, reference, mask = given["lr"][part], given["references"][part], given["masks"][part]
        if chosen is not None:
            one = chosen[0] if len(chosen) == 1 else chosen
            arguments = (reference[:, one].float() / 255, mask[:, one].float())
        else:
            arguments = (None, None)
        output, blocks = model(lr, *arguments, return_intermediates=True, size=side)
        images.append(output)
        records.append(blocks[-1])
    found: Values = {}
    inside = given["gt_mask"]
    if records[0].gate is not None:
        gate = torch.cat([record.gate for record in records])
        found["gate"] = ((gate * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))).tolist()
    if chosen == [0]:
        flow, goal = torch.cat([record.flow for record in records]), given["flow"]
        found["flow_error"] = end_point_error(flow, goal, inside).tolist()
        found["no_flow_error"] = end_point_error(torch.zeros_like(goal), goal, inside).tolist()
    return torch.cat(images), found


def model_rows(
    model: RPFModel, given: dict[str, Any], rows: dict[str, list[int]], judge: Judge, side: int
) -> dict[str, Values]:
    """Measure a model: one row per kind of reference, or a single one, "", with all others."""
    if "wrong" not in rows:
        several = model.config.synthesis_copy
        found = {}
        for name, chosen in rows.items():
            if several or len(chosen) == 1:
                images, own = reconstruct(model, given, chosen, side)
                found[name] = judge.values(images) | own
        return found
    images, own = reconstruct(model, given, rows["own"], side)
    found = judge.values(images) | own
    for kind, end, names in (("wrong", "", judge.identities), ("random", "_random", ["isc"])):
        images, _ = reconstruct(model, given, rows[kind], side)
        for name in names:
            values = judge.identity(name, images).tolist()
            found[f"{name}_gain{end}"] = [a - b for a, b in zip(found[name], values, strict=True)]
        found[f"psnr_face_{kind}"] = psnr_face(images, judge.gt, judge.gt_mask).tolist()
    found["isc_none"] = judge.identity("isc", reconstruct(model, given, None, side)[0]).tolist()
    return {"": found}


def image_rows(given: dict[str, Any], judge: Judge, side: int) -> dict[str, Values]:
    """The rows that need no model."""
    photo, mask = given["references"][:, 0].float() / 255, given["masks"][:, 0].float()
    images = {BICUBIC: given["lr"], MASKED: photo * mask, PHOTO: photo}
    return {
        name: judge.values(batched(lambda x: resize(x, side), x).clamp(0, 1)) for name, x in images.items()
    }


def mean(values: Sequence[float]) -> float:
    """Mean of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def table(rows: dict[str, Values]) -> str:
    """Means of all rows: Markdown."""
    columns = [key for key in METRICS if any(key in values for values in rows.values())]
    means = {
        name: {key: mean(values[key]) if key in values else math.nan for key in columns}
        for name, values in rows.items()
    }
    lines = []
    for name, of in means.items():
        cells = ["" if math.isnan(of[key]) else f"{of[key]:.{METRICS[key][1]}f}" for key in columns]
        for key in ("isc", "second"):
            low, high = means[BICUBIC][key], means[PHOTO][key]
            cells.append(f"{(of[key] - low) / (high - low) + 0.0:.0%}")  # no -0%
        if "landmarks" in columns:
            cells.append(f"{np.isnan(rows[name]['landmarks']).mean():.0%}")
        lines.append([name, *cells])
    failed = ["failed"] if "landmarks" in columns else []
    return measure.markdown(
        ["", *(METRICS[key][0] for key in columns), "ISC share", "second share", *failed], lines
    )


def difference(
    values: Sequence[float | None], others: Sequence[float | None], people: Sequence[str]
) -> tuple[float, float, float]:
    """Mean difference of the same images, and the ends of its 95 % interval over draws of people."""
    change = np.array(values, np.float64) - np.array(others, np.float64)
    there = ~np.isnan(change)
    names, place = np.unique(np.array(people)[there], return_inverse=True)
    if not len(names):
        return (math.nan,) * 3
    sums, counts = np.bincount(place, change[there]), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(change[there].mean()), float(low), float(high)


def differences(rows: dict[str, Values], other: Values, people: Sequence[str]) -> str:
    """Rows minus another one: Markdown."""
    columns = [key for key in METRICS if key in other and any(key in values for values in rows.values())]
    lines = []
    for name, values in rows.items():
        cells = []
        for key in columns:
            digits = METRICS[key][1]
            change = difference(values[key], other[key], people) if key in values else ()
            numbers = [f"{number:+.{digits}f}" for number in change]
            cells.append(f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if numbers else "")
        lines.append([name, *cells])
    return measure.markdown(["difference", *(METRICS[key][0] for key in columns)], lines)


def options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, RPFModel]]:
    """Read the command line and the models; what does not fit is refused before anything is measured."""
    parser = measure.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["celeba-hq-16to128"], metavar="MODEL")
    parser.add_argument("--side", type=int, default=64, help="the block whose output is looked at")
    parser.add_argument("--entry", type=int, help="side of the LR; the models' own unless given")
    parser.add_argument("--pairs", type=int, default=128, help="validation pairs, evenly spread")
    parser.add_argument("--references", type=int, metavar="K", help="compare 1 with K references")
    parser.add_argument("--pack", help="insightface pack of ISC")
    parser.add_argument("--landmark-model", help="face-alignment, or onnx:PATH; no landmarks unless given")
    parser.add_argument("--cache", type=Path, help="folder for what does not depend on the model")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--against", type=Path, metavar="FILE.json", help="what another run has written")
    known = parser.parse_args(arguments)
    if known.references is not None and known.references < 2:
        parser.error(f"--references: expected at least 2, got {known.references}")
    models = {name: RPFModel.from_pretrained(name) for name in known.models}
    first = next(iter(models.values()))
    if len({(model.lr_size, model.size) for model in models.values()}) > 1:
        parser.error("--models: expected one lr_size and one scale; compare others by --against")
    known.entry = known.entry or first.lr_size
    if not (known.side in first.sides and known.entry in (first.lr_size, *first.sides)):
        sides = ", ".join(map(str, (first.lr_size, *first.sides)))
        parser.error(f"--entry, --side: expected two of {sides}, got {known.entry} and {known.side}")
    if known.entry >= known.side:
        parser.error(f"--entry: expected a side below --side {known.side}, got {known.entry}")
    known.against = None if known.against is None else (known.against, json.loads(known.against.read_text()))
    return known, models


def prepare(known: argparse.Namespace, model: RPFModel) -> tuple[dict[str, Any], dict[str, list[int]], Judge]:
    """What does not depend on the models, from the cache if it is there.

    Returns:
        See `gate_samples.samples`, with "rows" of the images that need no model and "protocol", a hash of all that
        values depend on but the models; the kinds of references; the judge.

    Raises:
        ValueError: If `--against` was measured otherwise.
    """
    data = ReferencePairsDataModule(
        known.prepared, lr_size=model.lr_size, size=model.size,
        limit_val=None if known.references else known.pairs,
    )  # fmt: skip
    several = known.references
    pairs, kinds = (
        gate_samples.several_pairs(data, several, known.pairs)
        if several
        else gate_samples.default_pairs(data)
    )
    photos = data.prepared()
    trained = dlib_recogniser.one_photo_each(photos, data.split_pairs().train, MEAN_OF)
    landmarks = known.landmark_model and Path(known.landmark_model).name
    protocol = fingerprint(
        photos.sha256, [[pair[:2] for pair in of] for of in pairs], trained, known.entry, known.side,
        insightface_pack(known.pack).name, landmarks,
    )  # fmt: skip
    if known.against is not None and known.against[1]["protocol"] != protocol:
        raise ValueError(
            f"--against: {known.against[0]} was measured on other pairs or sides, or with other networks"
        )
    file = known.cache and known.cache / f"{fingerprint(protocol, model.size)[:16]}.pt"
    if file is not None and file.is_file():
        given = torch.load(file, weights_only=True)
        judge = Judge(known.pack, known.landmark_model, given)
        judge.found = [
            None if points[0][0] != points[0][0] else np.array(points) for points in given["found"]
        ]
        judge.features = given["features"]
    else:
        given = gate_samples.samples(photos, pairs, known.entry, model.size, known.side)
        given["mean"] = dlib_recogniser.mean_descriptor(photos, trained, known.side)
        given["protocol"] = protocol
        judge = Judge(known.pack, known.landmark_model, given)
        given["rows"] = image_rows(given, judge, known.side)
        given["features"] = judge.features
        given["found"] = [[[math.nan]] if points is None else points.tolist() for points in judge.found]
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(given, file)
    return given, kinds, judge


def main(arguments: Sequence[str] | None = None) -> None:
    """Print Markdown, and write the values of all images where it is asked for."""
    known, models = options(arguments)
    rows: dict[str, Values] = {}
    with torch.inference_mode():
        given, kinds, judge = prepare(known, next(iter(models.values())))
        for name, model in models.items():
            for kind, values in model_rows(model, given, kinds, judge, known.side).items():
                rows[f"{name}, {kind}" if kind else name] = values
    people = given["people"]
    print(measure.heading())
    print(f"\n{len(people)} GTs of {len(set(people))} people, {known.entry} -> {known.side}", end="\n\n")
    print(table(given["rows"] | rows))
    if known.out is not None:
        known.out.parent.mkdir(parents=True, exist_ok=True)
        content = {key: given[key] for key in ("protocol", "ids", "people")}
        content["rows"] = {
            name: {key: [None if math.isnan(v) else v for v in of] for key, of in values.items()}
            for name, values in (given["rows"] | rows).items()
        }
        write_atomically(known.out, json.dumps(content, allow_nan=False).encode())
    base, *rest = rows
    if rest:
        print(f"\nTo {base}, intervals by people", end="\n\n")
        print(differences({name: rows[name] for name in rest}, rows[base], people))
    if known.against is not None:
        file, other = known.against
        for name in [name for name in other["rows"] if name not in given["rows"]]:
            print(f"\nTo {name} of {file}, intervals by people", end="\n\n")
            print(differences(rows, other["rows"][name], people))


if __name__ == "__main__":
    main()
