"""The command line of `rpf prepare`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from rpf_lightning.data.preparation.celeba import counts, read_metadata

if TYPE_CHECKING:
    from rpf_lightning.data.preparation.options import Options


def main(args: list[str]) -> None:
    """Run `rpf prepare celeba-hq|faces|verify`.

    Args:
        args: What follows `rpf prepare`.
    """
    parser = argparse.ArgumentParser("rpf prepare", description="Turn photos into hashed reference pairs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="celeba-hq|faces|verify")
    celeba = commands.add_parser("celeba-hq", help="the raw CelebA-HQ release")
    celeba.add_argument("--mapping", required=True, metavar="CelebA-HQ-to-CelebA-mapping.txt")
    celeba.add_argument("--identities", required=True, metavar="identity_CelebA.txt")
    celeba.add_argument(
        "--partition", metavar="list_eval_partition.txt", help="also write the disjoint split"
    )
    celeba.add_argument("--counts", action="store_true", help="only print counts as JSON; needs no photos")
    _add_common(celeba, required=False)
    faces = commands.add_parser("faces", help="any folder of photos: an album, FFHQ")
    people = faces.add_mutually_exclusive_group()
    people.add_argument("--identities", metavar="CSV", help="columns file, identity")
    people.add_argument(
        "--identities-from-folders",
        action="store_true",
        help="the folder that holds a photo names its person",
    )
    faces.add_argument(
        "--val-fraction", type=float, help="share of the people held out (pairs_train, pairs_val)"
    )
    faces.add_argument("--seed", type=int, default=0, help="seed of that split")
    _add_common(faces, required=True)
    check = commands.add_parser("verify", help="check a prepared folder and its photos against their hashes")
    check.add_argument("folder")
    check.add_argument("--images", help="where the photos lie now")
    known = parser.parse_args(args)
    try:
        {"celeba-hq": _celeba_hq, "faces": _faces, "verify": _verify}[known.command](known, parser)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"rpf prepare: {error}")


def _add_common(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--images", required=required, metavar="DIR", help="folder with the photos")
    parser.add_argument("--out", required=required, metavar="DIR", help="prepared folder")
    found = parser.add_argument_group("annotations that exist already")
    found.add_argument("--landmarks", metavar="CSV", help="columns file, x0, y0, ..., x67, y67, in pixels")
    found.add_argument("--labels", metavar="DIR", help="parsing maps <name of the photo>.png")
    found.add_argument("--label-scheme", choices=("bisenet", "celebamask-hq"), help="order of their values")
    missing = parser.add_argument_group("annotation of what is missing")
    missing.add_argument("--landmark-model", default="face-alignment", metavar="face-alignment|onnx:PATH")
    missing.add_argument("--mask-model", default="bisenet", choices=("bisenet", "hull", "template"))
    missing.add_argument("--align", default="auto", choices=("auto", "always", "never"))
    missing.add_argument("--side", type=int, default=512, help="side of faces that are aligned here")
    missing.add_argument("--pack", help="insightface pack; default buffalo_l, or the only one there is")
    missing.add_argument(
        "--embeddings", action=argparse.BooleanOptionalAction, default=None,
        help="ArcFace embeddings; default: where a pack is found",
    )  # fmt: skip
    parser.add_argument("--references", type=int, default=1, metavar="K", help="references per photo")
    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=int, default=8)
    running.add_argument(
        "--workers", type=int, help="processes that read photos; default: one per core, at most 8"
    )
    running.add_argument("--accelerator", default="auto")
    running.add_argument("--devices", default="auto")
    running.add_argument("--num-nodes", type=int, default=1)


def _celeba_hq(known: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if known.counts:
        metadata = read_metadata(known.mapping, known.identities, known.partition)
        for warning in metadata.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(json.dumps(counts(metadata)))
        return
    if not known.images or not known.out:
        parser.error("celeba-hq needs --images and --out (or --counts)")
    from rpf_lightning.data.preparation.prepare import prepare_celeba_hq

    _guarded(
        lambda: prepare_celeba_hq(
            known.images, known.mapping, known.identities, known.out,
            partition=known.partition, options=_options(known),
        )
    )  # fmt: skip


def _faces(known: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    from rpf_lightning.data.preparation.prepare import prepare_faces

    _guarded(
        lambda: prepare_faces(
            known.images, known.out, identities=known.identities,
            people_in_folders=known.identities_from_folders, val_fraction=known.val_fraction,
            seed=known.seed, options=_options(known),
        )
    )  # fmt: skip


def _verify(known: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    from rpf_lightning.data.preparation.tables import read_summary, verify

    problems = verify(known.folder, known.images)
    if problems:
        more = f"\nand {len(problems) - 20} more" if len(problems) > 20 else ""
        sys.exit("\n".join(problems[:20]) + more)
    summary = read_summary(Path(known.folder))
    count = summary["counts"]["kept"]
    print(
        f"{known.folder}: {count:,} photos, their people, landmarks, masks and pairs are as prepared; "
        f"sha256 {summary['sha256']}"
    )


def _guarded(prepare: Callable[[], object]) -> None:
    """Turn what the user can do something about into a message and an exit code."""
    from rpf_lightning.data.preparation import DiskFullError, NothingUsableError, StoppedError

    try:
        prepare()
    except (NothingUsableError, DiskFullError, StoppedError) as error:
        sys.exit(f"rpf prepare: {error}")


def _options(known: argparse.Namespace) -> Options:
    from rpf_lightning.data.preparation.options import Options

    return Options(**{field.name: getattr(known, field.name) for field in fields(Options)})
