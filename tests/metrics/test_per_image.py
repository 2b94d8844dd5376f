"""The torchmetrics classes: means over all images of what the functions give."""

import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from rpf_lightning.metrics import (
    ISC,
    PSNR,
    SSIM,
    DetailError,
    LandmarkDistance,
    LRConsistency,
    PerImageMetric,
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
SPLITS = [(7,), (4, 2, 1), (1, 6), (1,) * 7]
Batch = dict[str, Tensor]


def pictures(seed: int, side: int = SIDE) -> Tensor:
    """Smooth pictures with noise that differs in strength, inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(COUNT, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    strength = torch.linspace(0.05, 0.4, COUNT)[:, None, None, None]
    return (0.2 + 0.4 * smooth + strength * torch.rand(COUNT, 3, side, side, generator=generator)).clamp(0, 1)


def everything() -> Batch:
    mask = (pictures(5)[:, :1] > 0.5).float()
    mask[WITHOUT_FACE] = 0
    gt = pictures(1)
    strength = torch.linspace(0.1, 1.0, COUNT)[:, None, None, None]
    return {
        "output": gt + strength * (pictures(2) - gt) * 1.5 - 0.1,  # leaves [0, 1]
        "gt": gt,
        "mask": mask,
        "lr": pictures(3, LR_SIDE),
        "reference": pictures(4),
    }


def in_batches(data: Batch, split: tuple[int, ...]) -> Iterator[Batch]:
    start = 0
    for size in split:
        yield {name: tensor[start : start + size] for name, tensor in data.items()}
        start += size


def flat_features(image: Tensor) -> Tensor:
    """The mean colours of the quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1) - 0.4


