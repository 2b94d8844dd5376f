"""The model that comes with the package: found offline, what its card says, and that it does its work."""

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from rpf_lightning import RPFModel
from rpf_lightning.data.pairing import split_by_identity
from rpf_lightning.drawn_faces.photo import render_photo
from rpf_lightning.faces.labels import facial_mask
from rpf_lightning.metrics import lr_consistency, psnr, psnr_face
from rpf_lightning.model import storage
from rpf_lightning.model.resize import resize, resize_mask

NAME = "celeba-hq-16to128"
FOLDER = storage.PRETRAINED / NAME


@pytest.fixture(scope="module")
def model() -> RPFModel:
    return RPFModel.from_pretrained(NAME)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]


def test_it_is_found_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_hub(name: str) -> Path:
        raise AssertionError(f"asked the hub for {name}")

    monkeypatch.setattr(storage, "_from_hub", no_hub)
    monkeypatch.chdir(tmp_path)
    assert storage.pretrained_names() == [NAME]
    model = RPFModel.from_pretrained(NAME)
    assert (model.lr_size, model.size) == (16, 128)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    (tmp_path / NAME).mkdir()  # of results, say
    assert RPFModel.from_pretrained(NAME).size == 128
    # a model directory of that name comes first
    RPFModel(lr_size=16, scale=2, channels=4, width=1 / 64).save_pretrained(tmp_path / NAME)
    assert RPFModel.from_pretrained(NAME).size == 32


@pytest.mark.parametrize("name", ["../pretrained/celeba-hq-16to128", "", "celeba-hq"])
def test_other_names_are_no_models_of_the_package(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def hub(name: str, _: storage.Hub) -> Path:
        asked.append(name)
        raise FileNotFoundError(name)

    monkeypatch.setattr(storage, "_from_hub", hub)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        storage.load(name)
    assert asked == ([name] if name else [])  # an empty name is this folder, which is no model


def test_the_card_is_that_of_the_file() -> None:
    weights = (FOLDER / storage.WEIGHTS_FILE).read_bytes()
    assert len(weights) < 30e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(weights).hexdigest() in card
    for word in ("non-commercial", "consent", "identification", "CelebA-HQ", "Failure"):
        assert word in card
    with safe_open(FOLDER / storage.WEIGHTS_FILE, "pt") as file:
        parameters = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - no mapping
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    stated = re.search(r"(\d+\.\d) M parameters", card)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(parameters / 1e6, abs=0.05)


def test_its_file_is_what_half_and_save_pretrained_write(tmp_path: Path) -> None:
    """But for the checksum, which is younger than the file."""
    RPFModel.from_pretrained(NAME).half().save_pretrained(tmp_path)
    assert (tmp_path / storage.CONFIG_FILE).read_bytes() == (FOLDER / storage.CONFIG_FILE).read_bytes()
    hashes = [storage.weights_hash(storage.read_weights(folder)) for folder in (tmp_path, FOLDER)]
    assert hashes[0] == hashes[1]


def test_it_adds_details_to_drawn_faces_without_contradicting_the_lr(model: RPFModel) -> None:
    """It was trained on photos; faces that are drawn are foreign to it, but the own reference still helps."""
    rows = []
    for person in range(6):
        gt, reference = (render_photo(10_000 + person, number, 128) for number in (0, 1))
        other = render_photo(10_000 + (person + 1) % 6, 1, 128)
        mask, other_mask, gt_mask = (
            torch.from_numpy(facial_mask(photo.parsing, "bisenet").astype(np.float32))[None, None]
            for photo in (reference, other, gt)
        )
        y, lr = tensor(gt.image), resize(tensor(gt.image), 16).clamp(0, 1)
        with torch.no_grad():
            output = model(lr, tensor(reference.image), mask)
            others = [model(lr), model(lr, tensor(other.image), other_mask)]
        assert lr_consistency(output, lr).item() > 25
        images = [output, *others, resize(lr, 128).clamp(0, 1)]
        rows.append(
            [psnr(output, y) - psnr(images[-1], y), *(psnr_face(image, y, gt_mask) for image in images)]
        )
    gain, own, none, other_person, bicubic = np.mean(rows, axis=0).ravel()
    assert gain > 0
    assert own > max(none, other_person) + 0.1
    assert none > bicubic


@pytest.mark.realdata
def test_on_real_people_the_own_reference_wins(model: RPFModel, shared: Path) -> None:
    """People of the validation part alone, which the model was not trained on."""
    folder = shared / "data" / "celeba_hq_subset"
    with (folder / "identities.csv").open(newline="") as file:
        rows = sorted((row["file"], row["identity"]) for row in csv.DictReader(file))
    held_out = split_by_identity([identity for _, identity in rows], 0.15, 0)[1]
    people: dict[str, list[str]] = {}
    for index in held_out:
        people.setdefault(rows[index][1], []).append(Path(rows[index][0]).stem)
    assert (len(people), len(held_out)) == (133, 389)  # as in the folder that it was trained on
    pairs = [photos[:2] for photos in people.values()][::10]
    assert len(pairs) >= 10

    def read(name: str) -> tuple[Tensor, Tensor]:
        image = resize(tensor(np.asarray(Image.open(folder / "images" / f"{name}.jpg").convert("RGB"))), 128)
        labels = np.asarray(Image.open(folder / "labels" / f"{name}.png"))
        mask = torch.from_numpy(facial_mask(labels, "celebamask-hq").astype(np.float32))[None, None]
        return image.clamp(0, 1), resize_mask(mask, 128)

    gts, references = (
        [torch.cat(tensors) for tensors in zip(*(read(pair[which]) for pair in pairs), strict=True)]
        for which in (0, 1)
    )
    lr = resize(gts[0], 16).clamp(0, 1)
    with torch.no_grad():
        own, other = (model(lr, r, m) for r, m in (references, [t.roll(1, 0) for t in references]))
    enlarged = resize(lr, 128).clamp(0, 1)
    assert psnr(own, gts[0]).mean() > psnr(enlarged, gts[0]).mean() + 0.3
    faces = [psnr_face(image, *gts).mean() for image in (own, other, enlarged)]
    assert faces[0] > faces[1] + 0.2
    assert faces[0] > faces[2] + 0.5
