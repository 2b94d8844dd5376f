"""CelebA-HQ's text files: who is on which photo, and the splits (P IV-A, docs/method.md section 9)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rpf_lightning.files import read_utf8

IMAGES = 30_000  # rows of the released mapping
CELEBA = 202_599  # rows of the released identity and partition files
PAPER_TEST = 1_000  # split "paper": indices below are the test part
# What `counts` gives for the released files (docs/data.md); the paper has 6,217 people, 987 and 27,291 pairs.
EXPECTED = {
    "identities": 6_217, "images_with_partner": 28_299, "paper train": 27_294, "paper test": 987,
    "disjoint train": 22_820, "disjoint val": 2_834, "disjoint test": 2_645,
}  # fmt: skip
PARTITIONS = {"0": "train", "1": "val", "2": "test"}
# What the rows of the three files are.
MAPPING = "rows `idx orig_idx orig_file` of the CelebA-HQ release"
IDENTITIES = "rows `orig_file identity` of CelebA"
PARTITION = "rows `orig_file 0|1|2` of CelebA"

Key = TypeVar("Key", int, str)

# Near-duplicates known in CelebA-HQ: each index with its successor. Five pairs carry one identity label, eight
# carry two and would be leaks across a split.
KNOWN_DUPLICATES = tuple(
    (index, index + 1)
    for index in (234, 3329, 5162, 6770, 7384, 7561, 12444, 12885, 13825, 15506, 19199, 20134, 24646)
)


@dataclass(frozen=True)
class Metadata:
    """The three text files, joined by index.

    Attributes:
        identities: Index in CelebA-HQ -> name of the person; "" where the identity file has no row.
        partition: Index -> "train", "val" or "test" of CelebA's official partition; None without that file.
        nowhere: Index -> name of the CelebA file that the identity (or partition) file does not list.
        warnings: Counts that differ from the released files.
    """

    identities: dict[int, str]
    partition: dict[int, str] | None
    nowhere: dict[int, str]
    warnings: tuple[str, ...]


def read_metadata(
    mapping: str | Path, identities: str | Path, partition: str | Path | None = None
) -> Metadata:
    """Read and join the files, checking their counts against the released ones.

    A file with fewer rows than the released one is used all the same and gives a warning.

    Args:
        mapping: `CelebA-HQ-to-CelebA-mapping.txt`: rows `idx orig_idx orig_file`, with or without a header.
        identities: `identity_CelebA.txt`: rows `orig_file identity`.
        partition: `list_eval_partition.txt`: rows `orig_file 0|1|2`.

    Raises:
        FileNotFoundError: If a file is missing; says what it should hold.
        ValueError: If a row is wrong or an index or file is listed twice; names the line.
    """
    warnings: list[str] = []
    originals = _read(mapping, IMAGES, MAPPING, _mapping_row, warnings)
    people = _read(identities, CELEBA, IDENTITIES, lambda row: (row[0], str(int(row[1]))), warnings)
    parts = partition and _read(
        partition, CELEBA, PARTITION, lambda row: (row[0], PARTITIONS[row[1]]), warnings
    )
    nowhere = {
        index: name
        for index, name in originals.items()
        if name not in people or (parts and name not in parts)
    }
    return Metadata(
        identities={index: people.get(name, "") for index, name in originals.items()},
        partition={index: parts.get(name, "") for index, name in originals.items()} if parts else None,
        nowhere=nowhere,
        warnings=tuple(warnings),
    )


def split_indices(metadata: Metadata) -> dict[str, tuple[list[int], list[int]]]:
    """Say which photos a part holds and where their references may come from.

    Returns:
        Name of the part -> indices of its GTs, indices of the candidates. `paper_test` are the indices below
        1000 with references from everywhere, `paper_train` the rest with references from the rest;
        `disjoint_*` are CelebA's official parts, which share no person.
    """
    everyone = sorted(metadata.identities)
    rest = [index for index in everyone if index >= PAPER_TEST]
    parts = {
        "paper_train": (rest, rest),
        "paper_test": ([index for index in everyone if index < PAPER_TEST], everyone),
    }
    if metadata.partition is not None:
        for name in PARTITIONS.values():
            members = [index for index in everyone if metadata.partition[index] == name]
            parts[f"disjoint_{name}"] = (members, members)
    return parts


def counts(metadata: Metadata) -> dict[str, Any]:
    """Count people, and photos that have a partner of the same identity, before any other rule.

    Returns:
        `identities`, `images_with_partner`, `paper: {train, test}` and, with a partition,
        `disjoint: {train, val, test}`.
    """
    identities = metadata.identities
    everyone = sorted(identities)
    found: dict[str, Any] = {
        "identities": len({name for name in identities.values() if name}),
        "images_with_partner": _with_partner(everyone, everyone, identities),
    }
    grouped: dict[str, dict[str, int]] = defaultdict(dict)
    for name, (gts, candidates) in split_indices(metadata).items():
        scheme, part = name.split("_")
        grouped[scheme][part] = _with_partner(gts, candidates, identities)
    return {**found, **grouped}


def describe(metadata: Metadata, photos: int) -> list[str]:
    """Say how the counts compare with those of the released files and of the paper."""
    lines = [f"warning: {warning}" for warning in metadata.warnings]
    lines += [
        f"warning: index {index} points to {name}, which has no identity or partition there"
        for index, name in list(metadata.nowhere.items())[:10]
    ]
    if len(metadata.nowhere) > 10:
        lines.append(f"warning: and {len(metadata.nowhere) - 10:,} more such rows")
    for name, found in counts(metadata).items():
        parts = (
            {f"{name} {part}": n for part, n in found.items()} if isinstance(found, dict) else {name: found}
        )
        lines += [f"{part}: {n:,} (released files: {EXPECTED[part]:,})" for part, n in parts.items()]
    return [*lines, f"photos: {photos:,} (the release has {IMAGES:,})"]


def _with_partner(gts: Sequence[int], candidates: Sequence[int], identities: dict[int, str]) -> int:
    """Count the GTs whose person has another photo among the candidates, which hold the GTs."""
    photos = Counter(identities[index] for index in candidates if identities[index])
    return sum(photos[identities[index]] > 1 for index in gts)


def _read(
    file: str | Path,
    rows: int,
    content: str,
    parse: Callable[[list[str]], tuple[Key, str]],
    warnings: list[str],
) -> dict[Key, str]:
    """Read a table of words; a first line that `parse` refuses may be a header."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it should hold {rows:,} {content}")
    table: dict[Key, str] = {}
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            key, value = parse(words)
        except (ValueError, LookupError):
            if not table and number <= 2:  # `list_attr`-like files begin with a count and a header
                continue
            raise ValueError(f"{path}, line {number}: expected {content}, got {line!r}") from None
        if key in table:
            raise ValueError(f"{path}, line {number}: {key!r} is listed twice")
        table[key] = value
    if not table:
        raise ValueError(f"{path}: holds no row; it should hold {rows:,} {content}")
    if len(table) != rows:
        warnings.append(f"{path}: holds {len(table):,} rows; the released file holds {rows:,} {content}")
    return table


def _mapping_row(words: list[str]) -> tuple[int, str]:
    index, _, name = int(words[0]), int(words[1]), words[2]
    return index, name
