"""`rpf prepare`: from a folder of photos to hashed tables of photos, masks and reference pairs."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from rpf_lightning.data.pairing import Pair, near_duplicates, nearest_references, split_by_identity
from rpf_lightning.data.preparation import celeba, sheets
from rpf_lightning.data.preparation import prepared_folder as tables
from rpf_lightning.data.preparation.annotating import WORK, Annotations, Say, annotate, refuse_changes
from rpf_lightning.data.preparation.annotator import fill_masks
from rpf_lightning.data.preparation.options import Options
from rpf_lightning.data.preparation.sources import (
    Source,
    identities_from_csv,
    identities_from_folders,
    label_maps,
    list_photos,
    no_photos,
    refuse_strangers,
)
from rpf_lightning.files import write_atomically

PAIRING = ("identities", "mapping", "partition", "val_fraction", "seed", "references")
PACKAGES = ("rpf-lightning", "torch", "lightning", "numpy", "pillow", "pyarrow")
Twins = list[tuple[int, int]]
Splits = dict[str, list[Pair]]
Pairing = Callable[[Annotations], tuple[Twins, Splits, Splits]]


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

    Writes the files of `prepared_folder` into `out`. The same call continues after a kill.

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

    def pairing(faces: Annotations) -> tuple[Twins, Splits, Splits]:
        twins = near_duplicates(faces.fractions, faces.stored["thumbnail"])
        held_out: set[int] = set()
        if val_fraction is not None:
            paired = nearest_references(faces.identities, faces.fractions, twins)
            usable = {faces.identities[pair.gt] for pair in paired}  # nobody else could be validated on
            names = [name if name in usable else "" for name in faces.identities]
            held_out = set(split_by_identity(names, val_fraction, seed)[1]) if usable else set()

        def split(duplicates: Twins) -> Splits:
            pairs = nearest_references(faces.identities, faces.fractions, duplicates, options.references)
            if val_fraction is None:
                return {"all": pairs}
            return {
                "train": [pair for pair in pairs if pair.gt not in held_out],
                "val": [pair for pair in pairs if pair.gt in held_out],
            }

        return twins, split([]), split(twins)

    say = rank_zero_only(say)
    return _prepare(sources, absent, Path(images), Path(out), arguments, options, say, pairing)


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
        options: As in `prepare_faces`, like `say`, what is returned and what is raised.
        say: Takes the lines of the summary.
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
    files = {"mapping": mapping, "identities": identities, "partition": partition}
    arguments = {"command": "celeba-hq", **{name: _fingerprint(file) for name, file in files.items()}}
    say = rank_zero_only(say)
    for line in celeba.describe(metadata, len(by_index)):
        say(line)
    indices = sorted(by_index)

    def pairing(faces: Annotations) -> tuple[Twins, Splits, Splits]:
        index_of = [indices[place] for place in faces.stored["index"]]
        place = {index: position for position, index in enumerate(index_of)}
        known = [(place[a], place[b]) for a, b in celeba.KNOWN_DUPLICATES if a in place and b in place]
        twins = sorted({*near_duplicates(faces.fractions, faces.stored["thumbnail"]), *known})

        def split(duplicates: Twins) -> Splits:
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

        return twins, split([]), split(twins)

    sources = [by_index[index] for index in indices]
    return _prepare(sources, absent, Path(images), Path(out), arguments, options, say, pairing)


def _prepare(
    sources: Sequence[Source],
    absent: dict[str, str],
    images: Path,
    out: Path,
    arguments: dict[str, Any],
    options: Options,
    say: Say,
    pairing: Pairing,
) -> dict[str, Any]:
    """Annotate, pair and write, or return what an earlier call of the same arguments made.

    Args are those of the commands, and: `absent`, name -> why it is in `rejected.csv`, though it is no photo of
    `sources`; `pairing`, which gives near-duplicates, the pairs without the rule about them, and the pairs.
    """
    # where things lie does not decide what comes out
    landmark_model, _, network = options.landmark_model.partition(":")
    arguments = {
        **arguments,
        **options.deciding(),
        "landmarks": _fingerprint(options.landmarks),
        "labels": options.labels and _listing(label_maps(Path(options.labels))),
        "landmark_model": f"{landmark_model}:{_fingerprint(network)}" if network else landmark_model,
        "photos": _listing({source.file: source.path for source in sources}),
    }
    try:
        if (out / tables.SUMMARY).is_file():
            before = tables.read_summary(out)
            refuse_changes(out, before["arguments"], arguments)
            if not (out / WORK).is_dir():  # else killed at the very end: the pictures may be missing
                say(f"{out} was prepared before; sha256 {before['sha256']}")
                return before
        out.mkdir(parents=True, exist_ok=True)
        # people and pairs come after the pass: other ones may go on with its batches
        claimed = {name: value for name, value in arguments.items() if name not in PAIRING}
        faces = annotate(sources, out, claimed, options, say)
        if faces is None:
            return {}
        rejected = {**faces.rejected, **absent}
        _write_csv(out / "rejected.csv", ["file", "reason"], rejected.items())
        if not faces.files:
            some = Counter(rejected.values()).most_common(3)
            raise NothingUsableError(
                f"{images}: none of {len(sources)} photos can be used: "
                + "; ".join(f"{reason} ({count})" for reason, count in some)
                + f"; all in {out / 'rejected.csv'}"
            )
        twins, before_the_rule, splits = pairing(faces)
        _write(out, faces, twins, splits)
        summary = {
            "format": tables.FORMAT,
            "sha256": tables.content_hash(out, list(splits)),
            tables.DUPLICATES_HASH: tables.file_hash(out / tables.DUPLICATES),
            "splits": list(splits),
            "arguments": arguments,
            "counts": {
                "photos": len(sources),
                "kept": len(faces.files),
                "rejected": len(faces.rejected),
                "listed_without_use": len(absent),
                **_counts(faces, twins, before_the_rule, splits),
            },
            "versions": {package: version(package) for package in PACKAGES},
            "images": tables.ALIGNED if faces.aligned else str(images.resolve()),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_atomically(out / tables.SUMMARY, text.encode())
        try:
            sheets.draw(out, out / tables.ALIGNED if faces.aligned else images, faces, splits)
        except (OSError, ValueError) as error:  # pictures for people do not decide whether the data exist
            say(f"warning: {sheets.SHEET} and {sheets.HISTOGRAM} could not be drawn: {error}")
        shutil.rmtree(out / WORK, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{out}: the disk is full. What was finished is kept; the same command continues there when there is room"
        ) from error
    for name, pairs in splits.items():
        if not pairs:
            say(f"warning: pairs_{name} is empty: too few people have two photos that can be used")
    leaks = [(faces.files[a], faces.files[b]) for a, b in twins if _people(faces, a, b) == "two"]
    for line in sheets.lines(out, summary, rejected, leaks):
        say(line)
    return summary


def _write(out: Path, faces: Annotations, twins: Twins, splits: Splits) -> None:
    """Write all tables and arrays."""
    files, stored = faces.files, faces.stored
    side, sha256 = stored["side"].tolist(), stored["sha256"].tolist()
    columns = {"file": files, "identity": faces.identities, "width": side, "height": side, "sha256": sha256}
    tables.write_table(out / tables.IMAGES, columns)
    tables.write_landmarks(out / tables.LANDMARKS, files, stored["landmarks"])
    shape = (len(files), tables.MASK_SIDE, tables.MASK_SIDE // 8)
    with tables.array_file(out / tables.MASKS, shape) as masks:
        fill_masks(out / WORK, stored["index"], masks)
    with tables.array_file(out / tables.THUMBNAILS, stored["thumbnail"].shape) as thumbnails:
        thumbnails[:] = stored["thumbnail"]
    if faces.has_embeddings:
        with tables.array_file(out / tables.EMBEDDINGS, stored["embedding"].shape, "float32") as embeddings:
            embeddings[:] = stored["embedding"]
    for name, pairs in splits.items():
        tables.write_pairs(out / tables.pairs_file(name), pairs, files)
    found = [(files[a], files[b], _people(faces, a, b)) for a, b in twins]
    _write_csv(out / tables.DUPLICATES, ["file", "other", "people"], found)


def _people(faces: Annotations, a: int, b: int) -> str:
    """Say whether two photos carry "one" name, "two", or "unknown" ones."""
    names = faces.identities[a], faces.identities[b]
    return "unknown" if "" in names else "one" if names[0] == names[1] else "two"


def _counts(faces: Annotations, twins: Twins, before: Splits, splits: Splits) -> dict[str, Any]:
    """Count people, near-duplicates and pairs."""
    photos_of = Counter(name for name in faces.identities if name)
    kinds = Counter(_people(faces, a, b) for a, b in twins)
    changed = {}
    for name, pairs in splits.items():
        references, now = _references(before[name]), _references(pairs)
        changed[name] = sum(now.get(gt) != others for gt, others in references.items())
    return {
        "identities": len(photos_of),
        "identities_with_one_photo": sum(count == 1 for count in photos_of.values()),
        "without_identity": faces.identities.count(""),
        "near_duplicates": {
            "one_identity": kinds["one"],
            "two_identities": kinds["two"],
            "all": len(twins),
        },
        "pairs": {name: len(pairs) for name, pairs in splits.items()},
        "pairs_with_duplicates": {name: len(pairs) for name, pairs in before.items()},
        "changed_by_the_rule": changed,
    }


def _references(pairs: Sequence[Pair]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for pair in pairs:
        found[pair.gt].append(pair.reference)
    return found


def check_celeba_hq(out: str | Path, **files: str | Path | None) -> None:
    """Refuse a prepared folder that was made from other files.

    Args:
        out: The prepared folder.
        files: `mapping`, `identities`, `partition`, `landmarks`; those that are None are not compared.

    Raises:
        FileNotFoundError: If the folder is no prepared one.
        ValueError: Naming the differences.
    """
    before = tables.read_summary(Path(out))["arguments"]
    given = {name: _fingerprint(file) for name, file in files.items() if file is not None}
    refuse_changes(Path(out), {name: before.get(name) for name in given}, given)


def _fingerprint(file: str | Path | None) -> str | None:
    """Name an annotation file by what it holds, not by where it lies."""
    if file is None:
        return None
    path = Path(file)
    return f"{path.name} {tables.file_hash(path)[:16]}" if path.is_file() else path.name


def _listing(files: dict[str, Path]) -> str:
    """Name a list of files by their number, names and sizes: another list must not pass for this one."""
    text = "".join(f"{name}\0{path.stat().st_size}\n" for name, path in sorted(files.items()))
    return f"{len(files)} files {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
