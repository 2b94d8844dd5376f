"""`rpf evaluate`: a model directory against its baselines on the validation people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from rpf_lightning.data import PairsDataModule
from rpf_lightning.evaluation.compare import Identity, Perceptual, evaluate
from rpf_lightning.evaluation.report import table_for_console
from rpf_lightning.model import RPFModel


def evaluate_model_dir(
    model_dir: str,
    data: PairsDataModule,
    out: str,
    batch_size: int = 8,
    grid_images: int = 6,
    lpips: bool = False,
    isc: bool = False,
) -> dict[str, Any]:
    """Compare bicubic, no reference, the own and another person's reference on people never trained on.

    Args:
        model_dir: The model directory.
        data: Where the validation pairs come from; sides that it leaves open are the model's.
        out: Folder for `results.json`, `table.md` and `grid.png`.
        batch_size: Pairs per step.
        grid_images: Faces in the grid.
        lpips: Measure LPIPS (AlexNet); needs AlexNet's weights.
        isc: Measure ISC; needs an insightface pack.

    Returns:
        The contents of `results.json`.

    Raises:
        FileNotFoundError: If the model or weights that were asked for are missing.
    """
    model = RPFModel.from_pretrained(model_dir)
    data.lr_size, data.size = data.lr_size or model.lr_size, data.size or model.size
    extra: dict[str, Any] = {
        "data": type(data).__name__,
        "model_dir": Path(model_dir).name,
        "degradation": data.degradation,
    }
    perceptual: Perceptual | None = None
    identity: Identity | None = None
    if lpips:
        from rpf_lightning.metrics.perceptual import LPIPS

        perceptual = LPIPS()
        extra["lpips_network"] = "AlexNet, heads of lpips v0.1, images clamped to [0, 1]"
    if isc:
        from rpf_lightning.faces.identity import BOX_X, BOX_Y, ArcFace

        identity = arcface = ArcFace()
        extra["isc_network"] = f"{arcface.pack}/{arcface.file}"
        extra["isc_crop"] = f"x {BOX_X}, y {BOX_Y} of the aligned image, antialiased to 112"
    results = evaluate(
        model, data.val_dataset(), data.val_dataset(other_person=True), out,
        batch_size=batch_size, grid_images=grid_images, perceptual=perceptual, identity=identity,
        protocol_extra=extra,
    )  # fmt: skip
    console = Console()
    console.print(table_for_console(results))
    for name in ("results.json", "table.md", "grid.png"):
        console.print(f"{Path(out) / name}", soft_wrap=True, highlight=False)
    return results
