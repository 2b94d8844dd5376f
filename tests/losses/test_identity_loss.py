"""The identity loss: mean L1 of raw features, with gradients to the prediction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.losses import IdentityLoss


def test_mean_l1_of_raw_features(make_pack: Callable[..., Path]) -> None:
    make_pack()
    torch.manual_seed(0)
    prediction, target = torch.rand(2, 2, 3, 64, 64)
    features = ArcFace()
    expected = (features(prediction) - features(target)).abs().mean()
    assert IdentityLoss()(prediction, target).item() == pytest.approx(expected.item(), rel=1e-6)
    assert features(target).norm(dim=1).min() > 1.5  # raw: not of unit length


def test_cosine_is_what_isc_measures(make_pack: Callable[..., Path]) -> None:
    make_pack()
    prediction, target = torch.rand(2, 2, 3, 64, 64)
    features = ArcFace()
    expected = 1 - F.cosine_similarity(features(prediction), features(target)).mean()
    assert IdentityLoss(norm="cosine")(prediction, target).item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="identity_norm: expected l1 or cosine, got 'l2'"):
        IdentityLoss(norm="l2")


def test_gradient_flows_to_the_prediction_only(make_pack: Callable[..., Path]) -> None:
    make_pack()
    torch.manual_seed(0)
    prediction, target = (x.requires_grad_() for x in torch.rand(2, 2, 3, 64, 64).unbind())
    loss = IdentityLoss()
    loss(prediction, target).backward()
    assert prediction.grad.flatten(1).abs().sum(1).min() > 0
    assert target.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_named_pack(make_pack: Callable[..., Path]) -> None:
    make_pack("one")
    make_pack("two", normalise=True)
    assert IdentityLoss("two").arcface.pack == "two"


def test_half_precision_images_are_taken_in_fp32(make_pack: Callable[..., Path]) -> None:
    make_pack()
    torch.manual_seed(0)
    prediction, target = torch.rand(2, 1, 3, 64, 64).bfloat16()
    value = IdentityLoss()(prediction, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, IdentityLoss()(prediction.float(), target.float()))


@pytest.mark.parametrize("pack", [None, "other"])
def test_missing_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str | None) -> None:
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        IdentityLoss(pack)
    text = str(caught.value)
    for part in (f"Put insightface/models/{pack or 'buffalo_l'}", "RPF_WEIGHTS_DIR", "identity_weight: 0"):
        assert part in text
    assert text.count("identity_weight: 0") == 1


def test_pack_without_recognition_network_names_a_way_out(make_pack: Callable[..., Path]) -> None:
    path = make_pack(side=96)
    with pytest.raises(FileNotFoundError) as caught:
        IdentityLoss()
    text = str(caught.value)
    for part in (
        str(path.parent),
        "another pack, such as buffalo_l",
        "switch the term off: identity_weight: 0",
    ):
        assert part in text


@pytest.mark.weights
@pytest.mark.realdata
@pytest.mark.usefixtures("real_weights")
def test_descending_makes_the_face_that_person(shared: Path) -> None:
    files = sorted((shared / "data" / "celeba_hq_subset" / "images").glob("*.jpg"))[:2]

    def photo(path: Path) -> Tensor:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255

    image, target = photo(files[0]), photo(files[1])
    loss = IdentityLoss()
    assert loss.arcface.pack == "mbf"
    goal = loss.arcface(target)
    before = F.cosine_similarity(loss.arcface(image), goal).item()
    image.requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        loss(image, target).backward()
        optimizer.step()
    after = F.cosine_similarity(loss.arcface(image.detach().clamp(0, 1)), goal).item()
    assert before < 0.3
    assert after > before + 0.3
