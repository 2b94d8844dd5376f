"""All photos of a folder with their annotations: what exists is read, what is missing is computed."""

from __future__ import annotations

import json
import logging
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from rpf_lightning.data.image_files import open_image
from rpf_lightning.data.preparation.annotator import (
    Annotator,
    BatchWriter,
    Photos,
    Stored,
    as_list,
    read_batch,
)
from rpf_lightning.data.preparation.options import Options
from rpf_lightning.data.preparation.prepared_folder import ALIGNED
from rpf_lightning.data.preparation.sources import (
    Source,
    label_files,
    landmarks_from_csv,
    refuse_strangers,
)
from rpf_lightning.faces.dlib_models import LANDMARKS, model_file
from rpf_lightning.faces.weights import insightface_pack, weight_file
from rpf_lightning.files import read_json, write_atomically

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # the user's choice
    ".*treespec, LeafSpec.*",  # Lightning 2.6 on newer torch
)
WORK = "work"  # batches of the pass over the photos, removed at the end

Say = Callable[[str], None]


class StoppedError(RuntimeError):
    """The pass was stopped by the user; the message says that the same call continues."""


@dataclass(frozen=True)
class Annotations:
    """The photos that are usable, in the order of the sources, and those that are not.

    Attributes:
        root: Folder that the names are relative to.
        files: Names of the photos.
        identities: Names of the people, empty if unknown.
        stored: Their annotations.
        rejected: Name of a photo -> why it is not used.
        aligned: Whether the photos were aligned here.
        has_embeddings: Whether embeddings were computed.
    """

    root: Path
    files: list[str]
    identities: list[str]
    stored: list[Stored]
    rejected: dict[str, str]
    aligned: bool
    has_embeddings: bool

    @property
    def fractions(self) -> list[NDArray[np.float64]]:
        """(68, 2) landmarks as fractions of the side."""
        return [item.landmarks / item.side for item in self.stored]

    @property
    def thumbnails(self) -> list[NDArray[np.uint8]]:
        """(32, 32) grey uint8."""
        return [item.thumbnail for item in self.stored]


def annotate(
    sources: Sequence[Source], out: Path, arguments: dict[str, Any], options: Options, say: Say
) -> Annotations | None:
    """Annotate all photos; continues where an earlier call of the same arguments was stopped.

    Args:
        sources: The photos.
        out: Prepared folder.
        arguments: What an earlier call must have had in common.
        options: How.
        say: Takes lines about what is missing.

    Returns:
        The annotations; None on all but the first of several processes.

    Raises:
        FileNotFoundError: If weights, or files named in the options, are missing.
        ValueError: If a file named in the options is wrong, or other arguments began the folder.
        StoppedError: If the pass was stopped by the user.
    """
    sources = _with_annotations(sources, options)
    aligned = _is_album(sources) if options.align == "auto" else options.align == "always"
    if aligned and options.labels is not None:
        raise ValueError("labels: photos that are to be aligned cannot take parsing maps; use align: never")
    if options.align == "auto" and aligned:
        say(
            "most photos are not square: faces are found and aligned (--align never takes photos as they are)"
        )
    if aligned and any(source.path.resolve().is_relative_to(out.resolve()) for source in sources):
        raise ValueError(f"{out}: holds photos; give another --out for the aligned faces")
    annotator, problems = _annotator(sources, aligned, options)
    for problem in problems:
        say(f"warning: {problem}")

    work = out / WORK
    _claim(work, {**arguments, "aligned": aligned, "embeddings": annotator.embed})
    names = _face_names(sources) if aligned else None
    faces = None if names is None else [out / ALIGNED / name for name in names]
    done = {item.index for path in sorted(work.glob("*.npz")) for item in read_batch(path)}
    todo = [index for index in range(len(sources)) if index not in done]
    if done:
        say(f"{len(done):,} of {len(sources):,} photos were done before")
    photos = Photos(sources, todo, options.label_scheme, not aligned)
    if not _run(photos, annotator, BatchWriter(work, faces), options):
        return None

    stored = {item.index: item for path in sorted(work.glob("*.npz")) for item in read_batch(path)}
    if len(stored) < len(sources):  # Lightning ends a prediction quietly on Ctrl-C
        raise StoppedError(
            f"{out}: stopped after {len(stored):,} of {len(sources):,} photos; the same command continues there"
        )
    kept = [item for _, item in sorted(stored.items()) if not item.reason]
    files = names or [source.file for source in sources]
    return Annotations(
        root=out / ALIGNED if aligned else Path(),
        files=[files[item.index] for item in kept],
        identities=[sources[item.index].identity for item in kept],
        stored=kept,
        rejected={sources[index].file: item.reason for index, item in sorted(stored.items()) if item.reason},
        aligned=aligned,
        has_embeddings=annotator.embed,
    )


def _with_annotations(sources: Sequence[Source], options: Options) -> list[Source]:
    """Attach the landmarks and parsing maps that exist."""
    files = [source.file for source in sources]
    points = landmarks_from_csv(options.landmarks) if options.landmarks else {}
    if options.landmarks:
        refuse_strangers(options.landmarks, points, files)
    labels = label_files(options.labels, files) if options.labels else {}
    return [
        replace(source, landmarks=points.get(source.file), label=labels.get(source.file))
        for source in sources
    ]


