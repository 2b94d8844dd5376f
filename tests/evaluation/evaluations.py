"""`rpf evaluate` on the prepared folder of the tests, and folders of results for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data.prepared_photos import PreparedPhotos

PLAIN = ["--lr-size", "16", "--size", "64", "--method", "bicubic"]


def run(prepared: Path, out: Path, *words: str, split: str = "all") -> dict[str, Any]:
    main(["evaluate", "--data", str(prepared), "--split", split, *PLAIN, *words, "--out", str(out)])
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def gts(prepared: Path, split: str = "all") -> dict[str, np.ndarray]:
    """The GTs by name, of 64 pixels as they were drawn."""
    photos = PreparedPhotos(prepared)
    return {photos.ids[pair.gt]: photos.photo(pair.gt).image for pair in photos.pairs(split)}


def write_folder(folder: Path, images: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / Path(name).with_suffix(".png").name)
    return folder


def noisy(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        for name, image in images.items()
    }
