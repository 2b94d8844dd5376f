"""The perceptual loss and LPIPS, against torchvision's AlexNet and the formulas."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from rpf_lightning.losses import AlexNetFeatures, PerceptualLoss

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
Save = Callable[[dict[str, Tensor], str], Path]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Write a state dict into the weights folder."""
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))

    def write(state: dict[str, Tensor], name: str = "alexnet_features.pth") -> Path:
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return write


def images(side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, side, side, generator=generator), torch.rand(
        2, 3, side, side, generator=generator
    )


def torchvision_taps(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """The five ReLU outputs of torchvision's own network."""
    with torch.device("meta"):  # its 61 M random numbers would take half a second
        network = torchvision.models.alexnet(weights=None)
    features = network.features.to_empty(device="cpu")
    features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
    taps: list[Tensor] = []
    x = (image - MEAN) / STD
    for layer in features:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            taps.append(x.clone())  # torchvision's ReLUs and pools work in place
    return taps


def test_taps_equal_torchvision(alexnet_state: dict[str, Tensor], save: Save) -> None:
    save(alexnet_state)
    image = images()[0]
    taps, expected = AlexNetFeatures()(image), torchvision_taps(alexnet_state, image)
    assert [tap.shape[1] for tap in taps] == [64, 192, 384, 256, 256]
    for tap, goal in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap, goal)


def test_whole_network_file_is_taken_as_well(alexnet_state: dict[str, Tensor], save: Save) -> None:
    whole = {**alexnet_state, "classifier.1.weight": torch.zeros(4, 4), "classifier.1.bias": torch.zeros(4)}
    save(whole, "alexnet-owt-7be5be79.pth")
    image = images()[0]
    for tap, goal in zip(AlexNetFeatures()(image), torchvision_taps(alexnet_state, image), strict=True):
        torch.testing.assert_close(tap, goal)


def test_explicit_file_goes_before_the_folder(alexnet_state: dict[str, Tensor], save: Save) -> None:
    save({key: torch.zeros_like(value) for key, value in alexnet_state.items()})
    path = save(alexnet_state, "mine.pth")
    assert torch.equal(AlexNetFeatures(str(path)).features[0].weight.data, alexnet_state["features.0.weight"])


def test_weights_are_frozen_and_features_are_fp32_under_autocast(
    alexnet_state: dict[str, Tensor], save: Save
) -> None:
    save(alexnet_state)
    network = AlexNetFeatures()
    assert not any(p.requires_grad for p in network.parameters())
    image = images()[0]
    expected = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        under = network(image)
    assert all(torch.equal(a, b) for a, b in zip(expected, under, strict=True))


@pytest.mark.parametrize("norm", ["mse", "l2"])
def test_norms_equal_their_formulas(alexnet_state: dict[str, Tensor], save: Save, norm: str) -> None:
    save(alexnet_state)
    prediction, target = images()
    prediction[1] = prediction[1] * 0.1  # the samples differ: a mean of roots is not the root of a mean
    expected = 0.0
    for a, b in zip(
        torchvision_taps(alexnet_state, prediction), torchvision_taps(alexnet_state, target), strict=True
    ):
        squares = [(x - y).square().mean().item() for x, y in zip(a, b, strict=True)]
        expected += sum(s if norm == "mse" else s**0.5 for s in squares) / 2
    assert PerceptualLoss(norm)(prediction, target).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("norm", ["mse", "l2"])
def test_gradient_flows_to_the_prediction_only(
    alexnet_state: dict[str, Tensor], save: Save, norm: str
) -> None:
    save(alexnet_state)
    loss = PerceptualLoss(norm)
    prediction, target = (x.requires_grad_() for x in images(32))
    loss(prediction, target).backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None
    assert all(p.grad is None for p in loss.parameters())
    prediction.grad = None
    value = loss(prediction, prediction.detach().clone())
    value.backward()
    assert value.item() < 1e-5
    assert prediction.grad.isfinite().all()  # the root has no derivative at zero


