"""Tables 1 and 2 with the paper's numbers beside ours, for Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rpf_lightning.evaluation.result_tables import (
    TITLES,
    Column,
    columns_of,
    difference,
    header,
    markdown_table,
)
from rpf_lightning.evaluation.statistics import LEVEL
from rpf_lightning.metrics import ISC, LPIPS, PSNR, SSIM

PAPERS = {
    name: Column(metric.label, metric.unit, metric.digits, metric.higher_is_better)
    for name, metric in {"psnr": PSNR, "ssim": SSIM, "lpips": LPIPS, "isc": ISC}.items()
}
"""The columns of the paper's tables, whether we have measured them or not."""
OURS = ("lr_consistency", "landmark_distance")
"""What stands beside them where it was measured: a copied reference scores well on LPIPS and ISC."""


class PaperTable(NamedTuple):
    """A table of the paper.

    Attributes:
        number: Its number there.
        metrics: Its columns, names of ours.
        values: Scale factor -> method -> values in the order of `metrics`.
        stands_for: Kind of method -> the paper's method that the first of this kind stands beside, where none has
            that name.
        about: What the caption says of the rows.
    """

    number: int
    metrics: tuple[str, ...]
    values: Mapping[int, Mapping[str, tuple[float, ...]]]
    stands_for: Mapping[str, str]
    about: str


