"""The files of an evaluation: protocol, tables beside the paper's, values per image, pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from rpf_lightning.evaluation.contact import SHEETS, PictureRow, draw_grid
from rpf_lightning.evaluation.methods import Method
from rpf_lightning.evaluation.statistics import LEVEL, RESAMPLES, SEED, Estimate
from rpf_lightning.metrics.image import ERROR_FLOOR
from rpf_lightning.model import storage

PROGRESS = "progress.jsonl"
PAPER_METRICS = ("psnr", "ssim", "lpips", "isc")
PAPER_SOURCE = "Table 1 of the paper (IV-C, CelebA-HQ)"
PAPER = {
    32: {
        "PULSE": (19.78, 0.5732, 0.5432, 0.4923),
        "mGANprior": (21.26, 0.6117, 0.5099, 0.5230),
        "GLEAN": (24.34, 0.6534, 0.3257, 0.7750),
        "GPEN": (23.65, 0.6417, 0.3340, 0.7541),
        "GCFSR": (24.64, 0.6786, 0.3064, 0.7837),
        "CollageNet": (25.71, 0.7003, 0.5046, 0.5114),
        "MPRNet": (21.97, 0.6201, 0.5073, 0.5301),
        "RPF": (25.03, 0.6913, 0.3003, 0.8063),
    },
    64: {
        "PULSE": (17.53, 0.5306, 0.6068, 0.4068),
        "mGANprior": (18.69, 0.5721, 0.5530, 0.4397),
        "GLEAN": (21.38, 0.6016, 0.4109, 0.6118),
        "GPEN": (20.20, 0.5991, 0.4306, 0.5978),
        "GCFSR": (22.19, 0.6345, 0.3689, 0.6623),
        "CollageNet": (24.56, 0.7926, 0.5696, 0.4157),
        "MPRNet": (18.93, 0.5846, 0.5513, 0.4279),
        "RPF": (23.16, 0.6980, 0.3591, 0.7101),
    },
}
SHOWN = 10  # faults in a table; results.json has all
TITLES = {
    "without_reference": "without reference",
    "with_reference": "with reference",
    "other_person": "other person",
}


class Column(NamedTuple):
    """How a metric is printed.

    Attributes:
        title: Name with unit.
        higher_is_better: Direction of the arrow, and which value is the best.
        digits: Digits after the point.
    """

    title: str
    higher_is_better: bool
    digits: int


# no square brackets: rich takes them for markup
COLUMNS = {
    "psnr": Column("PSNR (dB)", True, 2),
    "ssim": Column("SSIM", True, 4),
    "psnr_face": Column("PSNR face (dB)", True, 2),
    "detail_error": Column("detail error", False, 5),
    "lr_consistency": Column("LR consistency (dB)", True, 2),
    "lpips": Column("LPIPS", False, 4),
    "isc": Column("ISC", True, 4),
    "isc_reference": Column("ISC to the reference", True, 4),
    "landmark_distance": Column("landmark distance (%)", False, 2),
}


def table_markdown(results: Mapping[str, Any]) -> str:
    """Format what `evaluate` returned as a Markdown table with the best values in bold.

    Args:
        results: The dictionary of `evaluate`.

    Returns:
        The table, and below it the number of pairs, what the own reference gives more than another person's,
        and where images had no value.
    """
    headers, rows = _cells(results)
    lines = _markdown(
        headers, [[name, *(f"**{text}**" if best else text for text, best in cells)] for name, cells in rows]
    )
    notes = [_plain(note) for note in _notes(results)]
    return "\n".join([*lines, "", "\n\n".join(notes)]) + "\n"


def table_for_console(results: Mapping[str, Any]) -> Table:
    """Format what `evaluate` returned for printing with rich.

    Args:
        results: The dictionary of `evaluate`.

    Returns:
        The table with the best values in bold; its caption holds the notes of `table_markdown`.
    """
    headers, rows = _cells(results)
    table = Table(caption=escape("\n".join(_notes(results))))
    table.add_column(headers[0])
    for header in headers[1:]:
        table.add_column(header, justify="right")
    for name, cells in rows:
        table.add_row(escape(name), *(f"[bold]{text}[/bold]" if best else text for text, best in cells))
    return table


def _cells(results: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """Return the headers, and for each method its name and the texts with whether each is the best."""
    methods = results["methods"]
    metrics = [name for name in COLUMNS if name in next(iter(methods.values()))]
    headers = ["method"]
    rows: dict[str, list[tuple[str, bool]]] = {name: [] for name in methods}
    for metric in metrics:
        _, higher, digits = COLUMNS[metric]
        headers.append(_header(COLUMNS[metric]))
        texts = {
            name: "–" if means[metric] is None else f"{means[metric]:.{digits}f}"
            for name, means in methods.items()
        }
        numbers = [float(text) for text in texts.values() if text != "–"]
        best = (max(numbers) if higher else min(numbers)) if numbers else None
        for name, text in texts.items():
            # as printed: what looks equal is equally good
            rows[name].append((text, text != "–" and float(text) == best))
    return headers, [(TITLES.get(name, name), cells) for name, cells in rows.items()]


def _notes(results: Mapping[str, Any]) -> list[str]:
    settings = results["protocol"]
    notes = [f"{settings['pairs']} pairs, {settings['lr_size']} -> {settings['size']} pixels."]
    swaps = [entry for entry in results["gaps"] if entry["kind"] == "own_minus_other"]
    for entry in swaps:
        gains = [
            f"{column.title} {entry['metrics'][metric]['mean']:+.{column.digits}f}"
            for metric, column in COLUMNS.items()
            if entry["metrics"].get(metric, {}).get("mean") is not None
        ]
        whose = f" ({entry['method']})" if len(swaps) > 1 else ""
        if gains:
            notes.append(f"Own minus another person's reference{whose}: {', '.join(gains)}.")
    for name, counts in results["counts"].items():
        missing = [f"{metric} {n}" for metric, n in counts.items() if n < settings["pairs"]]
        if missing:
            notes.append(f"Images with a value, {TITLES.get(name, name)}: {', '.join(missing)}.")
    for name, kinds in results["faults"].items():
        for kind, texts in kinds.items():
            more = f" and {len(texts) - SHOWN} more (results.json)" if len(texts) > SHOWN else ""
            notes.append(f"{name}: {len(texts)} {kind}: {'; '.join(texts[:SHOWN])}{more}.")
    return notes


def table1_rows(results: Mapping[str, Any]) -> tuple[int, list[tuple[str, list[str], list[str]]]]:
    """Put our numbers beside the paper's.

    A method stands beside the paper's of its name; where none is called RPF or GCFSR, the first model with its own
    reference and the first published GCFSR do.

    Args:
        results: The dictionary of `compare`.

    Returns:
        The scale factor of the paper's numbers, and for every method its name, our values with intervals and the
        paper's, in the order of `PAPER_METRICS`. Methods of the paper that were not measured come last.
    """
    settings = results["protocol"]
    scale = settings["size"] // settings["lr_size"]
    factor = scale if scale in PAPER else 64
    names = {re.sub(r"\W", "", name).lower(): name for name in PAPER[factor]}
    beside = {
        name: names[key] for name in results["methods"] if (key := re.sub(r"\W", "", name).lower()) in names
    }
    for kind, name in (("model", "RPF"), ("gcfsr", "GCFSR")):
        ours = [m for m, described in settings["methods"].items() if described["kind"] == kind]
        if ours and name not in beside.values() and ours[0] not in beside:
            beside[ours[0]] = name
    rows = []
    for name, means in results["methods"].items():
        cells = []
        for metric in PAPER_METRICS:
            mean, digits = means.get(metric), COLUMNS[metric].digits
            low, high = results["intervals"][name].get(metric, (None, None))
            cells.append("–" if mean is None else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        rows.append((TITLES.get(name, name), cells, _paper(factor, beside.get(name))))
    missing = [name for name in PAPER[factor] if name not in beside.values()]
    return factor, [*rows, *((f"{name} (paper)", ["–"] * 4, _paper(factor, name)) for name in missing)]


def table1_markdown(results: Mapping[str, Any]) -> str:
    """Format Table 1 with the paper's numbers, and the gaps, as Markdown."""
    factor, rows = table1_rows(results)
    ours = [COLUMNS[metric] for metric in PAPER_METRICS]
    headers = ["method", *(_header(c) for c in ours), *(f"paper ×{factor} {c.title}" for c in ours)]
    headers[-1] += r"\*"  # ISC
    lines = ["## Table 1", "", *_markdown(headers, [[name, *own, *paper] for name, own, paper in rows])]
    lines += ["", _caption(results, factor)]
    metrics = [metric for metric in COLUMNS if metric in next(iter(results["methods"].values()))]
    gaps = [
        [
            f"{entry['method']} − {entry['minus']}",
            *(_difference(entry["metrics"][metric], COLUMNS[metric].digits) for metric in metrics),
        ]
        for entry in results["gaps"]
    ]
    if gaps:
        lines += ["", "## Gaps", "", *_markdown(["difference", *(COLUMNS[m].title for m in metrics)], gaps)]
        lines += ["", f"In brackets: {results['protocol']['intervals']}."]
    return "\n".join(lines) + "\n"


