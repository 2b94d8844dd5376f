"""What a person looks at after preparing: the summary, a histogram of distances, a sheet of pairs."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.data.batches import Photo
from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.preparation import prepared_folder as tables
from rpf_lightning.data.preparation.annotating import Annotations
from rpf_lightning.data.preparation.sources import PICTURES
from rpf_lightning.data.sample import bicubic, landmark_fractions, make_face, reference_levels
from rpf_lightning.data.thin_plate import tps_flow, warp
from rpf_lightning.drawing import Cell, Row, cell, draw_rows
from rpf_lightning.files import write_atomically
from rpf_lightning.pictures import png

HISTOGRAM, SHEET = PICTURES
ROWS = 10
TILE = 128


def draw(out: Path, root: Path, faces: Annotations, splits: Mapping[str, Sequence[Pair]]) -> None:
    """Draw `distances.png` and `contact_sheet.png`, from photos in `root`; without a pair there is nothing to draw."""
    nearest = {
        name: [next(of_one) for _, of_one in groupby(pairs, lambda pair: pair.gt)]
        for name, pairs in splits.items()
    }
    pairs = sorted({pair for part in nearest.values() for pair in part}, key=lambda pair: pair.distance)
    if not pairs:
        return
    write_atomically(out / HISTOGRAM, _histogram({k: [p.distance for p in v] for k, v in nearest.items()}))
    # from the nearest to the farthest pair, which is where something would look wrong
    rows = min(ROWS, len(pairs))
    shown = [pairs[i * (len(pairs) - 1) // max(rows - 1, 1)] for i in range(rows)]
    write_atomically(out / SHEET, _sheet(out, root, faces, shown))


def _histogram(distances: Mapping[str, Sequence[float]]) -> bytes:
    """Draw the distances of the nearest pairs, in % of the side."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in distances.items():
        if values:
            percent = 100 * np.array(values)
            label = f"{name}: {len(values):,} pairs, median {np.median(percent):.1f} %"
            axes.hist(percent, bins=60, range=(0, 15), histtype="step", label=label)
    axes.set_xlabel("mean L1 distance of the 68 landmarks of GT and nearest reference, % of the side")
    axes.set_ylabel("pairs")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _sheet(out: Path, root: Path, faces: Annotations, pairs: Sequence[Pair]) -> bytes:
    """Draw a row per pair: GT, GT in its mask, reference, masked reference, its thin-plate warp."""
    masks = tables.read_array(out / tables.MASKS)
    rows = []
    for pair in pairs:
        gt, reference = (_photo(root, faces, index, masks[index]) for index in pair[:2])
        face = make_face(gt, lr_size=TILE // 2, size=2 * TILE, side=TILE)
        levels = reference_levels(reference, 2 * TILE, (TILE, 2 * TILE))
        flow = tps_flow(landmark_fractions(gt), landmark_fractions(reference), 2 * TILE)
        small = Image.fromarray(reference.image).resize((TILE, TILE), Image.Resampling.BICUBIC)
        cells = {
            "GT": cell(face.gt),
            "GT in its mask": cell(face.gt * face.gt_mask),
            "reference": Cell(np.asarray(small)),
            "masked reference": cell(levels[TILE].image),
            "TPS warp": cell(bicubic(warp(levels[2 * TILE].image[None], flow), TILE)[0]),
        }
        rows.append(
            Row(f"{gt.identity}: {gt.id}, reference {reference.id}, {100 * pair.distance:.2f} %", cells)
        )
    return png(draw_rows(rows)[0])


def _photo(root: Path, faces: Annotations, index: int, mask: NDArray[np.uint8]) -> Photo:
    name = faces.files[index]
    path = tables.find_file(root, name)
    if path is None:
        raise FileNotFoundError(f"{root / name}: is missing now")
    landmarks = faces.stored["landmarks"][index]
    return Photo(name, faces.identities[index], read_photo(path), landmarks, tables.unpack_mask(mask))


def lines(
    out: Path, summary: Mapping[str, Any], rejected: Mapping[str, str], leaks: Sequence[tuple[str, str]]
) -> list[str]:
    """Say what was made, what was rejected and why."""
    counts = summary["counts"]
    twins = counts["near_duplicates"]
    text = [
        f"{counts['kept']:,} of {counts['photos']:,} photos kept, {counts['rejected']:,} rejected, "
        f"{counts['listed_without_use']:,} other files or names (rejected.csv)",
        *(
            f"  {reason}: {times:,}"
            for reason, times in Counter(map(_kind, rejected.values())).most_common(6)
        ),
        f"{counts['identities']:,} people, {counts['identities_with_one_photo']:,} of them with one photo; "
        f"{counts['without_identity']:,} photos of unknown people",
        f"near-duplicates: {twins['one_identity']} pairs of one person, no references of each other; "
        f"{twins['two_identities']} carry two names, leaks where a split separates them (duplicates.csv)",
        *(f"  leak: {a} and {b}" for a, b in leaks[:20]),
    ]
    for name, count in counts["pairs"].items():
        text.append(
            f"pairs_{name}: {count:,} pairs ({counts['pairs_with_duplicates'][name]:,} without the duplicate rule, "
            f"which changes the references of {counts['changed_by_the_rule'][name]:,} GTs)"
        )
    drawn = [str(out / name) for name in (SHEET, HISTOGRAM) if (out / name).is_file()]
    return [*text, f"sha256 {summary['sha256']}", *([f"look at {' and '.join(drawn)}"] if drawn else [])]


def _kind(reason: str) -> str:
    """Shorten a reason so that equal ones can be counted: without the file that it begins with."""
    path, separator, rest = reason.partition(": ")
    text = rest if separator and ("/" in path or "\\" in path) else reason
    return text if len(text) <= 100 else f"{text[:97]}..."