_VALUES1 = {
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
TABLE1 = PaperTable(1, ("psnr", "ssim", "lpips", "isc"), _VALUES1, {"model": "RPF", "gcfsr": "GCFSR"}, "")
_VALUES2 = {
    64: {
        "without progressive": (22.58, 0.3659, 0.6649),
        "without reference": (22.90, 0.3623, 0.6631),
        "without non-facial removal": (22.39, 0.3678, 0.6820),
        "RPF": (23.16, 0.3591, 0.7101),
    },
}
TABLE2 = PaperTable(
    2, ("psnr", "lpips", "isc"), _VALUES2, {"model": "RPF"},
    " Each row beside a number of the paper's is a model trained for it, with the same budget; the others use one of "
    "these models in another way.",
)  # fmt: skip
TABLES = {table.number: table for table in (TABLE1, TABLE2)}


def our_columns(results: Mapping[str, Any], table: PaperTable = TABLE1) -> dict[str, Column]:
    """Return our columns: the paper's, and those of `OURS` that were measured."""
    measured = columns_of(results)
    beside = {name: measured[name] for name in OURS if name in measured}
    return {name: PAPERS[name] for name in table.metrics} | beside


def table_rows(
    results: Mapping[str, Any], table: PaperTable = TABLE1
) -> tuple[int, list[tuple[str, list[str], list[str]]]]:
    """Put our numbers, of `compare`, beside the paper's.

    A method stands beside the paper's of its name. Rows of Table 2 are trained models: what only uses the weights of
    the one called RPF in another way stands beside nothing.

    Returns:
        The scale factor of the paper's numbers, and for every method its name, our values with intervals in the
        order of `our_columns`, and the paper's in that of its metrics. Methods of the paper that were not measured
        come last.
    """
    settings = results["protocol"]
    scale = settings["size"] // settings["lr_size"]
    factor = scale if scale in table.values else 64
    known = table.values[factor]
    beside = _beside(settings["methods"], table, known)
    columns, rows = our_columns(results, table), []
    for name, means in results["methods"].items():
        cells = []
        for metric, column in columns.items():
            mean, digits = means.get(metric), column.digits
            low, high = results["intervals"][name].get(metric, (None, None))
            cells.append("–" if mean is None else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        rows.append((TITLES.get(name, name), cells, _paper(table, known.get(beside.get(name, "")))))
    missing = [name for name in known if name not in beside.values()]
    blank = ["–"] * len(columns)
    return factor, [*rows, *((f"{name} (paper)", blank, _paper(table, known[name])) for name in missing)]


def _beside(
    described: Mapping[str, Any], table: PaperTable, known: Mapping[str, tuple[float, ...]]
) -> dict[str, str]:
    """Which of the paper's methods each of ours stands beside."""
    names = {_key(name): name for name in known}
    beside = {name: names[_key(name)] for name in described if _key(name) in names}
    for kind, name in table.stands_for.items():
        left = (method for method in described if described[method]["kind"] == kind and method not in beside)
        if name not in beside.values() and (ours := next(left, None)):
            beside[ours] = name
    if table is TABLE2:
        whole = [described[ours].get("weights_sha256") for ours, theirs in beside.items() if theirs == "RPF"]
        beside = {
            ours: theirs for ours, theirs in beside.items()
            if theirs == "RPF" or (described[ours].get("weights_sha256") or ours) not in whole
        }  # fmt: skip
    return beside


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def paper_markdown(results: Mapping[str, Any], table: PaperTable = TABLE1) -> str:
    """Format a table with the paper's numbers, and the gaps, as Markdown."""
    factor, rows = table_rows(results, table)
    theirs = [f"paper ×{factor} {PAPERS[metric].title}" for metric in table.metrics]
    headers = ["method", *map(header, our_columns(results, table).values()), *theirs]
    headers[-1] += r"\*"  # ISC
    cells = [[name, *own, *paper] for name, own, paper in rows]
    lines = [f"## Table {table.number}", "", *markdown_table(headers, cells)]
    lines += ["", _caption(results, table, factor)]
    measured = columns_of(results)
    gaps = []
    for entry in results["gaps"]:
        values = [difference(entry["metrics"].get(name), of.digits) for name, of in measured.items()]
        gaps.append([f"{entry['method']} − {entry['minus']}", *values])
    if gaps:
        titles = ["difference", *(column.title for column in measured.values())]
        lines += ["", "## Gaps", "", *markdown_table(titles, gaps)]
        lines += ["", f"In brackets: {results['protocol']['intervals']}."]
    return "\n".join(lines) + "\n"


def paper_latex(results: Mapping[str, Any], table: PaperTable = TABLE1) -> str:
    r"""Format a table with the paper's numbers as LaTeX; needs `\usepackage{booktabs}`."""
    factor, rows = table_rows(results, table)
    columns = our_columns(results, table)
    ours = " & ".join(column.label for column in columns.values())
    theirs = " & ".join(PAPERS[metric].label for metric in table.metrics)
    spans = (
        rf"\multicolumn{{{len(columns)}}}{{c}}{{ours}}",
        rf"\multicolumn{{{len(table.metrics)}}}{{c}}{{paper, $\times{factor}$}}",
    )
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(_caption(results, table, factor))}}}",
        r"\begin{tabular}{l" + "r" * (len(columns) + len(table.metrics)) + "}", r"\toprule",
        rf" & {' & '.join(spans)} \\", rf"method & {ours} & {theirs}$^*$ \\", r"\midrule",
    ]  # fmt: skip
    for name, own, paper in rows:
        small = [re.sub(r" (\[.*)", r" {\\scriptsize \1}", cell) for cell in own]
        cells = [cell.replace("–", "--") for cell in (*small, *paper)]
        lines.append(" & ".join([_latex(name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _caption(results: Mapping[str, Any], table: PaperTable, factor: int) -> str:
    settings = results["protocol"]
    scale = settings["size"] // settings["lr_size"]
    other = "" if scale == factor else f" It has none for our factor of {scale}: no number is comparable."
    split = f" of the split {settings['split']}" if "split" in settings else ""
    unchecked = [
        f" {TITLES.get(name, name)}: GCFSR's published weights in a network of our own (blend {described['blend']}, "
        f"normalize {described['normalize']}), whose readings of them were not checked against published outputs "
        "(docs/gcfsr.md)."
        for name, described in settings["methods"].items()
        if described["kind"] == "gcfsr"
    ]
    text = (
        f"{settings['pairs']} pairs{split}, {settings['lr_size']} to {settings['size']} pixels; in brackets the "
        f"{LEVEL:.0%} bootstrap interval over images. The paper's numbers: Table {table.number} (IV-C, CelebA-HQ), "
        f"factor {factor}.{other} *: not comparable with ours in any case, since the paper names neither ArcFace's "
        f"weights nor the crop.{table.about}"
    )
    return "".join([text, *unchecked])


def _paper(table: PaperTable, values: tuple[float, ...] | None) -> list[str]:
    if values is None:
        return ["–"] * len(table.metrics)
    return [f"{value:.{PAPERS[metric].digits}f}" for metric, value in zip(table.metrics, values, strict=True)]


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