def table1_latex(results: Mapping[str, Any]) -> str:
    r"""Format Table 1 with the paper's numbers as LaTeX; needs `\usepackage{booktabs}`."""
    factor, rows = table1_rows(results)
    titles = " & ".join(COLUMNS[metric].title.partition(" (")[0] for metric in PAPER_METRICS)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(_caption(results, factor))}}}",
        r"\begin{tabular}{l" + "r" * 8 + "}", r"\toprule",
        rf" & \multicolumn{{4}}{{c}}{{ours}} & \multicolumn{{4}}{{c}}{{paper, $\times{factor}$}} \\",
        rf"method & {titles} & {titles}$^*$ \\", r"\midrule",
    ]  # fmt: skip
    for name, own, paper in rows:
        small = [re.sub(r" (\[.*)", r" {\\scriptsize \1}", cell) for cell in own]
        cells = [cell.replace("–", "--") for cell in (*small, *paper)]
        lines.append(" & ".join([_latex(name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def write_results(
    out: Path,
    results: Mapping[str, Any],
    rows: Sequence[PictureRow] = (),
    sheets: Mapping[str, Image.Image] | None = None,
) -> list[Path]:
    """Write all files, each whole or not at all; then what a killed comparison would go on from is removed.

    Args:
        out: Their folder; made if it is missing.
        results: The dictionary of `compare`.
        rows: Of `grid.png`.
        sheets: Contact sheets by the names of `SHEETS`.

    Returns:
        The files. A picture of an earlier evaluation that has no successor is removed: it would not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    contents = {
        "results.json": text.encode(),
        "table.md": f"{table_markdown(results)}\n{table1_markdown(results)}".encode(),
        "table.tex": table1_latex(results).encode(),
        "per_image.csv": _csv(results).encode(),
    }
    pictures = {"grid": draw_grid(rows)} if rows else {}
    pictures |= sheets or {}
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        contents[f"{name}.png"] = buffer.getvalue()
    for name, content in contents.items():
        storage.write_atomically(out / name, content)
    for name in ("grid", *SHEETS):
        if name not in pictures:
            (out / f"{name}.png").unlink(missing_ok=True)
    (out / PROGRESS).unlink(missing_ok=True)
    return [out / name for name in contents]


def _csv(results: Mapping[str, Any]) -> str:
    """A row per image and method; an empty cell where there is no value."""
    metrics = list(next(iter(results["methods"].values())))
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["id", "reference_id", "other_id", "method", *metrics, "fault"])
    for row in results["per_image"]:
        names = [row["id"], row["reference_id"], row.get("other_id", "")]
        for method, values in row["metrics"].items():
            fault = ": ".join(row.get("faults", {}).get(method, []))
            table.writerow([*names, method, *(values[metric] for metric in metrics), fault])
    return file.getvalue()


def _caption(results: Mapping[str, Any], factor: int) -> str:
    settings = results["protocol"]
    scale = settings["size"] // settings["lr_size"]
    other = "" if scale == factor else f" It has none for our factor of {scale}: no number is comparable."
    return (
        f"{settings['pairs']} pairs, {settings['lr_size']} to {settings['size']} pixels; in brackets the {LEVEL:.0%} "
        f"bootstrap interval over images. The paper's numbers: {PAPER_SOURCE}, factor {factor}.{other} *: not "
        "comparable with ours in any case, since the paper names neither ArcFace's weights nor the crop."
    )


def _paper(factor: int, name: str | None) -> list[str]:
    if name is None:
        return ["–"] * len(PAPER_METRICS)
    values = zip(PAPER_METRICS, PAPER[factor][name], strict=True)
    return [f"{value:.{COLUMNS[metric].digits}f}" for metric, value in values]


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + "|".join(["---"] + ["---:"] * (len(headers) - 1)) + "|"
    return [f"| {' | '.join(headers)} |", rule, *(f"| {' | '.join(map(_plain, row))} |" for row in rows)]


def _header(column: Column) -> str:
    return f"{column.title} {'↑' if column.higher_is_better else '↓'}"


def _difference(gap: Estimate, digits: int) -> str:
    numbers = [gap["mean"], gap["low"], gap["high"]]
    mean, low, high = ("–" if number is None else f"{number:+.{digits}f}" for number in numbers)
    return "–" if gap["mean"] is None else f"{mean} [{low}, {high}]"


def _plain(text: str) -> str:
    """A cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def protocol(methods: Sequence[Method], lr_size: int, size: int, device: torch.device) -> dict[str, Any]:
    """Say how it is measured, and identify weights and software.

    Args:
        methods: What is compared.
        lr_size: Side of the LR.
        size: Side of the faces.
        device: Where.

    Returns:
        JSON types.
    """
    described = {method.name: method.describe() for method in methods}
    models = {d["weights_sha256"]: d for d in described.values() if "model_config" in d}
    (one,) = models.values() if len(models) == 1 else ({},)
    return {
        "range": "RGB in [0, 1], outputs clamped",
        "rounding": "outputs and GT unrounded (a folder's are files of 8 bit); the LR input as the data set gives "
        "it, rounded to 8 bit",
        "crop": "none, the border counts; psnr_face and detail_error inside the facial mask of the GT",
        "averaging": "per image, then the mean over the images that have a value (counts)",
        "intervals": f"bootstrap over images, {RESAMPLES} resamples, seed {SEED}, {LEVEL:.0%}, percentiles; gaps "
        "over the images that both methods have a value for",
        "psnr": f"all pixels and channels of an image; squared error of at least {ERROR_FLOOR:g}, so at most "
        f"{-10 * math.log10(ERROR_FLOOR):g} dB",
        "ssim": "Gaussian window 11, sigma 1.5, data range 1, RGB, reflected borders",
        "detail_error": "mean absolute error of y - up(down(y, lr_size)) inside the face, bicubic",
        "lr_consistency": "PSNR of the output reduced to lr_size (bicubic) against the LR",
        "resize": "bicubic, a = -0.5, antialiased",
        "lr_size": lr_size,
        "size": size,
        "methods": described,
        **{key: one[key] for key in ("weights_sha256", "model_config") if key in one},
        "device": device.type,
        "torch": torch.__version__,
        "rpf_lightning": version("rpf-lightning"),
    }
