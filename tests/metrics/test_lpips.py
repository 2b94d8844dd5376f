"""LPIPS against the lpips package as its users call it, with torchvision's own networks."""

import pickle

import lpips
import pytest
import torch
import torchvision

from rpf_lightning.faces.weights import alexnet_file
from rpf_lightning.metrics import LPIPS
from rpf_lightning.metrics.lpips_network import VGG_FILE


def pictures():
    generator = torch.Generator().manual_seed(0)
    gt, noise = torch.rand(2, 5, 3, 64, 64, generator=generator)
    strength = torch.linspace(0.2, 1.2, 5)[:, None, None, None]
    return gt + strength * (noise - 0.5), gt  # leaves [0, 1]


def features(kind, state):
    """torchvision's own layers with these weights."""
    with torch.device("meta"):  # its millions of random numbers would take seconds
        network = getattr(torchvision.models, kind)(weights=None)
    layers = network.features.to_empty(device="cpu").eval()
    layers.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
    return layers


def package(monkeypatch, net, layers):
    """`lpips.LPIPS` with everything left to it but the download."""

    class Downloaded:
        features = layers

    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.models, name, lambda pretrained: Downloaded)
        model = lpips.LPIPS(net=net, verbose=False)

    def measure(output, gt):
        with torch.no_grad():
            return model(output.clamp(0, 1) * 2 - 1, gt * 2 - 1).flatten()

    return measure


@pytest.fixture
def vgg_state():
    """Random convolutions with the names and shapes of torchvision's VGG16."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        layers = torchvision.models.vgg16(weights=None).features
    state = {}
    for key, value in layers.state_dict().items():
        scale = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
        state[f"features.{key}"] = torch.randn(value.shape, generator=generator) * scale
    return state


def check(net, layers, monkeypatch):
    output, gt = pictures()
    theirs = package(monkeypatch, net, layers)(output, gt)
    metric = LPIPS(net)
    for part in (slice(4), slice(4, 5)):
        assert metric(output[part], gt[part]).item() == pytest.approx(theirs[part].mean().item(), rel=1e-4)
    assert metric.compute().item() == pytest.approx(theirs.double().mean().item(), rel=1e-4)
    assert theirs.min() > 1e-3
    assert theirs.max() > 1.5 * theirs.min()
    metric.reset()
    metric.update(gt, gt)
    assert metric.compute() == 0
    return metric


def test_made_up_alexnet(alexnet_state, tmp_path, monkeypatch):
    torch.save(alexnet_state, tmp_path / "alexnet_features.pth")
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    metric = check("alex", features("alexnet", alexnet_state), monkeypatch)
    assert not metric.higher_is_better
    again = pickle.loads(pickle.dumps(metric))
    output, gt = pictures()
    again.reset()
    again.update(output, gt)
    metric.reset()
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(output, gt)
    assert again.compute() == metric.compute()


def test_made_up_vgg(vgg_state, tmp_path, monkeypatch):
    torch.save(vgg_state, tmp_path / VGG_FILE)
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    check("vgg", features("vgg16", vgg_state), monkeypatch)


def test_making_one_draws_no_random_numbers(alexnet_state, tmp_path):
    torch.save(alexnet_state, tmp_path / "mine.pth")
    torch.manual_seed(0)
    LPIPS(weights=str(tmp_path / "mine.pth"))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_missing_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("RPF_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"alexnet-owt-7be5be79\.pth"):
        LPIPS()
    with pytest.raises(FileNotFoundError) as caught:
        LPIPS("vgg")
    for part in (str(tmp_path / VGG_FILE), "not downloaded", "net='alex'", "RPF_WEIGHTS_DIR"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        LPIPS("vgg", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match="net: expected 'alex' or 'vgg', got 'squeeze'"):
        LPIPS("squeeze")


@pytest.mark.weights
@pytest.mark.usefixtures("real_weights")
def test_real_alexnet(monkeypatch):
    state = torch.load(alexnet_file(), map_location="cpu", weights_only=True)
    state = {key: value for key, value in state.items() if key.startswith("features.")}
    check("alex", features("alexnet", state), monkeypatch)
