"""`rpf prepare`: from a folder of photos to hashed tables of photos, masks and reference pairs."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from rpf_lightning.data.pairing import Pair, near_duplicates, nearest_references, split_by_identity
from rpf_lightning.data.preparation import celeba, prepared_folder, sheets
from rpf_lightning.data.preparation.annotating import (
    WORK,
    Annotations,
    Say,
    annotate,
    refuse_changes,
)
from rpf_lightning.data.preparation.annotator import stored_masks
from rpf_lightning.data.preparation.options import Options
from rpf_lightning.data.preparation.sources import (
    Source,
    composed,
    identities_from_csv,
    identities_from_folders,
    list_photos,
    no_photos,
    refuse_strangers,
)
from rpf_lightning.files import write_atomically

PAIRING = ("identities", "mapping", "partition", "val_fraction", "seed", "references")
PACKAGES = ("rpf-lightning", "torch", "lightning", "numpy", "pillow", "pyarrow")
Twins = list[tuple[int, int]]


class NothingUsableError(RuntimeError):
    """No photo was left; the message says why."""


class DiskFullError(RuntimeError):
    """The disk is full; the message says where, and that the same call continues when there is room."""


def prepare_faces(
    images: str | Path,
    out: str | Path,
    *,
    identities: str | Path | None = None,
    people_in_folders: bool = False,
    val_fraction: float | None = None,
    seed: int = 0,
    options: Options | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Prepare any folder of photos: an album, FFHQ, people in folders.

    Writes the files of `tables` into `out`. The same call continues after a kill.

    Args:
        images: Folder with the photos, searched with its subfolders.
        out: Prepared folder.
        identities: CSV file `file,identity`; people that it does not list are unknown.
        people_in_folders: Take the folder that holds a photo as its person.
        val_fraction: Share of the people held out: writes `pairs_train` and `pairs_val`; None: `pairs_all`.
        seed: Seed of that split.
        options: Annotation and pairing.
        say: Takes the lines of the summary.

    Returns:
        The contents of `prepare.json`; {} on all but the first of several processes.

    Raises:
        FileNotFoundError: If a folder, a file or weights are missing.
        ValueError: If an annotation file is wrong, or `out` was begun with other arguments.
        NothingUsableError: If no photo is left.
        DiskFullError: If the disk is full.
        StoppedError: If it was stopped by Ctrl-C.
    """
    options = options or Options()
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
    if identities is not None and people_in_folders:
        raise ValueError("identities: give a CSV file or take them from folders, not both")
    photos = list_photos(images, out)
    people: dict[str, str] = {}
    if identities is not None:
        people = identities_from_csv(identities)
        refuse_strangers(identities, people, photos)
    elif people_in_folders:
        people = identities_from_folders(photos)
    absent = no_photos(images, out, (identities, options.landmarks))
    absent |= {file: f"listed in {identities}, not in {images}" for file in people if file not in photos}
    arguments = {
        "command": "faces",
        "identities": _fingerprint(identities) or ("folders" if people_in_folders else None),
        "val_fraction": val_fraction,
        "seed": seed,
    }
    sources = [Source(file, path, people.get(file, "")) for file, path in photos.items()]
    job = _Job(Path(images), Path(out), arguments, options, say)
    with job.guarded():
        if (before := job.finished(sources)) is not None:
            return before
        faces = job.annotate(sources, absent)
        if faces is None:
            return {}
        twins = near_duplicates(faces.fractions, faces.thumbnails)
        held_out: set[int] = set()
        if val_fraction is not None:
            paired = nearest_references(faces.identities, faces.fractions, twins)
            usable = {faces.identities[pair.gt] for pair in paired}  # nobody else could be validated on
            names = [name if name in usable else "" for name in faces.identities]
            held_out = set(split_by_identity(names, val_fraction, seed)[1]) if usable else set()

        def split(duplicates: Twins) -> dict[str, list[Pair]]:
            pairs = nearest_references(faces.identities, faces.fractions, duplicates, options.references)
            if val_fraction is None:
                return {"all": pairs}
            return {
                "train": [pair for pair in pairs if pair.gt not in held_out],
                "val": [pair for pair in pairs if pair.gt in held_out],
            }

        return job.finish(faces, split([]), split(twins), twins)


