"""Small work for every long command: a drawn album, a list, photos with small faces, a model, a curriculum."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from rpf_lightning import RPFModel
from rpf_lightning.drawn_faces.photo import render_photo

NETWORK = {"lr_size": 16, "scale": 4, "channels": 4, "width": 1 / 64, "residual": True}
ENHANCE = (
    "enhance photos --reference portrait.png --face-models dlib --mask-model template --model-dir model --out"
)
COMMANDS = {
    "prepare": (
        "prepare faces --images album --landmarks landmarks.csv --labels labels --label-scheme bisenet "
        "--identities identities.csv --no-embeddings --num-workers 0 --batch-size 4 --out"
    ),
    "curriculum": "curriculum --config curriculum/curriculum.yaml --model-dir",
    "evaluate": (
        "evaluate --data prepared --split all --lr-size 16 --size 64 --method bicubic --method model:small=model "
        "--batch-size 1 --grid-images 4 --contact-images 4 --out"
    ),
    "enhance": ENHANCE,
    "enhance --aligned --csv": "enhance --aligned --csv list.csv --model-dir model --batch-size 1 --out",
    "export": "export model --format torch --out",
}
"""Name -> words of `rpf`; the place of the results follows."""


def write_album(folder: Path, people: int, each: int, side: int = 64) -> None:
    """Draw people with every annotation: `album/`, `labels/`, `landmarks.csv`, `identities.csv`."""
    for name in ("album", "labels"):
        (folder / name).mkdir(parents=True)
    identities: list[Sequence[object]] = [("file", "identity")]
    landmarks: list[Sequence[object]] = [("file", *(f"{axis}{i}" for i in range(68) for axis in "xy"))]
    for person in range(people):
        for shot in range(each):
            drawn, name = render_photo(person, shot, side), f"{person}-{shot}.png"
            Image.fromarray(drawn.image).save(folder / "album" / name)
            Image.fromarray(drawn.parsing).save(folder / "labels" / name)
            identities.append((name, f"p{person}"))
            landmarks.append((name, *np.round(drawn.landmarks.ravel(), 3)))
    for name, rows in (("identities", identities), ("landmarks", landmarks)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def write_list(folder: Path, count: int) -> None:
    """`list.csv`: photos of the album at 16 pixels, each with itself as its reference, in turn."""
    (folder / "small").mkdir()
    photos = sorted((folder / "album").iterdir())
    rows = ["lr,reference,name"]
    for number in range(count):
        photo = photos[number % len(photos)]
        with Image.open(photo) as image:
            image.resize((16, 16), Image.Resampling.BICUBIC).save(folder / "small" / f"{number:04d}.png")
        rows.append(f"small/{number:04d}.png,album/{photo.name},{number:04d}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_photos(folder: Path, count: int) -> None:
    """`photos/` with small faces (NASA's photo of Eileen Collins, darker and darker) and `portrait.png`, mirrored."""
    from skimage.data import astronaut  # of the extra dev

    (folder / "photos").mkdir()
    head = Image.fromarray(astronaut()).crop((100, 0, 356, 256))
    head.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((512, 512)).save(folder / "portrait.png")
    small = np.asarray(head.resize((56, 56), Image.Resampling.BICUBIC), np.float64)
    for number in range(count):
        pixels = (small * (1 - 0.3 * number / count)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:04d}.png")


def write_model(folder: Path) -> None:
    """`model/`: an untrained network, 16 -> 64."""
    torch.manual_seed(0)
    RPFModel(**NETWORK).save_pretrained(folder / "model")


def write_curriculum(folder: Path) -> None:
    """`curriculum/`: three stages, a joint fit of both blocks, on drawn faces."""
    trainer = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 4, "limit_train_batches": 3, "limit_val_batches": 1,
        "num_sanity_val_steps": 0, "enable_model_summary": False, "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }  # fmt: skip
    data = {
        "class_path": "rpf_lightning.data.SyntheticFacesDataModule",
        "init_args": {"people": 6, "photos_each": 2, "batch_size": 2, "val_fraction": 0.34},
    }
    off = {"perceptual_weight": 0, "identity_weight": 0}
    stages = {
        "refinement": ("RefinementStage", {"input": "lr", **off}),
        "warping": ("WarpingStage", {"flow_weight": 0.02}),
        "synthesis": ("SynthesisStage", {"adversarial_weight": 0}),
        "joint": ("JointStage", off),
    }
    (folder / "curriculum").mkdir()
    for name, (stage, arguments) in stages.items():
        model = {"class_path": f"rpf_lightning.stages.{stage}", "init_args": arguments}
        content = {"seed_everything": 0, "trainer": trainer, "model": model, "data": data}
        (folder / "curriculum" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    fits = [
        {"stage": "refinement", "block": 1, "file": "refinement.yaml"},
        {"stage": "warping", "block": 1, "file": "warping.yaml"},
        {"stage": "synthesis", "block": 1, "file": "synthesis.yaml"},
        {"stage": "joint", "first": 1, "last": 2, "file": "joint.yaml"},
    ]
    content = {"model_dir": "model", "network": NETWORK, "fits": fits}
    (folder / "curriculum" / "curriculum.yaml").write_text(yaml.safe_dump(content))
