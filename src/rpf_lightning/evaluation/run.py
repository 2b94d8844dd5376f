"""`rpf evaluate`: any number of methods on the same pairs of a data set."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rpf_lightning.data import PairsDataModule
from rpf_lightning.data.pairs import evenly
from rpf_lightning.devices import place_of
from rpf_lightning.evaluation.building import KINDS, build_methods
from rpf_lightning.evaluation.chosen_metrics import choose_metrics
from rpf_lightning.evaluation.contact import chosen_places, draw_sheet, picture_row
from rpf_lightning.evaluation.measuring import compare
from rpf_lightning.evaluation.methods import Method, Model, NetworkMethod
from rpf_lightning.evaluation.pairs import choose_pairs, pairs_for
from rpf_lightning.evaluation.paper_tables import TABLES
from rpf_lightning.evaluation.progress import sole_evaluation
from rpf_lightning.evaluation.report import write_results
from rpf_lightning.evaluation.tables import table_for_console
from rpf_lightning.metrics import PerImageMetric

DEFAULT_METHODS = (
    "bicubic", "model-none:without_reference", "model:with_reference", "model-swap:other_person",
)  # fmt: skip
DATA_CLASS = "rpf_lightning.data.ReferencePairsDataModule"
WIDTH = 200  # of the table in a file or a pipe, where rich would take 80


def evaluate(
    model_dir: str | None,
    data: PairsDataModule,
    out: str,
    batch_size: int = 8,
    grid_images: int = 6,
    lpips: bool | None = None,
    isc: bool | None = None,
    *,
    methods: Sequence[str | Method] = (),
    split: str | None = None,
    isc_pack: str | None = None,
    landmarks: str | None = None,
    contact_images: int = 4,
    workers: int = 0,
    device: str = "auto",
    table: int = 1,
    metrics: Mapping[str, PerImageMetric] | None = None,
) -> dict[str, Any]:
    """Compare methods on the same pairs.

    The default, the validation part, shows people who were held out of training on the same data. Of other splits
    only who trained the models can say that.

    Args:
        model_dir: Directory of the models that name none; may be None where all do.
        data: Where the pairs come from; sides that it leaves open are the first model's.
        out: Folder for `results.json`, `table.md`, `table.tex`, `per_image.csv` and pictures.
        batch_size: Pairs per step.
        grid_images: Faces in `grid.png`, of the first model with its own reference.
        lpips: Measure LPIPS (AlexNet). True: its weights are needed. None: where they are here, without a download.
        isc: Measure ISC to the GT and to the reference with an insightface pack, likewise. insightface's models are
            for non-commercial research only.
        methods: See `rpf_lightning.evaluation.building`; gaps are taken to the first. None at all: bicubic and the
            model without, with its own and with another person's reference.
        split: Which pairs: a split of the prepared folder, such as "paper_test" or "all", or a part of the
            datamodule's own, "train", "val" or "test". None is "val".
        isc_pack: Name of the insightface pack.
        landmarks: Measure the landmark distance: "face-alignment" or "onnx:PATH".
        contact_images: Faces on each of `worst.png`, `median.png` and `best.png`.
        workers: Processes that load.
        device: A torch device, such as "cuda:1", or "auto".
        table: Number of the paper's table whose numbers stand beside ours: 1, or 2 for models that were trained
            for its rows.
        metrics: Further metrics by name.

    Returns:
        The contents of `results.json`.

    Raises:
        FileNotFoundError: If data, models or weights that were asked for are missing.
        ValueError: If methods, sides or results do not fit, see `compare`.
    """
    default = (
        DEFAULT_METHODS if data.reference == "photo" else DEFAULT_METHODS[:3]
    )  # no photo, no other person
    built = build_methods(methods or default, model_dir)
    place = place_of(device)
    if table not in TABLES:
        raise ValueError(f"table: expected {' or '.join(map(str, TABLES))}, got {table}")
    for name, count in (
        ("grid_images", grid_images),
        ("contact_images", contact_images),
        ("workers", workers),
    ):
        if count < 0:
            raise ValueError(f"{name}: expected 0 or more, got {count}")
    networks_given = [m.model for m in built if isinstance(m, NetworkMethod)]
    for side in ("lr_size", "size"):  # a GCFSR has no LR side
        known = (getattr(network, side) for network in networks_given if hasattr(network, side))
        setattr(data, side, getattr(data, side) or next(known, None))
    chosen, said = choose_pairs(data, split)
    dataset = pairs_for(chosen, built)
    base = dataset.base
    measured, of_networks = choose_metrics(lpips, isc, isc_pack, landmarks, place)
    if twice := measured.keys() & (metrics or {}).keys():
        raise ValueError(f"metrics: {sorted(twice)[0]} is measured already; expected another name")
    measured |= metrics or {}
    extra: dict[str, Any] = {
        "data": type(data).__name__, "split": said, "val_fraction": data.val_fraction,
        "photos_sha256": base.photos.sha256,
        "degradation": data.degradation, "seed": data.seed, "mask_reference": data.mask_reference,
        "reference": data.reference, **of_networks,
    }  # fmt: skip
    if model_dir:
        extra["model_dir"] = Path(model_dir).name
    own = next((m for m in built if isinstance(m, Model) and m.given == "own"), None)
    with sole_evaluation(Path(out)):
        results = compare(
            built, dataset, out, measured, lr_size=base.lr_size, size=base.size, batch_size=batch_size, workers=workers,
            device=place, protocol_extra=extra,
        )  # fmt: skip
        shown = [] if own is None else evenly(list(range(len(dataset))), grid_images)
        rows = [picture_row(own.model, dataset[i]) for i in shown] if own is not None else []
        metric, places = chosen_places(results, (own or built[-1]).name, contact_images)
        sheets = {name: draw_sheet(built, dataset, of, metric, place) for name, of in places.items() if of}
        files = write_results(Path(out), results, rows, sheets, TABLES[table])
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table_for_console(results))
    for file in files:
        console.print(f"{file}", soft_wrap=True, highlight=False)
    return results


def main(words: Sequence[str]) -> None:
    """Run `rpf evaluate`.

    Args:
        words: The command line after it.

    Raises:
        SystemExit: After a message on stderr, if an argument is wrong or a file does not fit.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(prog="rpf evaluate", description=evaluate.__doc__)
    parser.add_argument("--config", action=ActionConfigFile)
    texts: dict[str, tuple[Any, Any, str]] = {
        "model_dir": (str | None, None, "directory of the models that name none"),
        "methods": (
            list[str],
            [],
            "kind[:NAME[=ARGUMENT]], kind: " + ", ".join(KINDS) + "; --method adds one",
        ),
        "split": (
            str | None,
            None,
            "pairs of the prepared folder: val, test, paper_test, all, ...; default val",
        ),
        "lr_size": (int | None, None, "side of the LR; default the first model's"),
        "size": (int | None, None, "side of the faces; default the first model's"),
        "batch_size": (int, 8, "pairs per step"),
        "grid_images": (int, 6, "faces in grid.png"),
        "contact_images": (int, 4, "faces on each of worst.png, median.png and best.png"),
        "lpips": (bool | None, None, "LPIPS with AlexNet; default: where its weights are here"),
        "isc": (bool | None, None, "ISC with an insightface pack; default: where one is here"),
        "isc_pack": (str | None, None, "name of the insightface pack"),
        "landmarks": (str | None, None, "landmark distance: face-alignment or onnx:PATH"),
        "workers": (int, 0, "processes that load"),
        "device": (str, "auto", "a torch device, such as cuda:1; auto is the GPU where there is one"),
        "table": (int, 1, "the paper's table whose numbers stand beside ours: 1 or 2"),
    }
    for name, (kind, default, text) in texts.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--out", type=str, required=True, help="folder of the results")
    parser.add_subclass_arguments(
        PairsDataModule, "data", help="a prepared folder, or a datamodule with --data.init_args"
    )
    words, added = _plain_words(words, list(texts))
    config = parser.parse_args(words)
    try:
        data = parser.instantiate(config).data
        if data is None:
            raise ValueError("--data: expected a prepared folder or a datamodule")
        data.lr_size, data.size = config.lr_size or data.lr_size, config.size or data.size
        evaluate(
            config.model_dir, data, config.out, config.batch_size, config.grid_images, config.lpips, config.isc,
            methods=[*config.methods, *added], split=config.split, isc_pack=config.isc_pack,
            landmarks=config.landmarks, contact_images=config.contact_images, workers=config.workers,
            device=config.device, table=config.table,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _plain_words(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Translate the short form: `--lr-size`, `--lpips` without a value, `--data DIR`, and `--method` taken out."""
    plain: list[str] = []
    methods: list[str] = []
    rest = [part for word in words for part in _split(word)]
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        value = rest[0] if rest and not rest[0].startswith("--") else None
        if word == "--method" and value is not None:
            methods.append(rest.pop(0))
        elif word in ("--lpips", "--isc") and value is None:
            plain += [word, "true"]
        elif word == "--data" and value is not None and not re.fullmatch(r"[\w.]*DataModule", value):
            folder = rest.pop(0)
            plain += [word, DATA_CLASS, "--data.init_args.root", folder]
        else:
            plain.append(f"--{name}" if word.startswith("--") and name in options else word)
    return plain, methods


def _split(word: str) -> list[str]:
    """`--option=value` in two words; not `--data.x=value`, which jsonargparse reads itself."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and re.fullmatch(r"--[\w-]+", name) else [word]