def prepare_celeba_hq(
    images: str | Path,
    mapping: str | Path,
    identities: str | Path,
    out: str | Path,
    *,
    partition: str | Path | None = None,
    options: Options | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Prepare CelebA-HQ with the paper's split and, with a partition, with one that shares no person.

    Args:
        images: Folder with the photos, each named by its index: `0.jpg`, `00000.png`; 30,000 or fewer.
        mapping: `CelebA-HQ-to-CelebA-mapping.txt`.
        identities: `identity_CelebA.txt`.
        out: Prepared folder.
        partition: `list_eval_partition.txt`; writes `pairs_disjoint_train`, `_val` and `_test` as well.
        options: Annotation and pairing.
        say: Takes the lines of the summary.

    Returns:
        The contents of `prepare.json`; {} on all but the first of several processes.

    Raises:
        FileNotFoundError: If a folder, a file or weights are missing.
        ValueError: If a file is wrong, or `out` was begun with other arguments.
        NothingUsableError: If no photo is left.
        DiskFullError: If the disk is full.
        StoppedError: If it was stopped by Ctrl-C.
    """
    options = options or Options()
    metadata = celeba.read_metadata(mapping, identities, partition)
    by_index: dict[int, Source] = {}
    absent = no_photos(images, out, (mapping, identities, partition, options.landmarks))
    for file, path in list_photos(images, out).items():
        stem = PurePosixPath(file).stem
        index = int(stem) if stem.isascii() and stem.isdecimal() else -1
        if index not in metadata.identities:
            absent[file] = f"its name is no index that {Path(mapping).name} lists"
        elif index in by_index:
            raise ValueError(f"{path} and {by_index[index].path} have the same CelebA-HQ index")
        else:
            by_index[index] = Source(file, path, metadata.identities[index])
    if not by_index:
        raise FileNotFoundError(f"{images}: no photo there is named by an index of {mapping}, such as 0.jpg")
    arguments = {
        "command": "celeba-hq",
        **{
            name: _fingerprint(file)
            for name, file in (("mapping", mapping), ("identities", identities), ("partition", partition))
        },
    }
    job = _Job(Path(images), Path(out), arguments, options, say)
    for line in celeba.describe(metadata, len(by_index)):
        job.say(line)
    with job.guarded():
        indices = sorted(by_index)
        sources = [by_index[index] for index in indices]
        if (before := job.finished(sources)) is not None:
            return before
        faces = job.annotate(sources, absent)
        if faces is None:
            return {}
        index_of = [indices[item.index] for item in faces.stored]
        place = {index: position for position, index in enumerate(index_of)}
        known = [(place[a], place[b]) for a, b in celeba.KNOWN_DUPLICATES if a in place and b in place]
        twins = sorted({*near_duplicates(faces.fractions, faces.thumbnails), *known})

        def split(duplicates: Twins) -> dict[str, list[Pair]]:
            parts = {}
            for name, (gts, candidates) in celeba.split_indices(metadata).items():
                wanted, allowed = set(gts), set(candidates)
                people = [
                    person if index in allowed else ""
                    for person, index in zip(faces.identities, index_of, strict=True)
                ]
                pairs = nearest_references(people, faces.fractions, duplicates, options.references)
                parts[name] = [pair for pair in pairs if index_of[pair.gt] in wanted]
            return parts

        return job.finish(faces, split([]), split(twins), twins)


class _Job:
    """One call: where from, where to, how."""

    def __init__(
        self, images: Path, out: Path, arguments: dict[str, Any], options: Options, say: Say
    ) -> None:
        self.images, self.out, self.options = images, out, options
        self.say: Say = rank_zero_only(say)  # every process gets here, one speaks
        self.photos = self.absent = 0
        # where things lie does not decide what comes out
        landmark_model, _, network = options.landmark_model.partition(":")
        named = {
            "landmarks": _fingerprint(options.landmarks),
            "labels": _labels(options.labels),
            "landmark_model": f"{landmark_model}:{_fingerprint(network)}" if network else landmark_model,
        }
        self.arguments = {**arguments, **options.deciding(), **named}

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn "no space left" into a message that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFullError(
                f"{self.out}: the disk is full. What was finished is kept; the same command continues there "
                "when there is room"
            ) from error

    def finished(self, sources: Sequence[Source]) -> dict[str, Any] | None:
        """Return what an earlier call of the same arguments made, if it was finished."""
        self.photos = len(sources)
        self.arguments["photos"] = _listing({source.file: source.path for source in sources})
        if not (self.out / prepared_folder.SUMMARY).is_file():
            return None
        before = prepared_folder.read_summary(self.out)
        refuse_changes(self.out, before["arguments"], json.loads(json.dumps(self.arguments)))
        if (self.out / WORK).is_dir():  # killed at the very end: the pictures may be missing
            return None
        self.say(f"{self.out} was prepared before; sha256 {before['sha256']}")
        return before

    def annotate(self, sources: Sequence[Source], absent: dict[str, str]) -> Annotations | None:
        """Annotate, write `rejected.csv`, and fail if nothing is left."""
        self.out.mkdir(parents=True, exist_ok=True)
        # people and pairs come after the pass: other ones may go on with its batches
        claimed = {name: value for name, value in self.arguments.items() if name not in PAIRING}
        faces = annotate(sources, self.out, claimed, self.options, self.say)
        if faces is None:
            return None
        self.absent = len(absent)
        faces.rejected.update(absent)
        _write_csv(self.out / "rejected.csv", ["file", "reason"], faces.rejected.items())
        if not faces.files:
            some = Counter(faces.rejected.values()).most_common(3)
            raise NothingUsableError(
                f"{self.images}: none of {len(sources)} photos can be used: "
                + "; ".join(f"{reason} ({count})" for reason, count in some)
                + f"; all in {self.out / 'rejected.csv'}"
            )
        return faces

    def finish(
        self, faces: Annotations, before: dict[str, list[Pair]], splits: dict[str, list[Pair]], twins: Twins
    ) -> dict[str, Any]:
        """Write all files, `prepare.json` last, and the pictures for a person to look at."""
        out, files = self.out, faces.files
        prepared_folder.write_table(
            out / prepared_folder.IMAGES,
            {
                "file": files,
                "identity": faces.identities,
                "width": [item.side for item in faces.stored],
                "height": [item.side for item in faces.stored],
                "sha256": [item.sha256 for item in faces.stored],
            },
        )
        prepared_folder.write_landmarks(
            out / prepared_folder.LANDMARKS, files, np.stack([i.landmarks for i in faces.stored])
        )
        with prepared_folder.array_file(
            out / prepared_folder.MASKS,
            (len(files), prepared_folder.MASK_SIDE, prepared_folder.MASK_SIDE // 8),
        ) as masks:
            for row, mask in enumerate(stored_masks(faces.stored)):
                masks[row] = mask
        with prepared_folder.array_file(out / prepared_folder.THUMBNAILS, (len(files), 32, 32)) as thumbnails:
            thumbnails[:] = np.stack(faces.thumbnails)
        if faces.has_embeddings:
            embeddings = np.stack([item.embedding for item in faces.stored])
            with prepared_folder.array_file(
                out / prepared_folder.EMBEDDINGS, embeddings.shape, "float32"
            ) as array:
                array[:] = embeddings
        for name, pairs in splits.items():
            prepared_folder.write_pairs(out / prepared_folder.pairs_file(name), pairs, files)
        names = [(faces.identities[a], faces.identities[b]) for a, b in twins]
        kinds = ["unknown" if "" in pair else "one" if pair[0] == pair[1] else "two" for pair in names]
        found = [(files[a], files[b], kind) for (a, b), kind in zip(twins, kinds, strict=True)]
        _write_csv(out / prepared_folder.DUPLICATES, ["file", "other", "people"], found)
        photos_of = Counter(name for name in faces.identities if name)
        summary = {
            "format": prepared_folder.FORMAT,
            "sha256": prepared_folder.content_hash(out, list(splits)),
            "splits": list(splits),
            "arguments": self.arguments,
            "counts": {
                "photos": self.photos,
                "kept": len(files),
                "rejected": len(faces.rejected) - self.absent,
                "listed_without_use": self.absent,
                "identities": len(photos_of),
                "identities_with_one_photo": sum(count == 1 for count in photos_of.values()),
                "without_identity": sum(not name for name in faces.identities),
                "near_duplicates": {
                    "one_identity": kinds.count("one"),
                    "two_identities": kinds.count("two"),
                    "all": len(twins),
                },
                "pairs": {name: len(pairs) for name, pairs in splits.items()},
                "pairs_with_duplicates": {name: len(pairs) for name, pairs in before.items()},
                "changed_by_the_rule": {
                    name: _changed(before[name], pairs) for name, pairs in splits.items()
                },
            },
            "versions": {package: version(package) for package in PACKAGES},
            "images": prepared_folder.ALIGNED if faces.aligned else str(self.images.resolve()),
        }
        write_atomically(
            out / prepared_folder.SUMMARY, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode()
        )
        try:
            sheets.draw(out, self.images if not faces.aligned else faces.root, faces, splits)
        except (OSError, ValueError) as error:  # pictures for people do not decide whether the data exist
            self.say(f"warning: {sheets.SHEET} and {sheets.HISTOGRAM} could not be drawn: {error}")
        shutil.rmtree(out / WORK, ignore_errors=True)
        for name, pairs in splits.items():
            if not pairs:
                self.say(f"warning: pairs_{name} is empty: too few people have two photos that can be used")
        for line in sheets.lines(out, summary, faces.rejected, [row[:2] for row in found if row[2] == "two"]):
            self.say(line)
        return summary


def check_celeba_hq(out: str | Path, **files: str | Path | None) -> None:
    """Refuse a prepared folder that was made from other files.

    Args:
        out: The prepared folder.
        files: `mapping`, `identities`, `partition`, `landmarks`; those that are None are not compared.

    Raises:
        FileNotFoundError: If the folder is no prepared one.
        ValueError: Naming the differences.
    """
    before = prepared_folder.read_summary(Path(out))["arguments"]
    given = {name: _fingerprint(file) for name, file in files.items() if file is not None}
    refuse_changes(Path(out), {name: before.get(name) for name in given}, given)


def _changed(before: Sequence[Pair], after: Sequence[Pair]) -> int:
    """Count the GTs whose references differ."""
    sets: list[dict[int, list[int]]] = []
    for pairs in (before, after):
        references: dict[int, list[int]] = {}
        for pair in pairs:
            references.setdefault(pair.gt, []).append(pair.reference)
        sets.append(references)
    return sum(sets[1].get(gt) != references for gt, references in sets[0].items())


def _fingerprint(file: str | Path | None) -> str | None:
    """Name an annotation file by what it holds, not by where it lies."""
    if file is None:
        return None
    path = Path(file)
    return f"{path.name} {prepared_folder.file_hash(path)[:16]}" if path.is_file() else path.name


def _listing(files: dict[str, Path]) -> str:
    """Name a list of files by their number, names and sizes: another list must not pass for this one."""
    text = "".join(f"{name}\0{path.stat().st_size}\n" for name, path in sorted(files.items()))
    return f"{len(files)} files {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _labels(folder: str | None) -> str | None:
    if folder is None:
        return None
    root = Path(folder)
    return _listing({composed(path.relative_to(root).as_posix()): path for path in root.rglob("*.png")})


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
