"""The torchmetrics classes: means over all images of what the functions give."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from rpf_lightning.metrics import (
    ISC,
    PSNR,
    SSIM,
    DetailError,
    LandmarkDistance,
    LRConsistency,
    PSNRFace,
    ReferenceISC,
    detail_error,
    isc,
    lr_consistency,
    psnr,
    psnr_face,
    ssim,
)

COUNT, SIDE, LR_SIDE = 7, 32, 8
WITHOUT_FACE = 4


def pictures(seed, side=SIDE):
    """Smooth pictures with noise that differs in strength, inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(COUNT, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    strength = torch.linspace(0.05, 0.4, COUNT)[:, None, None, None]
    return (0.2 + 0.4 * smooth + strength * torch.rand(COUNT, 3, side, side, generator=generator)).clamp(0, 1)


def everything():
    mask = (pictures(5)[:, :1] > 0.5).float()
    mask[WITHOUT_FACE] = 0
    gt = pictures(1)
    strength = torch.linspace(0.1, 1.0, COUNT)[:, None, None, None]
    output = gt + strength * (pictures(2) - gt) * 1.5 - 0.1  # leaves [0, 1]
    return {"output": output, "gt": gt, "mask": mask, "lr": pictures(3, LR_SIDE), "reference": pictures(4)}


def in_batches(data, *sizes):
    start = 0
    for size in sizes:
        yield {name: tensor[start : start + size] for name, tensor in data.items()}
        start += size


def flat_features(image):
    """The mean colours of the quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1) - 0.4


CASES = {
    "psnr": (PSNR, lambda of: psnr(of["output"], of["gt"])),
    "psnr_face": (PSNRFace, lambda of: psnr_face(of["output"], of["gt"], of["mask"])),
    "ssim": (SSIM, lambda of: ssim(of["output"], of["gt"])),
    "lr_consistency": (LRConsistency, lambda of: lr_consistency(of["output"], of["lr"])),
    "detail_error": (DetailError, lambda of: detail_error(of["output"], of["gt"], of["mask"], LR_SIDE)),
    "isc": (lambda: ISC(flat_features), lambda of: isc(of["output"], of["gt"], flat_features)),
    "reference_isc": (
        lambda: ReferenceISC(flat_features), lambda of: isc(of["output"], of["reference"], flat_features)
    ),
}  # fmt: skip
FACE = ("psnr_face", "detail_error")


def collection(**kwargs):
    return MetricCollection({name: make() for name, (make, _) in CASES.items()}, **kwargs)


def expected(name, data):
    """By the function, for every image that has a value."""
    return [value for value in CASES[name][1](data).tolist() if not math.isnan(value)]


@pytest.mark.parametrize("split", [(7,), (4, 2, 1)], ids=str)
def test_mean_over_images_by_other_means(split):
    """A collection hands each metric what it asks for."""
    data, metrics = everything(), collection(prefix="val/")
    for batch in in_batches(data, *split):
        metrics.update(**batch)
    values, single = metrics.compute(), dict(metrics.items(keep_base=True))
    assert sorted(values) == sorted(f"val/{name}" for name in CASES)
    for name, metric in single.items():
        wanted = expected(name, data)
        assert values[f"val/{name}"].item() == pytest.approx(np.mean(wanted), rel=1e-5)
        assert (metric.count.item(), metric.missing.item()) == ((6, 1) if name in FACE else (7, 0))
        assert np.ptp(wanted) > 1e-3  # so that an image too much or too little shows
        assert metric.higher_is_better is {"detail_error": False, "reference_isc": None}.get(name, True)


def test_collection_does_not_merge_metrics_that_begin_alike():
    # after the first batch torchmetrics makes one metric of those whose states are equal
    data = everything()
    data["mask"][:2] = 0
    metrics = MetricCollection({"a": PSNRFace(), "b": DetailError(), "c": PSNR(), "d": LRConsistency()})
    same = {**{name: tensor[:2] for name, tensor in data.items()}, "output": data["gt"][:2]}
    metrics.update(**{**same, "lr": data["gt"][:2]})  # no face: NaN twice; equal pictures: 100 dB twice
    assert [len(group) for group in metrics.compute_groups.values()] == [1] * 4
    rest = {name: tensor[2:4] for name, tensor in data.items()}
    metrics.update(**rest)
    values = metrics.compute()
    assert values["a"].item() == pytest.approx(np.mean(expected("psnr_face", rest)), abs=1e-4)
    assert values["b"].item() == pytest.approx(np.mean(expected("detail_error", rest)), abs=1e-6)
    for key, name in (("c", "psnr"), ("d", "lr_consistency")):
        assert values[key].item() == pytest.approx((200 + np.sum(expected(name, rest))) / 4, abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_no_image_without_a_value(value):
    data, metrics = everything(), collection()
    data["output"][2, 1, 3, 3] = value
    for batch in in_batches(data, 4, 2, 1):
        metrics.update(**batch)
    assert all(mean.isnan() for mean in metrics.compute().values())
    assert {name: metric.count.item() for name, metric in metrics.items()} == {
        name: 6 if name in FACE else 7 for name in CASES
    }


def test_reset_forgets_and_states_survive_inference_mode():
    data, metrics = everything(), collection()
    with torch.inference_mode():
        metrics.update(**{**data, "output": data["gt"] * 0})
        metrics.reset()
    assert all(m.count == m.missing == 0 for m in metrics.values())
    first, second = in_batches(data, 4, 3)
    with torch.inference_mode():
        metrics.update(**first)
    metrics.update(**second)
    assert metrics.compute()["psnr"].item() == pytest.approx(np.mean(expected("psnr", data)), abs=1e-4)


def test_many_small_values_do_not_round_away():
    metric = PSNR()
    metric.total = torch.tensor(1e8, dtype=metric.total.dtype)
    gt = torch.full((1, 3, 8, 8), 0.5)
    for _ in range(10):
        metric.update(gt + 0.1, gt)
    assert metric.total.item() - 1e8 == pytest.approx(200, abs=1e-2)  # float32 holds multiples of 8 there


def test_no_graph_is_kept():
    data, metrics = everything(), collection()
    values = metrics(**{**data, "output": data["output"].requires_grad_()})
    assert not any(value.requires_grad for value in values.values())
    assert not any(m.total.requires_grad for m in metrics.values())


def test_autocast_and_half_precision_change_nothing_but_the_input():
    data, plain, under, half = everything(), collection(), collection(), collection()
    rounded = {**data, "output": data["output"].bfloat16().float()}
    plain.update(**rounded)
    with torch.autocast("cpu", torch.bfloat16):
        under.update(**rounded)
        half.update(**{**data, "output": data["output"].bfloat16()})
    assert under.compute() == half.compute() == plain.compute()


def test_what_does_not_fit_is_refused():
    data = everything()
    with pytest.raises(ValueError, match="ISC: expected 7 values, one per image, got"):
        ISC(lambda image: image).update(data["output"], data["gt"])
    for metric in (ISC(flat_features), LandmarkDistance(lambda images: [])):
        with pytest.raises(ValueError, match="one shape"):
            metric.update(data["output"], data["gt"][:1])
    del data["reference"]  # stage 1 has none
    with pytest.raises(TypeError, match="reference"):
        collection().update(**data)


class Features(nn.Module):
    """A network with a parameter, a buffer and a mode."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5))

    def forward(self, image):
        return self.net(image)


def test_network_moves_along_but_is_no_part_of_the_module():
    network = Features()
    metrics = MetricCollection({"isc": ISC(network), "reference": ReferenceISC(network)})
    holder = nn.ModuleDict({"metrics": metrics}).train()
    assert not network.training
    for parts in (holder.state_dict(), list(holder.parameters()), list(holder.buffers())):
        assert not parts
    holder.load_state_dict({}, strict=True)
    for dtype in (torch.float64, torch.bfloat16):
        holder.to(dtype)
        assert network.net[3].weight.dtype == dtype
    assert metrics["isc"].total.dtype == torch.float64  # the states keep their precision
    holder.float()
    metrics.update(**everything())
    copy = metrics.clone()
    assert copy["isc"].network is copy["reference"].network is not network
    assert pickle.loads(pickle.dumps(metrics))["isc"].compute() == metrics["isc"].compute()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_the_same_on_a_gpu():
    torch.manual_seed(0)
    data, network = everything(), Features()
    metrics = collection()
    metrics.add_metrics({"learned": ISC(network)})
    metrics.update(**data)
    wanted = {name: value.item() for name, value in metrics.compute().items()}
    metrics.to("cuda")  # with what they hold
    assert network.net[3].weight.is_cuda
    metrics.update(**{name: tensor.cuda() for name, tensor in data.items()})
    assert {n: v.item() for n, v in metrics.compute().items()} == pytest.approx(wanted, rel=1e-3)
    assert all(m.total.is_cuda and m.total.dtype == torch.float64 for m in metrics.values())
    metrics.reset()
    assert all(m.total.is_cuda for m in metrics.values())