def _is_album(sources: Sequence[Source]) -> bool:
    """Tell whether most photos are not square; those whose size cannot be read have no say."""
    square = [size[0] == size[1] for source in sources if (size := _size(source.path)) is not None]
    return 2 * sum(square) < len(square)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with open_image(path) as file:
            return file.size
    except (OSError, ValueError, SyntaxError, struct.error):
        return None  # the pass over the photos says why


def _annotator(sources: Sequence[Source], aligned: bool, options: Options) -> tuple[Annotator, list[str]]:
    """Choose the networks that are needed, and say which of them cannot be had.

    A network without weights is an error if every photo needs it. If some have that annotation from a file,
    the others are rejected and the command goes on with these.
    """
    problems: list[str] = []
    landmark_spec: str | None = options.landmark_model
    missing_landmarks = missing_mask = ""
    lacking = sum(source.landmarks is None for source in sources)
    if not lacking:
        landmark_spec = None
    else:
        try:
            _check_landmark_model(options)
            if aligned and options.landmark_model != "dlib":
                insightface_pack(options.pack)  # its detector finds the face to align
        except FileNotFoundError as error:
            if lacking == len(sources):
                raise
            landmark_spec = None
            missing_landmarks = (
                f"not in {options.landmarks}, and {options.landmark_model} cannot be used: {error}"
            )
            problems.append(f"{lacking} photos have no landmarks and are rejected: {error}")
    mask_model = options.mask_model
    lacking = sum(source.label is None for source in sources)
    mask_or_none = mask_model if lacking else None
    if lacking and mask_model == "bisenet":
        try:
            weight_file("bisenet")
        except FileNotFoundError as error:
            if lacking == len(sources):
                raise
            mask_or_none = None
            missing_mask = f"no parsing map in {options.labels}, and bisenet cannot be used: {error}"
            problems.append(f"{lacking} photos have no parsing map and are rejected: {error}")
    embed = options.embeddings is not False
    if options.embeddings is None:
        try:
            insightface_pack(options.pack)
        except FileNotFoundError as error:
            embed = False
            problems.append(f"no embeddings: {error}")
    side = options.side if aligned else None
    return (
        Annotator(landmark_spec, mask_or_none, side, options.pack, embed, missing_landmarks, missing_mask),
        problems,
    )


def _check_landmark_model(options: Options) -> None:
    """Fail where the landmark network's weights are missing, before any photo is read."""
    if options.landmark_model == "face-alignment":
        weight_file("s3fd")
        weight_file("fan")
        return
    if options.landmark_model == "dlib":
        model_file(LANDMARKS)
    if not options.landmark_model.startswith("onnx:"):
        return  # dlib's, or one's own
    path = Path(options.landmark_model.removeprefix("onnx:"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; --landmark-model onnx:PATH expects a 68-point network"
        )
    insightface_pack(options.pack)  # its detector finds the face box


def _claim(work: Path, arguments: dict[str, Any]) -> None:
    """Make the folder of batches, or check that the same arguments made it."""
    path = work / "arguments.json"
    text = json.dumps(arguments, indent=2, sort_keys=True)
    if path.is_file():
        before = read_json(path)
        refuse_changes(work.parent, before, json.loads(text))
        return
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def refuse_changes(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with other arguments than those that began a folder.

    Raises:
        ValueError: Naming the differences.
    """
    if not isinstance(before, dict):
        raise ValueError(f"{out}: its arguments are no JSON object; use another folder, or delete this one")
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        text = "\n".join(f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise ValueError(
            f"{out} was begun with other arguments:\n{text}\nUse another folder, or delete this one"
        )


def _face_names(sources: Sequence[Source]) -> list[str]:
    """Name the aligned faces after their photos, `.png`; where some differ in the suffix only, all keep it."""
    short = [PurePosixPath(source.file).with_suffix(".png").as_posix() for source in sources]
    return short if len({*short}) == len(short) else [f"{source.file}.png" for source in sources]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Lightning's greeting and the warnings that say nothing here."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.setLevel(level)


def _run(photos: Photos, annotator: Annotator, writer: BatchWriter, options: Options) -> bool:
    """Run the pass; tell whether this is the first of several processes."""
    if not photos.todo:  # this may still be one of several processes that somebody else has started
        alone = options.devices == 1 and options.num_nodes == 1
        return alone or getattr(rank_zero_only, "rank", 0) == 0
    workers = min(8, os.cpu_count() or 1) if options.num_workers is None else options.num_workers
    with _quiet():
        trainer = Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[writer, TQDMProgressBar(refresh_rate=10)],
        )
        photos.at_least = trainer.world_size
        loader = DataLoader(photos, batch_size=options.batch_size, num_workers=workers, collate_fn=as_list)
        trainer.predict(annotator, loader, return_predictions=False)
    trainer.strategy.barrier()
    return trainer.is_global_zero
