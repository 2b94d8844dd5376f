"""Which photos are enhanced, with whose portraits, and where each result goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpf_lightning.data.preparation.sources import composed, list_photos
from rpf_lightning.enhancing.outputs import WRITTEN, files_of
from rpf_lightning.lists import Line, read_lines
from rpf_lightning.pictures import stem

COLUMNS = ("photo", "reference", "face", "name")

Faces = Mapping[int | None, tuple[Path, ...]]
"""Face -> portraits of its person; None: the only face, or the one that the portraits match."""


@dataclass(frozen=True)
class Task:
    """A photo to be enhanced.

    Attributes:
        photo: Its file.
        out: Name of the result.
        faces: Whose faces; without any, those of the people who are known (`--people`).
    """

    photo: Path
    out: Path
    faces: Faces


def asked_faces(faces: Sequence[str], references: Sequence[str]) -> Faces:
    """What `--face` and `--reference` ask for.

    Args:
        faces: `INDEX=PORTRAIT` as often as there are portraits, or one INDEX for all references.
        references: Portraits of one person.

    Raises:
        ValueError: If they do not go together.
    """
    pairs = [face.partition("=") for face in faces]
    for index, sign, portrait in pairs:
        if not (index.isdecimal() and bool(sign) == bool(portrait)):
            raise ValueError(f"--face: expected INDEX or INDEX=PORTRAIT, got {index + sign + portrait!r}")
    single = [int(index) for index, sign, _ in pairs if not sign]
    if single and (len(pairs) > 1 or not references):
        raise ValueError("--face INDEX: expected --reference with it and no further --face")
    if len(pairs) > len(single) and references:
        raise ValueError("--face INDEX=PORTRAIT: expected no --reference with it")
    if references:
        return {single[0] if single else None: tuple(map(Path, references))}
    asked: dict[int | None, tuple[Path, ...]] = {}
    for index, _, portrait in pairs:
        asked[int(index)] = (*asked.get(int(index), ()), Path(portrait))
    return asked


def tasks_of(photos: Sequence[str | Path], out: str | Path, faces: Faces) -> list[Task]:
    """Make the tasks of photos and folders of photos, whose results go into a folder under the photos' names.

    A photo of a folder keeps its subfolders. Kinds of files that are not written become PNG.

    Args:
        photos: Files and folders.
        out: The folder of results; what lies in it is no photo.
        faces: Of all of them.

    Raises:
        FileNotFoundError: If a folder holds no photo.
        ValueError: If two photos would write one file, or the folder of results is one of the photos'.
    """
    if Path(out).suffix.lower() in WRITTEN and not Path(out).is_dir():
        raise ValueError(f"out: expected a folder for several photos, got the name of a picture, {out}")
    tasks: dict[Path, Task] = {}
    for photo in map(Path, photos):
        if photo.is_dir() and photo.resolve().is_relative_to(Path(out).resolve()):
            raise ValueError(f"out: {out} holds the photos of {photo}; expected a folder of its own")
        named = list_photos(photo, out) if photo.is_dir() else {photo.name: photo}
        for name, file in named.items():
            tasks.setdefault(file.resolve(), Task(file, _result(out, name), faces))
    return _without_clashes(list(tasks.values()))


def read_tasks(path: str | Path, out: str | Path) -> list[Task]:
    """Read a CSV file with the columns `photo`, and as needed `reference`, `face` and `name`.

    A photo has a line for each portrait. Files are relative to the list's folder. A result is named after `name`,
    without it after `photo` as it stands in the list, subfolders included.

    Args:
        path: The list.
        out: The folder of results.

    Raises:
        FileNotFoundError: If the list or a file that it names is missing.
        ValueError: If a column is missing or unknown, a field is wrong, or two photos would write one file.
    """
    photos: dict[str, Path] = {}
    faces: dict[str, dict[int | None, tuple[Path, ...]]] = {}
    for line in read_lines(path, COLUMNS):
        photo, name = line.needed("photo"), line.name("photo")
        if photos.setdefault(name, photo) != photo:
            raise ValueError(
                f"{line.place}: {photo} and {photos[name]} have the name {name}; give them a column name"
            )
        asked = faces.setdefault(name, {})
        reference, face = line.file("reference"), _face(line)
        if reference is not None:
            asked[face] = (*asked.get(face, ()), reference)
        elif face is not None:
            raise ValueError(f"{line.place}: face without a reference")
        if None in asked and len(asked) > 1:
            raise ValueError(f"{line.place}: expected a face in every line of {photo} or in none")
    return _without_clashes([Task(photo, _result(out, name), faces[name]) for name, photo in photos.items()])


def _face(line: Line) -> int | None:
    text = line.texts["face"]
    if text and not text.isdecimal():
        raise ValueError(f"{line.place}: face: expected a number, 0 is the largest, got {text!r}")
    return int(text) if text else None


def _result(out: str | Path, name: str) -> Path:
    return Path(out) / (name if Path(name).suffix.lower() in WRITTEN else f"{stem(name)}.png")


def _without_clashes(tasks: list[Task]) -> list[Task]:
    """Give tasks back that write different files, on disks too where case does not count."""
    written: dict[str, Path] = {}
    for task in tasks:
        for file in files_of(task.out):
            other = written.setdefault(composed(str(file)).casefold(), task.photo)
            if other is not task.photo:
                raise ValueError(
                    f"{other} and {task.photo} would both write {file}; rename one, or name the results in a list "
                    "(--csv, column name)"
                )
    return tasks
