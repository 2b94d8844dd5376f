"""The paper's figures of pictures, each one call or `rpf figure NAME` (paper IV, Figs. 1, 7 and 9 to 13).

Every function writes one PNG, whole or not at all, and returns what it printed: a `FigureRow` for each row. The
photos are validation pairs, evenly spread. The same call gives the same bytes. Models that are loaded from
directories compute where `model` does. Arguments and errors that a function does not explain are those of
`figure_comparison`.

Where `data` put the enlarged LR in place of references (``reference="lr"``), so do the figures; those about photos
of references, `figure_thin_plate`, `figure_references` and `figure_mask`, raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rpf_lightning.data import Degradation, PairsDataModule, ReferenceBatch
from rpf_lightning.data.dataset import collate
from rpf_lightning.data.degradation import (
    DPSR_NOISE,
    DPSR_SIGMA,
    REALISTIC_NOISE,
    REALISTIC_QUALITY,
    REALISTIC_SIGMA,
)
from rpf_lightning.data.pairs_datamodule import SOURCE
from rpf_lightning.data.thin_plate import warp
from rpf_lightning.drawing import Cell, FigureRow, Row, cell, write_figure
from rpf_lightning.evaluation.building import Given, method_of
from rpf_lightning.evaluation.evaluation_batch import collate as stacked
from rpf_lightning.evaluation.methods import Bicubic, Model
from rpf_lightning.evaluation.subjects import Figure, Network, blocks_of, caption, load, naming
from rpf_lightning.metrics import ISC
from rpf_lightning.metrics.face_networks import Identity

DEFAULT = ("psnr", "ssim")
CANDIDATES = 32  # draws of a degradation, among which strengths are chosen


def figure_comparison(
    model: Network,
    data: PairsDataModule,
    out: str | Path,
    rows: int = 4,
    methods: Mapping[str, Given] | None = None,
    metrics: Sequence[str] = DEFAULT,
) -> list[FigureRow]:
    """Figs. 1 and 10: LR, bicubic, other methods, RPF, GT and the masked reference beside each other.

    Args:
        model: The model, or its directory.
        data: Where the validation pairs come from; sides that it leaves open become the model's.
        out: The PNG.
        rows: Photos.
        methods: Title -> another method, in the columns' order.
        metrics: What is printed under results: psnr, ssim, psnr_face, detail_error, lr_consistency.

    Raises:
        FileNotFoundError: If a model or a result is missing.
        ValueError: If an argument is not as described; the message begins with its name.
    """
    figure = Figure(model, data, out, rows, metrics)
    others = []
    for name, given in (methods or {}).items():
        with naming(f"methods: {name}"):
            others.append(method_of(name, given))
    shown = [Bicubic("bicubic"), *others, Model("RPF", figure.model)]
    if taken := {"LR", "bicubic", "RPF", "GT", "reference"} & {method.name for method in others}:
        raise ValueError(f"methods: {sorted(taken)[0]!r} is a column already; choose another name")
    figure.add(shown)
    lines = []
    for batch in figure.batches():
        cells = {method.name: figure.cell(figure.run(method, batch), batch) for method in shown}
        ends = {"GT": cell(batch.gt[0]), "reference": cell(batch.reference[0])}
        lines.append(Row(caption(batch), {"LR": cell(batch.lr[0]), **cells, **ends}))
    return write_figure(figure.out, lines)


def figure_intermediates(
    model: Network, data: PairsDataModule, out: str | Path, rows: int = 2, metrics: Sequence[str] = DEFAULT
) -> list[FigureRow]:
    """Fig. 7: input, masked reference, aligned, synthesized and refined image of every block; a row per block.

    Values compare with the GT of the block's side.
    """
    figure = Figure(model, data, out, rows, metrics)
    lines = []
    for place, batch in zip(figure.places, figure.batches(), strict=True):
        before, blocks = batch.lr, blocks_of(figure.model, batch)
        references = figure.model.encode_reference(batch.reference)
        for number, block in enumerate(blocks, 1):
            side = block.output.shape[-1]
            sample = data.val_dataset(side)[place]
            level = batch._replace(gt=sample.gt[None], mask=sample.gt_mask[None])
            cells = {"input": cell(before[0]), "reference": cell(references[number - 1][0])}
            cells["aligned"] = cell(block.aligned[0])
            cells["synthesized"] = figure.cell(block.synthesized, level)
            cells["refined"] = figure.cell(block.output, level)
            cells["GT"] = cell(level.gt[0])
            lines.append(Row(f"block {number}, {side} x {side}: {caption(batch)}", cells))
            before = block.output.clamp(0, 1)
    return write_figure(figure.out, lines)


def figure_thin_plate(
    model: Network | None, data: PairsDataModule, out: str | Path, rows: int = 4
) -> list[FigureRow]:
    """Fig. 9: GT, masked reference, its thin-plate warp with the GT's landmarks, and that laid over the GT.

    Printed is how far the reference's landmarks are from the GT's on average, in % of the side: as they are
    and where the flow looks for them.

    With a `model` a column shows what its last block has learned to warp; without one, `data` needs its sides.
    """
    figure = Figure(model, data, out, rows, of_references=True)
    dataset = data.val_dataset(warped=True)
    lines = []
    for place in figure.places:
        batch = collate([dataset[place]])
        assert batch.warped_reference is not None
        points, reference_points = batch.gt_landmarks[0], batch.reference_landmarks[0]
        inside = (warp(batch.reference_mask, batch.flow[0]) > 0.5).float()
        over = batch.gt * (1 - inside) + (batch.gt + batch.warped_reference) / 2 * inside
        cells = {
            "GT": cell(batch.gt[0], points=points),
            "reference": _apart_cell(batch.reference, torch.zeros_like(batch.flow), batch, reference_points),
            "TPS warp": _apart_cell(batch.warped_reference, batch.flow, batch, points),
            "TPS warp over GT": cell(over[0]),
        }
        if model is not None:
            block = blocks_of(figure.model, batch)[-1]
            cells["learned warp"] = _apart_cell(block.aligned, block.flow, batch)
        lines.append(Row(caption(batch), cells))
    return write_figure(figure.out, lines)


def figure_references(
    model: Network,
    data: PairsDataModule,
    out: str | Path,
    rows: int = 2,
    same: int = 3,
    others: int = 3,
    identity: Identity | None = None,
) -> list[FigureRow]:
    """Fig. 11: one LR with several references, of the same person and of other people.

    Two rows per photo: the references, and below each what it led to, with PSNR inside the face and, with an
    identity network, ISC (the cosine with the GT's features). Nearest landmarks first; every other person is
    another one.

    Shown are up to `same` references of the same person and `others` of other people of the validation part.
    `identity` are features such as those of `ArcFace()`. A ValueError also says that there is one person only.
    """
    for name, value in (("same", same), ("others", others)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    figure = Figure(model, data, out, rows, ("psnr_face",), of_references=True)
    if identity is not None:
        figure.metrics["isc"] = ISC(identity)
    rpf, lines = Model("RPF", figure.model), []
    for place, batch in zip(figure.places, figure.batches(), strict=True):
        gt = figure.pairs.base.pairs[place].gt
        pairs = {f"same person {n}": pair for n, pair in enumerate(figure.same_person(gt, same), 1)}
        pairs |= {f"other person {n}": pair for n, pair in enumerate(figure.other_people(gt, others), 1)}
        above, below = {"GT and LR": cell(batch.gt[0])}, {"GT and LR": cell(batch.lr[0])}
        samples = figure.pairs.like(pairs=list(pairs.values()))
        for number, title in enumerate(pairs):
            given = stacked([samples[number]])
            above[title] = cell(given.reference[0], str(given.reference_id[0]))
            below[title] = figure.cell(figure.run(rpf, given), given)
        lines += [Row(f"{batch.id[0]}: references", above), Row(f"{batch.id[0]}: outputs", below)]
    return write_figure(figure.out, lines)


def figure_mask(
    model: Network,
    data: PairsDataModule,
    out: str | Path,
    rows: int = 4,
    metrics: Sequence[str] = DEFAULT,
    unmasked_model: Network | None = None,
) -> list[FigureRow]:
    """Fig. 12: with and without the removal of the reference's non-facial region (eq. 1).

    `data`'s own `mask_reference` does not matter. `unmasked_model` is one that was trained without the removal
    (Table 2), for the second half; without it both halves are the same model's.
    """
    figure = Figure(model, data, out, rows, metrics, of_references=True)
    second = figure.model if unmasked_model is None else load("unmasked_model", unmasked_model)
    if second.size != figure.model.size:
        raise ValueError(f"unmasked_model: its side {second.size} is not the model's, {figure.model.size}")
    methods = (Model("with mask", figure.model), Model("without mask", second, "unmasked"))
    figure.add(methods)
    figure.pairs = figure.pairs.like(mask_reference=True)
    lines = []
    for batch in figure.batches():
        cells = {"LR": cell(batch.lr[0])}
        for name, method in zip(("masked", "unmasked"), methods, strict=True):
            cells[f"{name} reference"] = cell(method.reference(batch)[0])
            cells[f"output {method.name}"] = figure.cell(figure.run(method, batch), batch)
        lines.append(Row(caption(batch), {**cells, "GT": cell(batch.gt[0])}))
    return write_figure(figure.out, lines)


def figure_degradations(
    model: Network,
    data: PairsDataModule,
    out: str | Path,
    rows: int = 2,
    metrics: Sequence[str] = DEFAULT,
    strengths: int = 3,
    seed: int = 0,
) -> list[FigureRow]:
    """Fig. 13: LRs of several degradations and, below each, what the model makes of it.

    Of dpsr and realistic, 32 draws (seeds `seed` to `seed` + 31) are ordered from weak to strong for each photo, and
    evenly spread ones are shown, the weakest and the strongest among them; what was drawn stands under the LR.

    `data`'s own degradation does not matter. Where the enlarged LR stands for the reference, it is that of each
    degradation, and no reference is shown. `strengths` are shown of each kind, at most 32; a single one is of
    medium strength.
    """
    if not 1 <= strengths <= CANDIDATES:
        raise ValueError(f"strengths: expected 1 to {CANDIDATES}, got {strengths}")
    figure = Figure(model, data, out, rows, metrics)
    L, size, rpf, lines = figure.pairs.base.lr_size, figure.model.size, Model("RPF", figure.model), []
    for place, batch in zip(figure.places, figure.batches(), strict=True):
        name = str(batch.id[0])
        chosen = {"bicubic": Degradation("bicubic", L)}
        for kind in ("dpsr", "realistic"):
            drawn = [Degradation(kind, L, seed + n) for n in range(CANDIDATES)]
            drawn.sort(key=lambda degrade: _strength(degrade, name))
            step = (CANDIDATES - 1) / max(strengths - 1, 1)
            first = 0 if strengths > 1 else CANDIDATES // 2
            chosen |= {f"{kind} {n + 1}": drawn[first + round(n * step)] for n in range(strengths)}
        above, below = {"GT": cell(batch.gt[0])}, {}
        if data.reference == "photo":
            above = {"GT and reference": above["GT"]}
            below = {"GT and reference": cell(batch.reference[0], str(batch.reference_id[0]))}
        for title, degrade in chosen.items():
            source = min(SOURCE * L, size) if degrade.kind == "realistic" else None  # as a datamodule does it
            given = stacked([figure.pairs.like(degrade=degrade, source_side=source)[place]])
            above[title] = cell(given.lr[0], *_drawn(degrade, name))
            below[title] = figure.cell(figure.run(rpf, given), given)
        lines += [Row(f"{name}: LR", above), Row(f"{name}: outputs", below)]
    return write_figure(figure.out, lines)


def _apart_cell(image: Tensor, flow: Tensor, batch: ReferenceBatch, points: Tensor | None = None) -> Cell:
    """An image (1, 3, S, S), and the distance of where the flow looks for the landmarks to where they are."""
    at = 2 * batch.gt_landmarks[:, :, None] - 1
    moved = F.grid_sample(flow.float(), at, padding_mode="border", align_corners=False)[..., 0].mT
    distance = (batch.gt_landmarks + moved / flow.shape[-1] - batch.reference_landmarks).norm(dim=-1)
    off = float(100 * distance.mean())
    return cell(image[0], f"landmarks {off:.2f} % off", values={"landmarks": off}, points=points)


def _strength(degrade: Degradation, name: str) -> float:
    """How strong a draw is within its kind: shares of the ranges of blur, noise and JPEG, added up."""
    draw, realistic = degrade.draw(name), degrade.kind == "realistic"
    sigma, noise = (REALISTIC_SIGMA, REALISTIC_NOISE) if realistic else (DPSR_SIGMA, DPSR_NOISE)
    ranges = [(sum(draw.sigma) / 2, *sigma), (draw.delta, *noise)]
    if realistic:
        ranges.append((draw.quality, *REALISTIC_QUALITY[::-1]))
    return sum((value - weak) / (strong - weak) for value, weak, strong in ranges)


def _drawn(degrade: Degradation, name: str) -> tuple[str, ...]:
    """What a degradation has drawn for a photo, as lines of text."""
    if degrade.kind == "bicubic":
        return ()
    draw = degrade.draw(name)
    sigma = f"{draw.sigma[0]:.1f}" + (f" x {draw.sigma[1]:.1f}" if draw.sigma[0] != draw.sigma[1] else "")
    if degrade.kind == "dpsr":
        return (f"blur {sigma} px, noise {draw.delta:.1f}", f"seed {degrade.seed}")
    return (f"blur {sigma} of 512 px", f"noise {draw.delta:.1f}, JPEG {draw.quality}", f"seed {degrade.seed}")


FIGURES = {
    "comparison": figure_comparison,
    "intermediates": figure_intermediates,
    "thin_plate": figure_thin_plate,
    "references": figure_references,
    "mask": figure_mask,
    "degradations": figure_degradations,
}