CASES: dict[str, tuple[Callable[[], PerImageMetric], Callable[[Batch], Tensor]]] = {
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
NAMES = list(CASES)
FACE = ("psnr_face", "detail_error")


def collection(**kwargs: Any) -> MetricCollection:
    return MetricCollection({name: make() for name, (make, _) in CASES.items()}, **kwargs)


def expected(name: str, data: Batch) -> list[float]:
    """By the function, for every image that has a value."""
    return [value for value in CASES[name][1](data).tolist() if not math.isnan(value)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_mean_over_images_by_other_means(name: str, split: tuple[int, ...]) -> None:
    data, metric = everything(), CASES[name][0]()
    values = expected(name, data)
    for batch in in_batches(data, split):
        metric.update(**batch)
    assert metric.compute().item() == pytest.approx(np.mean(values), rel=1e-5)
    assert (metric.count.item(), metric.missing.item()) == ((6, 1) if name in FACE else (7, 0))
    assert np.ptp(values) > 1e-3  # so that an image too much or too little shows


def test_collection_hands_each_what_it_asks_for() -> None:
    data, metrics = everything(), collection(prefix="val/")
    for batch in in_batches(data, (4, 2, 1)):
        metrics.update(**batch)
    values = metrics.compute()
    assert sorted(values) == sorted(f"val/{name}" for name in NAMES)
    for name in NAMES:
        assert values[f"val/{name}"].item() == pytest.approx(np.mean(expected(name, data)), rel=1e-5)
    assert {name: metric.higher_is_better for name, metric in metrics.items(keep_base=True)} == {
        name: {"detail_error": False, "reference_isc": None}.get(name, True) for name in NAMES
    }


def test_collection_does_not_merge_metrics_that_begin_alike() -> None:
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


def test_a_missing_argument_is_an_error() -> None:
    data = everything()
    del data["reference"]  # stage 1 has none
    with pytest.raises(TypeError, match="reference"):
        collection().update(**data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_is_not_finite_is_no_image_without_a_value(name: str, value: float) -> None:
    data, metric = everything(), CASES[name][0]()
    data["output"][2, 1, 3, 3] = value
    for batch in in_batches(data, (4, 2, 1)):
        metric.update(**batch)
    assert metric.compute().isnan()
    assert metric.count.item() == (6 if name in FACE else 7)


def test_reset_forgets() -> None:
    data, metrics = everything(), collection()
    metrics.update(**{**data, "output": data["gt"] * 0})
    metrics.reset()
    assert all(m.count == m.missing == 0 for m in metrics.values())
    metrics.update(**data)
    assert metrics.compute()["psnr"].item() == pytest.approx(np.mean(expected("psnr", data)), abs=1e-4)


def test_copies_and_pickles_go_on() -> None:
    data, metrics = everything(), collection()
    first, second = in_batches(data, (5, 2))
    metrics.update(**first)
    for copy in (pickle.loads(pickle.dumps(metrics)), metrics.clone()):
        copy.update(**second)
        assert copy.compute()["ssim"].item() == pytest.approx(np.mean(expected("ssim", data)), abs=1e-5)
    assert metrics["ssim"].count.item() == 5


def test_many_small_values_do_not_round_away() -> None:
    metric = PSNR()
    assert metric.total.dtype == torch.float64
    metric.total = torch.tensor(1e8, dtype=torch.float64)
    gt = torch.full((1, 3, 8, 8), 0.5)
    for _ in range(10):
        metric.update(gt + 0.1, gt)
    assert metric.total.item() - 1e8 == pytest.approx(200, abs=1e-2)  # float32 holds multiples of 8 there


def test_states_survive_inference_mode() -> None:
    data, metric = everything(), PSNR()
    with torch.inference_mode():
        metric.reset()
        metric.update(data["output"], data["gt"])
    metric.update(data["output"], data["gt"])
    assert metric.compute().item() == pytest.approx(np.mean(expected("psnr", data)), abs=1e-4)
    with torch.inference_mode():
        metric.reset()
    metric.update(data["output"], data["gt"])
    assert metric.count.item() == COUNT


def test_no_graph_is_kept() -> None:
    data, metrics = everything(), collection()
    values = metrics(**{**data, "output": data["output"].requires_grad_()})
    assert not any(value.requires_grad for value in values.values())
    assert not any(m.total.requires_grad for m in metrics.values())


def test_autocast_and_half_precision_change_nothing_but_the_input() -> None:
    data, plain, under, half = everything(), collection(), collection(), collection()
    rounded = {**data, "output": data["output"].bfloat16().float()}
    plain.update(**rounded)
    with torch.autocast("cpu", torch.bfloat16):
        under.update(**rounded)
        half.update(**{**data, "output": data["output"].bfloat16()})
    assert under.compute() == plain.compute()
    assert half.compute() == plain.compute()


def test_one_value_per_image_is_demanded() -> None:
    data = everything()
    with pytest.raises(ValueError, match="ISC: expected 7 values, one per image, got"):
        ISC(lambda image: image).update(data["output"], data["gt"])
    for metric in (ISC(flat_features), LandmarkDistance(lambda images: [])):
        with pytest.raises(ValueError, match="one shape"):
            metric.update(data["output"], data["gt"][:1])


class Features(nn.Module):
    """A network with a parameter, a buffer and a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def test_network_moves_along_but_is_no_part_of_the_module() -> None:
    network = Features()
    metrics = MetricCollection({"isc": ISC(network), "reference": ReferenceISC(network)})
    holder = nn.ModuleDict({"metrics": metrics})
    assert not network.training
    holder.train()
    assert not network.training
    assert not holder.state_dict()
    assert not list(holder.parameters())
    assert not list(holder.buffers())
    holder.load_state_dict({}, strict=True)
    holder.to(torch.float64)
    assert network.net[3].weight.dtype == torch.float64
    holder.to(torch.bfloat16)
    assert network.net[3].weight.dtype == torch.bfloat16
    assert metrics["isc"].total.dtype == torch.float64  # the states keep their precision
    holder.float()
    metrics.update(**everything())
    copy = metrics.clone()
    assert copy["isc"].network is copy["reference"].network is not network
    assert pickle.loads(pickle.dumps(metrics))["isc"].compute() == metrics["isc"].compute()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_the_same_on_a_gpu() -> None:
    torch.manual_seed(0)
    data, network = everything(), Features()
    metrics = collection()
    metrics.add_metrics({"learned": ISC(network)})
    metrics.update(**data)
    wanted = {name: value.item() for name, value in metrics.compute().items()}
    metrics.to("cuda")  # with what they hold
    assert network.net[3].weight.is_cuda
    assert all(m.total.is_cuda and m.total.dtype == torch.float64 for m in metrics.values())
    metrics.update(**{name: tensor.cuda() for name, tensor in data.items()})
    assert all(m.total.is_cuda for m in metrics.values())
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(
        wanted, rel=1e-3
    )
    metrics.reset()
    assert all(m.total.is_cuda for m in metrics.values())


class Stage(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.metrics = MetricCollection({"psnr": PSNR(), "isc": ISC(Features())}, prefix="val/")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.metrics.update(**batch)
        self.log_dict(self.metrics, on_step=False, on_epoch=True, batch_size=len(batch["gt"]))


def test_lightning_logs_the_mean_over_images() -> None:
    data, stage = everything(), Stage()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loader = DataLoader(list(in_batches(data, (4, 2, 1))), batch_size=None)
    for _ in range(2):  # Lightning resets in between
        (values,) = trainer.validate(stage, loader, verbose=False)
        assert values["val/psnr"] == pytest.approx(np.mean(expected("psnr", data)), abs=1e-4)
    assert sorted(stage.state_dict()) == ["layer.bias", "layer.weight"]