@pytest.mark.parametrize("folder", [True, False])
def test_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    if folder:
        monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("RPF_WEIGHTS_DIR", raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        PerceptualLoss()
    text = str(caught.value)
    for part in ("alexnet-owt-7be5be79.pth", "RPF_WEIGHTS_DIR", "perceptual_weight: 0"):
        assert part in text
    assert (str(tmp_path / "alexnet_features.pth") in text) is folder


def test_missing_file_names_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        PerceptualLoss(weights=str(tmp_path / "absent.pth"))
    text = str(caught.value)
    for part in (
        str(tmp_path / "absent.pth"),
        "Name a file that is there, or none",
        "switch the term off: perceptual_weight: 0",
    ):
        assert part in text


def test_missing_convolution(alexnet_state: dict[str, Tensor], save: Save) -> None:
    del alexnet_state["features.6.weight"]
    path = save(alexnet_state)
    with pytest.raises(ValueError, match=r"features\.6\.weight") as caught:
        AlexNetFeatures()
    assert str(path) in str(caught.value)


@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
def test_lpips_equals_taps_and_heads_by_hand() -> None:
    import lpips

    from rpf_lightning.metrics import LPIPS

    path = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    prediction, target = images()
    prediction = target * 0.8 + prediction * 0.6 - 0.1  # leaves [0, 1]: LPIPS clamps
    network = AlexNetFeatures()
    expected = torch.zeros(2)
    taps = zip(network(prediction.clamp(0, 1)), network(target), strict=True)
    for number, (a, b) in enumerate(taps):
        a, b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        head = heads[f"lin{number}.model.1.weight"]
        expected += ((a - b).square() * head).sum(1).mean((1, 2))
    metric = LPIPS().measure
    torch.testing.assert_close(metric(prediction, target), expected, rtol=1e-3, atol=1e-5)
    assert expected.min() > 0.01
    assert metric(target, target).tolist() == [0, 0]


def shifted(image: Tensor, right: int, down: int) -> Tensor:
    """Independent of the code: each pixel comes from `right` to the left and `down` above, mirrored at the edge."""
    rows = (torch.arange(image.shape[-2]) - down).abs()
    columns = (torch.arange(image.shape[-1]) - right).abs()
    return image[..., rows[:, None], columns]


def test_jitter_shifts_both_images_alike(
    alexnet_state: dict[str, Tensor], save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(alexnet_state)
    plain, jittered = PerceptualLoss(), PerceptualLoss(jitter=4)
    image, target = images()
    asked = []

    def drawn(high: int, size: tuple[int, ...]) -> Tensor:
        asked.append((high, size))
        return torch.tensor([3, 1])

    monkeypatch.setattr(torch, "randint", drawn)
    expected = plain(shifted(image, 3, 1), shifted(target, 3, 1))
    assert not asked  # without jitter nothing is drawn: the random state is as it was
    torch.testing.assert_close(jittered(image, target), expected)
    assert asked == [(4, (2,))]
    assert not torch.isclose(expected, plain(image, target), rtol=1e-4)
    assert jittered(image, image) == 0


def test_jitter_takes_the_grid_out_of_the_gradient(alexnet_state: dict[str, Tensor], save: Save) -> None:
    """With a stride of 4 some places of the grid get larger gradients, always the same ones; shifts make them equal."""
    save(alexnet_state)
    generator = torch.Generator().manual_seed(0)
    image, target = (torch.rand(48, 3, 64, 64, generator=generator) for _ in range(2))

    def unevenness(loss: PerceptualLoss) -> float:
        energy = torch.zeros(64, 64)
        for one, other in zip(image.split(1), target.split(1), strict=True):
            x = one.clone().requires_grad_(True)
            energy += torch.autograd.grad(loss(x, other), x)[0][0].square().sum(0)
        places = energy[16:48, 16:48].reshape(8, 4, 8, 4).mean((0, 2))
        return (places.std() / places.mean()).item()

    torch.manual_seed(0)
    assert unevenness(PerceptualLoss(jitter=4)) < 0.6 * unevenness(PerceptualLoss())


def test_jitter_is_a_number_of_pixels(alexnet_state: dict[str, Tensor], save: Save) -> None:
    save(alexnet_state)
    with pytest.raises(ValueError, match="perceptual_jitter"):
        PerceptualLoss(jitter=0)
