"""Pictures of an evaluation: the grid of what a model does, and contact sheets of the best and worst results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import Dataset

from rpf_lightning.evaluation.methods import Method, up_to
from rpf_lightning.evaluation.records import ENLARGED_LR, EvaluationBatch, collate
from rpf_lightning.model.resize import resize
from rpf_lightning.model.rpf import RPFModel
from rpf_lightning.pictures import to_uint8

PICTURE_TITLES = ("LR (nearest)", "bicubic", "aligned reference", "synthesized", "output", "GT")
"""Columns of the grid; the reference comes last, under `reference_title`."""
SHEETS = ("worst", "median", "best")
CELL = 256  # side of a picture
GAP = 8
TEXT = 26  # height of a line of text


class PictureRow(NamedTuple):
    """One face of a grid.

    Attributes:
        caption: Names of the photos.
        titles: Of the pictures, the same for all rows.
        pictures: One per title, of side `CELL`: enlarged, or reduced, at once, so that large faces do not pile
            up.
    """

    caption: str
    titles: Sequence[str]
    pictures: Sequence[Image.Image]


def reference_title(sample: EvaluationBatch) -> str:
    """Say what the reference of a sample or a batch is."""
    if ENLARGED_LR in (sample.reference_id, sample.reference_id[0]):
        return f"reference ({ENLARGED_LR})"
    return "reference (masked)" if sample.masked else "reference (unmasked)"


def picture_row(model: RPFModel, sample: EvaluationBatch) -> PictureRow:
    """Run the model on one sample and collect what the grid shows.

    Args:
        model: The model; it computes where it is.
        sample: One sample at the side where the model stops, without batch dimension.

    Returns:
        The pictures of `PICTURE_TITLES` and the reference; the aligned reference and the synthesized image are
        those of the last block. The LR is enlarged without interpolation, the others with Lanczos.
    """
    device = next(model.parameters()).device
    lr, reference = sample.lr[None].to(device), sample.reference[None].to(device)
    with torch.inference_mode():
        size = reference.shape[-1]
        output, blocks = model(lr, return_intermediates=True, **up_to(model, reference, size))
        last = blocks[-1]
        bicubic = resize(lr, size)
        images = (lr, bicubic, last.aligned, last.synthesized, output, sample.gt[None], reference)
        pictures = [_picture(image, nearest=image is lr) for image in images]
    titles = (*PICTURE_TITLES, reference_title(sample))
    return PictureRow(f"{sample.id}, reference {sample.reference_id}", titles, pictures)


def chosen_places(
    results: Mapping[str, Any], subject: str, wanted: int
) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Choose the images of the contact sheets.

    Args:
        results: The dictionary of `compare`.
        subject: The method whose values decide.
        wanted: Images per sheet; with 0 all sheets are empty.

    Returns:
        The metric that decides, LPIPS or else PSNR; for each of `SHEETS` the images' places and values, the
        worst or best first. Images without a value are on none.
    """
    rows = [row["metrics"][subject] for row in results["per_image"]]
    metric = "lpips" if "lpips" in rows[0] else "psnr"
    values = [(row[metric], place) for place, row in enumerate(rows) if row[metric] is not None]
    order = [(place, value) for value, place in sorted(values, reverse=metric == "lpips")]  # the worst first
    start = max(0, (len(order) - wanted) // 2)
    return metric, {
        "worst": order[:wanted],
        "median": order[start : start + wanted],
        "best": order[::-1][:wanted],
    }


def draw_sheet(
    methods: Sequence[Method],
    dataset: Dataset[EvaluationBatch],
    places: Sequence[tuple[int, float]],
    metric: str,
    device: torch.device,
) -> Image.Image:
    """Draw the LR, every method's output, the GT and the reference of some images.

    Args:
        methods: On `device`.
        dataset: What they were compared on.
        places: Places of the images and the values that are printed; at least one.
        metric: Name of the values.
        device: Where to compute.

    Returns:
        An RGB picture. A method has an empty cell where it has no image.
    """
    rows = []
    for place, value in places:
        batch = collate([dataset[place]]).to(device)
        with torch.inference_mode():
            pictures = [_picture(batch.lr, nearest=True)]
            for method in methods:
                output = method(batch)
                fault = method.fault(batch.id[0])
                empty = fault is not None and fault.fatal
                pictures.append(Image.new("RGB", (CELL, CELL), "white") if empty else _picture(output))
            pictures += [_picture(batch.gt), _picture(batch.reference)]
        titles = ("LR (nearest)", *(method.name for method in methods), "GT", reference_title(batch))
        rows.append(PictureRow(f"{batch.id[0]}: {metric} {value:.4g}", titles, pictures))
    return draw_grid(rows)


def draw_grid(rows: Sequence[PictureRow]) -> Image.Image:
    """Draw one row per face under titled columns, on white.

    Args:
        rows: The faces, at least one.

    Returns:
        An RGB picture.
    """
    titles = rows[0].titles
    width = len(titles) * (CELL + GAP) + GAP
    row_height = TEXT + CELL + GAP
    grid = Image.new("RGB", (width, GAP + TEXT + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(grid)
    title_font, caption_font = ImageFont.load_default(20), ImageFont.load_default(15)
    for column, title in enumerate(titles):
        x = GAP + column * (CELL + GAP) + CELL // 2
        draw.text((x, GAP + TEXT // 2), title, fill="black", font=title_font, anchor="mm")
    for number, row in enumerate(rows):
        y = GAP + TEXT + number * row_height
        draw.text((GAP, y + TEXT // 2), row.caption, fill="dimgray", font=caption_font, anchor="lm")
        for column, picture in enumerate(row.pictures):
            grid.paste(picture, (GAP + column * (CELL + GAP), y + TEXT))
    return grid


def _picture(image: Tensor, nearest: bool = False) -> Image.Image:
    filtering = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return Image.fromarray(to_uint8(image[0])).resize((CELL, CELL), filtering)
