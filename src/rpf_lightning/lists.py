"""Lists of photos: CSV files whose files are relative to the list's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpf_lightning.files import read_utf8
from rpf_lightning.pictures import result_file


@dataclass(frozen=True)
class Line:
    """A line of a list.

    Attributes:
        place: `list.csv, line 2`, for messages.
        folder: The list's.
        texts: Column -> its text, without spaces around it; empty where there is none.
    """

    place: str
    folder: Path
    texts: Mapping[str, str]

    def file(self, column: str) -> Path | None:
        """The file that a column names, None where it is empty.

        Raises:
            FileNotFoundError: If it is missing.
        """
        if not self.texts[column]:
            return None
        found = self.folder / self.texts[column]
        if not found.is_file():
            raise FileNotFoundError(f"{self.place}: {column} {found} is not there")
        return found

    def needed(self, column: str) -> Path:
        """The same where it must not be empty.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If it is empty.
        """
        if (found := self.file(column)) is None:
            raise ValueError(f"{self.place}: {column} is empty")
        return found

    def name(self, column: str) -> str:
        """Name of the result without folder: that of `name`, without it that of `column`, as it stands in the list.

        Subfolders are included, but where a column's file leads out of the list's folder.

        Raises:
            ValueError: If `name` leads out of a folder of results.
        """
        listed = Path(self.texts[column])
        outside = listed.is_absolute() or ".." in listed.parts
        name = self.texts["name"] or (listed.name if outside else listed.as_posix())
        try:
            result_file(name)
        except ValueError as error:
            raise ValueError(f"{self.place}: name {error}") from error
        return name


def read_lines(path: str | Path, columns: Sequence[str]) -> list[Line]:
    """Read a CSV file.

    Args:
        path: The file, in UTF-8.
        columns: Those that it may have; the first one it must have.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is in another encoding, or a column is missing or unknown.
    """
    path, expected = Path(path), ", ".join(columns)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a CSV file with the columns {expected}")
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    got = reader.fieldnames or []
    if columns[0] not in got or set(got) - set(columns):
        raise ValueError(
            f"{path}: expected the column {columns[0]} and at most {expected}, got {', '.join(got)}"
        )
    return [
        Line(
            f"{path}, line {number}",
            path.parent,
            {column: (line.get(column) or "").strip() for column in columns},
        )
        for number, line in enumerate(reader, start=2)
    ]
