"""ArcFace as a torch module, against onnxruntime; the face crop, against PIL."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from rpf_lightning.faces.arcface import ArcFace, crop_face

MakePack = Callable[..., Path]


def faces(count: int = 2, side: int = 128) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def run_onnx(path: Path, crop: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.cat([torch.from_numpy(session.run(None, {name: c[None].numpy()})[0]) for c in crop])


@pytest.mark.parametrize("side", [32, 64, 100, 128, 256, 512])
def test_crop_equals_pil(side: int) -> None:
    image = faces(1, side)
    box = (0.1265 * side, 0.1195 * side, 0.8754 * side, 0.8684 * side)
    expected = torch.stack(
        [
            torch.from_numpy(
                np.array(Image.fromarray(c.numpy()).resize((112, 112), Image.Resampling.BICUBIC, box=box))
            )
            for c in image[0]
        ]
    )
    torch.testing.assert_close(crop_face(image)[0], expected, rtol=0, atol=2e-6)


def test_crop_is_fp32_under_autocast_and_differentiable() -> None:
    image = faces(1, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        crop = crop_face(image)
    assert torch.equal(crop, crop_face(image))
    crop.sum().backward()
    assert image.grad[..., 32, 32].min() > 0
    assert image.grad[..., 0, 0].abs().max() == 0  # outside the box


@pytest.mark.parametrize("inside", [True, False])
def test_equals_onnxruntime(make_pack: MakePack, inside: bool) -> None:
    path = make_pack(normalise=inside)
    network = ArcFace()
    image = faces()
    crop = crop_face(image) * 255
    expected = run_onnx(path, crop if inside else (crop - 127.5) / 127.5)
    assert network.normalise is not inside
    assert (network(image) - expected).abs().max() < 1e-4
    assert expected.std(0).max() > 0.01  # the features tell the two images apart


def test_normalisation_inside_or_outside_makes_no_difference(make_pack: MakePack) -> None:
    make_pack("inside", normalise=True)
    make_pack("outside", normalise=False)
    torch.testing.assert_close(ArcFace("inside")(faces()), ArcFace("outside")(faces()), rtol=0, atol=1e-4)


def test_gradients_reach_the_image_and_no_weight(make_pack: MakePack) -> None:
    make_pack()
    network = ArcFace()
    image = faces().requires_grad_()
    network(image).square().sum().backward()
    assert image.grad[..., 20:108, 20:108].abs().mean() > 0
    assert not any(p.requires_grad for p in network.parameters())
    assert len(list(network.parameters())) > 0


def test_stays_in_eval_mode(make_pack: MakePack) -> None:
    make_pack()
    network = torch.nn.Sequential(ArcFace())
    expected = network(faces())
    state = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    assert network.training
    assert not any(module.training for module in network[0].modules())
    assert torch.equal(network(faces()), expected)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_fp32_under_autocast(make_pack: MakePack) -> None:
    make_pack()
    network = ArcFace()
    with torch.autocast("cpu", torch.bfloat16):
        features = network(faces())
    assert torch.equal(features, network(faces()))


def test_recognition_network_is_found_among_others(make_pack: MakePack) -> None:
    make_pack(side=96, file="a_gender.onnx")
    make_pack(file="w_recognition.onnx")
    network = ArcFace()
    assert (network.pack, network.file) == ("tiny", "w_recognition.onnx")


def test_pack_without_recognition_network(make_pack: MakePack) -> None:
    path = make_pack(side=96)
    with pytest.raises(FileNotFoundError, match="112") as caught:
        ArcFace()
    assert str(path.parent) in str(caught.value)


@pytest.mark.weights
def test_real_pack_equals_onnxruntime(real_weights: Path) -> None:
    network = ArcFace("mbf")
    image = faces()
    expected = run_onnx(
        real_weights / "insightface" / "models" / "mbf" / network.file, crop_face(image) * 255
    )
    assert network.file == "rec_mbf_128.onnx"
    assert (network(image) - expected).abs().max() < 1e-4
    assert expected.norm(dim=1).min() > 1
