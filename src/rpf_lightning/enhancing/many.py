"""`rpf enhance` on many photos: networks are loaded once, a bad photo stops nothing, a second run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from rpf_lightning.data.dataset import fingerprint
from rpf_lightning.data.preparation.prepared_folder import file_hash
from rpf_lightning.enhancing.aligned_faces import FaceNetworks, RefusedError
from rpf_lightning.enhancing.choosing import chosen_face
from rpf_lightning.enhancing.enhance import enhance_people
from rpf_lightning.enhancing.found import FoundFaces, check_size, find_faces
from rpf_lightning.enhancing.outputs import files_of, summary, write_enhanced
from rpf_lightning.enhancing.portraits import Matches, Portrait, match_people, read_people, read_portrait
from rpf_lightning.enhancing.results import Enhanced
from rpf_lightning.enhancing.tasks import Task
from rpf_lightning.files import write_atomically
from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import weights_hash

RECORD = "enhanced.json"
"""In a folder of results: name of a result -> SHA-256 of what it was made from."""


class Done(NamedTuple):
    """An enhanced photo.

    Attributes:
        result: The photo and its faces.
        people: Face -> name, of those that were told by identity.
    """

    result: Enhanced
    people: Mapping[int, str]

    def lines(self) -> list[str]:
        """A line per face: what was done, with which portraits; and what was left as it is, and why."""
        texts = []
        for face in self.result.faces:
            person = self.people.get(face.face_index)
            told = f", {person}" if person else ""
            several = "references" if len(face.names) > 1 else "reference"
            texts.append(f"{summary(self.result, face)}{told}; {several} {', '.join(face.names)}")
        return [*texts, *map(str, self.result.left)]


class Enhancer:
    """Enhances photos with one model, one set of networks, and portraits that are read once.

    Args:
        model: The model.
        networks: Detector, recogniser and mask.
        people: Name -> portraits of people who are told by identity, in every photo.
        force: Enhance although portraits clearly show another person.
        scale: How much each photo is enlarged; None: as its faces need it.

    Attributes:
        warnings: What the user should know of the people's portraits.

    Raises:
        FileNotFoundError: If a portrait or weights are missing.
        ValueError: If there are people, and nobody has a portrait that can be used.
    """

    def __init__(
        self,
        model: RPFModel,
        networks: FaceNetworks,
        people: Mapping[str, Sequence[Path]] | None = None,
        force: bool = False,
        scale: int | None = None,
    ) -> None:
        self.model, self.networks, self.force, self.scale = model, networks, force, scale
        self.files = people or {}
        self.warnings: list[str] = []
        self.read: Callable[[Path], Portrait] = cache(lambda path: read_portrait(path, networks))
        self.people = read_people(self.files, networks, self.warnings) if people else {}

    def __call__(self, task: Task, say: Callable[[str], None]) -> Done:
        """Enhance a photo.

        Args:
            task: The photo and whose faces.
            say: Told what is done at the moment.

        Raises:
            RefusedError: As in `enhance_people`, and if no face is known to be one of the people's.
            FileNotFoundError: If a photo or weights are missing.
            ValueError: If a photo cannot be read.
        """
        self.networks.mask  # noqa: B018  # first of all: searching a photo takes a while
        portraits = {face: [self.read(file) for file in files] for face, files in task.faces.items()}
        say(f"searching {task.photo} for faces")
        found = find_faces(task.photo, self.networks)
        say(f"enhancing {task.photo}")
        asked: dict[int, Sequence[Portrait]] = {
            chosen_face(found, face, [portrait.face for portrait in each], self.networks): each
            for face, each in portraits.items()
        }
        people, left = self._recognised(task, found, asked)
        if not (asked or people):
            raise RefusedError(f"{task.photo}: nobody was recognised: {'; '.join(map(str, left))}")
        asked |= {face: self.people[name] for face, name in people.items()}
        result = enhance_people(found, asked, self.model, self.networks, self.force, self.scale)
        return Done(replace(result, left=(*result.left, *left)), people)

    def _recognised(self, task: Task, found: FoundFaces, asked: Collection[int]) -> Matches:
        """Of the people whose portraits were not given for a face of this photo, which are where."""
        if not self.people:
            return Matches({}, ())
        given = {file.resolve() for files in task.faces.values() for file in files}
        others = {
            name: each
            for name, each in self.people.items()
            if not given & {file.resolve() for file in self.files[name]}
        }
        return match_people(found, others, self.networks, asked)


def enhance_many(
    tasks: Sequence[Task],
    out: str | Path,
    enhancer: Enhancer,
    quality: int,
    strip_metadata: bool,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
) -> dict[Path, str]:
    """Enhance photos and write the results.

    What was made from the same photo, portraits, model and settings, and is still there, is not made again: the folder
    holds a record, `enhanced.json`.

    Args:
        tasks: What `tasks_of` or `read_tasks` gave.
        out: The folder of results; made if it is missing.
        enhancer: What enhances.
        quality: Of JPEG and WebP.
        strip_metadata: Write neither EXIF nor colour profile.
        say: Takes a line per face, and at the end how many photos are there.
        warn: Takes what the user should know, each sentence once.

    Returns:
        The photos that could not be enhanced -> the reason.

    Raises:
        FileNotFoundError: If weights are missing.
        ValueError: If a portrait that every photo needs cannot be used, or the record cannot be read.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    networks = enhancer.networks
    _ = networks.detector, networks.mask, networks.recogniser  # missing weights are no photo's fault
    record, told = _read_record(folder / RECORD), set[str]()
    origin = _origins(enhancer, quality, strip_metadata)
    failed: dict[Path, str] = {}
    new = 0

    def warn_once(texts: Iterable[str]) -> None:
        for text in dict.fromkeys(texts):
            if text not in told:
                warn(text)
                told.add(text)

    warn_once(enhancer.warnings)
    for portrait in _needed_by_all(tasks):
        enhancer.read(portrait)
    with Progress() as bar:
        step = bar.add_task("", total=len(tasks))
        for task in tasks:
            bar.update(step, description=f"reading {task.photo}")
            name = task.out.relative_to(folder).as_posix()
            try:
                check_size(task.photo, enhancer.scale)
                made_from = origin(task)
                if record.get(name) != made_from or not all(file.is_file() for file in files_of(task.out)):
                    done = enhancer(task, lambda text: bar.update(step, description=text))
                    write_enhanced(done.result, task.out, strip_metadata, quality)
                    record[name] = made_from
                    write_atomically(folder / RECORD, json.dumps(record, indent=1).encode())
                    new += 1
                    for line in done.lines():
                        say(f"{task.photo}: {line}")
                    warn_once(done.result.warnings)
            except (OSError, ValueError) as error:
                failed[task.photo] = str(error)
            bar.advance(step)
        bar.update(step, description="")
    say(f"{len(tasks) - len(failed)} photos in {out}, {new} of them new")
    return failed


def _needed_by_all(tasks: Sequence[Task]) -> set[Path]:
    files = [{file for files in task.faces.values() for file in files} for task in tasks]
    return set.intersection(*files) if len(files) > 1 else set()


def _read_record(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file}: expected what rpf enhance wrote, remove it to make all anew: {error}"
        ) from error


def _origins(enhancer: Enhancer, quality: int, strip_metadata: bool) -> Callable[[Task], str]:
    """Say of a task what its result is made from: a SHA-256 over files, model and settings."""
    content = cache(file_hash)  # portraits serve many photos
    model, networks = enhancer.model, enhancer.networks
    settings = [
        asdict(model.config), weights_hash(model.state_dict()), networks.models.kind, networks.pack,
        networks.mask_model, networks.landmarks, enhancer.force, enhancer.scale, quality, strip_metadata,
    ]  # fmt: skip
    people = [[name, [content(file) for file in files]] for name, files in sorted(enhancer.files.items())]

    def origin(task: Task) -> str:
        faces = [[face, [content(file) for file in files]] for face, files in task.faces.items()]
        return fingerprint(settings, people, file_hash(task.photo), faces)

    return origin
