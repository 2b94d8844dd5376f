"""What the tests of the evaluation share: `rpf evaluate` on a prepared folder, folders of results, pairs of noise."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from rpf_lightning.cli import main
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.evaluation.chosen_metrics import image_metrics
from rpf_lightning.evaluation.evaluation_batch import EvaluationBatch
from rpf_lightning.evaluation.measuring import compare
from rpf_lightning.model.resize import resize

PLAIN = ["--lr-size", "16", "--size", "64", "--method", "bicubic"]


def run(prepared, out, *words, split="all"):
    main(["evaluate", "--data", str(prepared), "--split", split, *PLAIN, *words, "--out", str(out)])
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def gts(prepared):
    """The GTs by name, of 64 pixels as they were drawn."""
    photos = PreparedPhotos(prepared)
    return {photos.ids[pair.gt]: photos.photo(pair.gt).image for pair in photos.pairs("all")}


def write_folder(folder, images):
    folder.mkdir()
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / Path(name).with_suffix(".png").name)
    return folder


def noisy(images):
    rng = np.random.default_rng(0)
    return {
        name: np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        for name, image in images.items()
    }


class Pairs(Dataset[EvaluationBatch]):
    """Noise of 32 pixels; the references are near the GT. The name says which noise it is."""

    def __init__(self, count=5, name="gt"):
        self.name, self.modes = name, set()
        self.samples = [self.sample(index) for index in range(count)]

    def sample(self, index):
        generator = torch.Generator().manual_seed(index)
        gt = 0.2 + 0.6 * torch.rand(3, 32, 32, generator=generator)
        noise = torch.randn(2, 3, 32, 32, generator=generator)
        own, other = ((gt + 0.05 * (1 + index) * n).clamp(0.1, 0.9) for n in noise)
        mask = torch.zeros(1, 32, 32)
        mask[:, 8:-8, 8:-8] = 1
        lr = (resize(gt[None], 16).clamp(0, 1) * 255).round()[0] / 255
        names = f"{self.name}{index}", f"own{index}", f"other{index}"
        return EvaluationBatch(lr, gt, mask, own, other, *names)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.modes.add(torch.is_inference_mode_enabled())
        return self.samples[index]

    def fingerprint(self):
        return self.name


def compared(out, pairs, methods, metrics=None, **kwargs):
    """`compare` on pairs of noise."""
    given = {"lr_size": 16, "size": 32, "batch_size": 2, "device": torch.device("cpu"), **kwargs}
    return compare(methods, pairs, out, image_metrics() if metrics is None else metrics, **given)
