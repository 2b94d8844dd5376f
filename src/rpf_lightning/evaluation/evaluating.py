"""`rpf evaluate`: any number of methods on the same pairs of a data set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rpf_lightning.data import PairsDataModule, ReferencePairsDataModule
from rpf_lightning.data.pairs_datamodule import evenly
from rpf_lightning.devices import place_of
from rpf_lightning.evaluation.building import build_methods
from rpf_lightning.evaluation.chosen_metrics import choose_metrics
from rpf_lightning.evaluation.evaluation_pairs import choose_pairs, pairs_for
from rpf_lightning.evaluation.measuring import compare
from rpf_lightning.evaluation.methods import Method, Model, NetworkMethod
from rpf_lightning.evaluation.paper_tables import TABLES
from rpf_lightning.evaluation.progress import sole_evaluation
from rpf_lightning.evaluation.result_files import chosen_places, draw_sheet, picture_row, write_results
from rpf_lightning.evaluation.result_tables import table_for_console
from rpf_lightning.metrics import PerImageMetric

DEFAULT_METHODS = (
    "bicubic", "model-none:without_reference", "model:with_reference", "model-swap:other_person",
)  # fmt: skip
WIDTH = 200  # of the table in a file or a pipe, where rich would take 80


def evaluate(
    *,
    data: str | PairsDataModule,
    out: str,
    model_dir: str | None = None,
    methods: list[str] | list[Method] | None = None,
    split: str | None = None,
    lr_size: int | None = None,
    size: int | None = None,
    batch_size: int = 8,
    grid_images: int = 6,
    contact_images: int = 4,
    lpips: bool | None = None,
    isc: bool | None = None,
    pack: str | None = None,
    landmark_model: str | None = None,
    num_workers: int = 0,
    device: str = "auto",
    table: int = 1,
    metrics: Mapping[str, PerImageMetric] | None = None,
) -> dict[str, Any]:
    """Compare methods on the same pairs.

    The default, the validation part, shows people who were held out of training on the same data. Of other splits
    only who trained the models can say that. insightface's models are for non-commercial research only.

    Args:
        data: A prepared folder, or a datamodule with --data.init_args.
        out: Folder for results.json, table.md, table.tex, per_image.csv and pictures.
        model_dir: Directory or name of the models that name none.
        methods: KIND[:NAME[=ARGUMENT]], see docs/evaluation.md; gaps are taken to the first. None at all: bicubic and
            the model without, with its own and with another person's reference.
        split: Pairs of the prepared folder, such as paper_test or all, or train, val, test; left out: val.
        lr_size: Side of the LR; left out: the data's own, else the first model's.
        size: Side of the faces, likewise.
        batch_size: Pairs per step.
        grid_images: Faces in grid.png, of the first model with its own reference.
        contact_images: Faces on each of worst.png, median.png and best.png.
        lpips: Measure LPIPS with AlexNet; left out: where its weights are here.
        isc: Measure ISC to the GT and to the reference; left out: where an insightface pack is here.
        pack: Name of the insightface pack.
        landmark_model: Measure the landmark distance: face-alignment, dlib, onnx:PATH or my_module.MyLandmarks.
        num_workers: Processes that load.
        device: A torch device, such as cuda:1; auto is the GPU where there is one.
        table: The paper's table whose numbers stand beside ours: 1, or 2 for models trained for its rows.
        metrics: Further metrics by name.

    Returns:
        The contents of `results.json`.

    Raises:
        FileNotFoundError: If data, models or weights that were asked for are missing.
        ValueError: If methods, sides or results do not fit, see `compare`.
    """
    if isinstance(data, str):
        data = ReferencePairsDataModule(root=data)
    data.lr_size, data.size = lr_size or data.lr_size, size or data.size
    default = DEFAULT_METHODS[: None if data.reference == "photo" else 3]  # no photo, no other person
    built = build_methods(methods or default, model_dir)
    place = place_of(device)
    if table not in TABLES:
        raise ValueError(f"table: expected {' or '.join(map(str, TABLES))}, got {table}")
    counts = {"grid_images": grid_images, "contact_images": contact_images, "num_workers": num_workers}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name}: expected 0 or more, got {count}")
    networks_given = [m.model for m in built if isinstance(m, NetworkMethod)]
    for side in ("lr_size", "size"):  # a GCFSR has no LR side
        known = (getattr(network, side) for network in networks_given if hasattr(network, side))
        setattr(data, side, getattr(data, side) or next(known, None))
    chosen, said = choose_pairs(data, split)
    dataset = pairs_for(chosen, built)
    base = dataset.base
    measured, of_networks = choose_metrics(lpips, isc, pack, landmark_model, place)
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
            built, dataset, out, measured, lr_size=base.lr_size, size=base.size, batch_size=batch_size,
            workers=num_workers, device=place, protocol_extra=extra,
        )  # fmt: skip
        shown = evenly(list(range(len(dataset))), grid_images)
        rows = [picture_row(own.model, dataset[i]) for i in shown] if own is not None else []
        metric, places = chosen_places(results, (own or built[-1]).name, contact_images)
        sheets = {name: draw_sheet(built, dataset, of, metric, place) for name, of in places.items() if of}
        files = write_results(Path(out), results, rows, sheets, TABLES[table])
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table_for_console(results))
    for file in files:
        console.print(f"{file}", soft_wrap=True, highlight=False)
    return results
