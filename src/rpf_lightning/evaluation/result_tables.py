"""The table of all methods, for Markdown and for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from rpf_lightning.evaluation.statistics import Estimate

SHOWN = 10  # faults in a table; results.json has all
TITLES = {
    "without_reference": "without reference",
    "with_reference": "with reference",
    "other_person": "other person",
}


class Column(NamedTuple):
    """How a metric is printed.

    Attributes:
        label: Name.
        unit: Of the values; may be empty.
        digits: Digits after the point.
        higher_is_better: Direction of the arrow, and which value is the best; None: no value is better.
    """

    label: str
    unit: str
    digits: int
    higher_is_better: bool | None

    @property
    def title(self) -> str:
        """Name with unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def columns_of(results: Mapping[str, Any]) -> dict[str, Column]:
    """Return the metrics that were measured."""
    return {name: Column(**of) for name, of in results["metrics"].items()}


COPIES = ("reference", "reference-unmasked", "model-gt")
"""Kinds that are never the best: they ignore the LR, or see the GT."""


def table_markdown(results: Mapping[str, Any]) -> str:
    """Format what `evaluate` returned as a Markdown table with the best values in bold.

    Below it stand the number of pairs, what the own reference gives more than another person's, and where images had
    no value.
    """
    headers, rows = _cells(results)
    lines = markdown_table(
        headers, [[name, *(f"**{text}**" if best else text for text, best in cells)] for name, cells in rows]
    )
    notes = [plain(note) for note in _notes(results)]
    return "\n".join([*lines, "", "\n\n".join(notes)]) + "\n"


def table_for_console(results: Mapping[str, Any]) -> Table:
    """Format what `evaluate` returned for printing with rich; the caption holds the notes of `table_markdown`."""
    headers, rows = _cells(results)
    table = Table(caption=escape("\n".join(_notes(results))))
    table.add_column(headers[0])
    for title in headers[1:]:
        table.add_column(escape(title), justify="right")
    for name, cells in rows:
        table.add_row(escape(name), *(f"[bold]{text}[/bold]" if best else text for text, best in cells))
    return table


def _cells(results: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """Return the headers, and for each method its name and the texts with whether each is the best."""
    methods, described = results["methods"], results["protocol"]["methods"]
    headers = ["method"]
    rows: dict[str, list[tuple[str, bool]]] = {name: [] for name in methods}
    for metric, column in columns_of(results).items():
        higher = column.higher_is_better
        headers.append(header(column))
        texts = {
            name: "–" if means[metric] is None else f"{means[metric]:.{column.digits}f}"
            for name, means in methods.items()
        }
        # as printed: what looks equal is equally good
        competing = (name for name in methods if described[name]["kind"] not in COPIES and texts[name] != "–")
        numbers = {name: float(texts[name]) for name in competing}
        best = (max if higher else min)(numbers.values(), default=None)
        for name, text in texts.items():
            rows[name].append((text, higher is not None and name in numbers and numbers[name] == best))
    return headers, [(TITLES.get(name, name), cells) for name, cells in rows.items()]


def _notes(results: Mapping[str, Any]) -> list[str]:
    settings = results["protocol"]
    split = f" of the split {settings['split']}" if "split" in settings else ""
    notes = [f"{settings['pairs']} pairs{split}, {settings['lr_size']} -> {settings['size']} pixels."]
    swaps = [entry for entry in results["gaps"] if entry["kind"] == "own_minus_other"]
    for entry in swaps:
        gains = [
            f"{column.title} {entry['metrics'][metric]['mean']:+.{column.digits}f}"
            for metric, column in columns_of(results).items()
            if column.higher_is_better is not None
            and entry["metrics"].get(metric, {}).get("mean") is not None
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


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, all columns but the first to the right."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(headers) - 1)) + "|"
    head, *lines = (f"| {' | '.join(map(plain, cells))} |" for cells in (headers, *rows))
    return [head, rule, *lines]


def header(column: Column) -> str:
    """Return the title with an arrow towards the better values."""
    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    return f"{column.title}{arrow}"


def difference(gap: Estimate | None, digits: int) -> str:
    """Return a difference with its interval, or a dash where there is none."""
    if gap is None or gap["mean"] is None:
        return "–"
    mean, low, high = (f"{number:+.{digits}f}" for number in (gap["mean"], gap["low"], gap["high"]))
    return f"{mean} [{low}, {high}]"


def plain(text: str) -> str:
    """Return a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
