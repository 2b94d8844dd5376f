"""Steps in strips: the modules' own forward, a few rows at a time, to the same outputs in less memory."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import naive_layers as naive
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rpf_lightning import RPFModel
from rpf_lightning.model import strips
from rpf_lightning.model.strips import Strips

COPY = {"synthesis_copy": True, "synthesis_residual": True, "flow_from": "previous", "refinement_mean": False}
READINGS = [
    {},
    {"skip": "literal", "act": "relu"},
    {"residual": True, "synthesis_residual": True, "progressive": False},
    {"synthesis_fuse": False, "init": "torch", "flow_unit": "pixels", "refinement_mean": False},
    {"flow_from": "previous", "channels": [8, 4], "width": [1 / 32, 1 / 64]},
    COPY,
    {**COPY, "skip": "literal", "synthesis_fuse": False, "progressive": False},
]


@pytest.fixture
def most_strips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes for every step on how many strips it ran; strips are small, so that there are several."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
    numbers: list[int] = []
    original = Strips.__call__

    def call(self, step, *maps, **options):
        numbers.append(0)
        place = len(numbers) - 1

        def counted(*parts):
            numbers[place] += 1
            return step(*parts)

        return original(self, counted, *maps, **options)

    monkeypatch.setattr(Strips, "__call__", call)
    return numbers


def build(memory: str = "auto", **reading: object) -> RPFModel:
    torch.manual_seed(0)
    return naive.stir_all(RPFModel(16, 4, **{"channels": 8, "width": 1 / 32, "memory": memory, **reading}))


def inputs(model: RPFModel, batch: int = 2, several: int | None = None) -> tuple[Tensor, Tensor]:
    """An LR and references; of several ones the first sample lacks one and the second all."""
    lr, reference = torch.rand(batch, 3, 16, 16), torch.rand(batch, several or 1, 3, model.size, model.size)
    if several:
        reference[0, 1] = 0
        reference[1:2] = 0
    return lr, reference if several else reference[:, 0]


def same(a: object, b: object, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def same_records(a: tuple[Tensor | None, ...], b: tuple[Tensor | None, ...], tolerance: float) -> None:
    assert [x is None for x in a] == [x is None for x in b]
    same([x for x in a if x is not None], [x for x in b if x is not None], tolerance)


# one step


def image(channels: int = 3, height: int = 16, width: int = 6, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def convolutions(*shapes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(a, b, 3, 3, dtype=torch.float64) for a, b in shapes]


@pytest.mark.parametrize("strip_bytes", [1, 600, 1_000])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_down_and_up_on_strips(
    monkeypatch: pytest.MonkeyPatch, most_strips: list[int], strip_bytes: int, batch: int
) -> None:
    """Several maps in, several out, of three sides; borders and cuts."""
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    a, b, c = convolutions((4, 3), (2, 4), (4, 2))
    up = torch.randn(2, 2, 4, 4, dtype=torch.float64)

    def step(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        features = F.conv2d(F.conv2d(fine, a, padding=1), b, stride=2, padding=1) + coarse
        return features, F.conv2d(F.conv_transpose2d(features, up, stride=2, padding=1), c, padding=1)

    maps = image(batch=batch), image(2, 8, 3, batch)
    expected = step(*maps)
    result = Strips()(step, *maps, halo=6, channels=4)
    same(result, expected, 1e-12)
    assert most_strips[-1] == {1: 8, 600: 2 + batch, 1_000: 2 * batch}[strip_bytes]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in result)


def test_strips_have_the_size_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    heights, released = [], []
    monkeypatch.setattr(strips, "release", lambda: released.append(True))

    def step(x: Tensor) -> Tensor:
        heights.append(x.shape[2])
        return x + 1

    x = image(batch=2)
    run = Strips()
    assert torch.equal(run(step, x, halo=0, channels=5), x + 1)
    assert heights == [16]
    assert not released
    heights.clear()
    monkeypatch.setattr(
        strips, "STRIP_BYTES", 2 * 5 * 6 * 4 * 4
    )  # 4 rows of 6 columns and 5 channels, in fp32
    assert torch.equal(run(step, x, halo=0, channels=5), x + 1)
    assert heights == [4, 4, 4, 4]
    assert released == [True]
    heights.clear()
    run(
        step, x, halo=1, channels=5, strips=2
    )  # at the border no halo, and a halo of whole rows of a map half as high
    assert heights == [10, 10]


# the model


@pytest.mark.parametrize(("batch", "strip_bytes"), [(1, 15_000), (2, 60_000)])
@pytest.mark.parametrize("memory", ["auto", "low"])
@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_strips_equal_whole_maps(
    monkeypatch: pytest.MonkeyPatch, reading: dict[str, object], batch: int, memory: str, strip_bytes: int
) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    model = build(memory, **reading).double()
    for several in (None, 3) if model.config.synthesis_copy else (None,):
        given = [x.double() for x in inputs(model, batch, several)]
        expected, blocks = model(*given, return_intermediates=True)
        with torch.no_grad():
            output, records = model(*given, return_intermediates=True)
        same(output, expected, 1e-9)
        for record, block in zip(records, blocks, strict=True):
            same_records(record, block, 1e-9)


@pytest.mark.parametrize(
    ("memory", "mode", "reading"), [("auto", torch.no_grad, COPY), ("low", torch.inference_mode, {})]
)
def test_strips_equal_whole_maps_in_fp32(
    most_strips: list[int], memory: str, mode: type[torch.no_grad], reading: dict[str, object]
) -> None:
    """From the smallest side, where the warping module has no encoder."""
    model = naive.stir_all(RPFModel(4, 16, channels=8, width=1 / 32, memory=memory, **reading))
    lr, reference = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 64, 64)
    expected = model(lr, reference)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5
    assert expected.std() > 0.05
    assert not most_strips  # so far on whole maps
    with mode():
        output = model(lr, reference)
    assert max(most_strips) > 4
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "fused"), [(1, True), (2, False)])
def test_strips_round_like_whole_maps_under_autocast(most_strips: list[int], batch: int, fused: bool) -> None:
    model = build("low")
    given = inputs(model, batch)
    exact = model(*given)
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(*given)
        assert not most_strips
        model = model.fuse() if fused else model
        with torch.no_grad():
            in_strips = model(*given)
    assert max(most_strips) > 4
    error = (whole - exact).abs().mean()
    assert error > 1e-5
    assert (in_strips - exact).abs().mean() < 2 * error


@pytest.mark.parametrize("fused", [False, True])  # fused, the convolutions get the parameters themselves
@pytest.mark.parametrize(("batch", "memory"), [(1, "low"), (2, "auto")])
@pytest.mark.parametrize("reading", [{}, {"skip": "literal", "synthesis_fuse": False}, COPY], ids=str)
def test_inputs_are_not_overwritten(
    most_strips: list[int], reading: dict[str, object], memory: str, batch: int, fused: bool
) -> None:
    model = build(memory, **reading)
    model = model.fuse() if fused else model
    lr, reference = (x.to(memory_format=torch.channels_last) for x in inputs(model, batch))
    levels = model.encode_reference(reference)
    copies = [x.clone() for x in (lr, reference, *levels)]
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        first, second = model(lr, levels), model(lr, levels)
        assert torch.equal(first, second)
    assert max(most_strips) > 4
    for x, kept in zip((lr, reference, *levels), copies, strict=True):
        assert torch.equal(x, kept)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]), name


# hooks


class Calls:
    """What forward hooks on every module of a model see; nothing is copied."""

    def __init__(self, model: RPFModel) -> None:
        self.outputs: dict[str, list[Tensor]] = {}
        self.order: list[str] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.handles = [
            module.register_forward_hook(lambda _, given, made, name=name: self.note(name, given, made))
            for name, module in model.named_modules()
        ]

    def note(self, name: str, given: tuple[object, ...], made: object) -> None:
        self.order.append(name)
        self.kept += [(x, x.clone()) for x in (*given, made) if isinstance(x, Tensor)]
        tensors = made if isinstance(made, tuple) else (made,)
        self.outputs.setdefault(name, []).extend(x for x in tensors if isinstance(x, Tensor))


@pytest.mark.parametrize("memory", ["auto", "low"])
@pytest.mark.parametrize(("reading", "several"), [({}, None), ({"skip": "literal"}, None), (COPY, 2)])
def test_hooks_see_every_module_in_both_ways(
    monkeypatch: pytest.MonkeyPatch, reading: dict[str, object], memory: str, several: int | None
) -> None:
    model = build(memory, **reading)
    given = inputs(model, several=several)
    models = [copy.deepcopy(model) for _ in range(3)]
    whole, at_once, in_strips = (Calls(each) for each in models)
    models[0](*given)
    with torch.no_grad():
        models[1](*given)
        monkeypatch.setattr(strips, "STRIP_BYTES", 30_000)
        models[2](*given)
    assert all(
        torch.equal(*pair) for calls in (at_once, in_strips) for pair in calls.kept
    )  # nothing in place
    assert {name for name in whole.outputs if "refinement" in name} > {"blocks.0.refinement.first"}
    assert whole.outputs.keys() == at_once.outputs.keys() == in_strips.outputs.keys()
    if memory == "auto":
        assert whole.order == at_once.order  # every call, in the same order
        for name, outputs in whole.outputs.items():
            same([x.detach() for x in outputs], at_once.outputs[name], 1e-4)
    for name in ("blocks.1", "blocks.1.warping", "blocks.1.synthesis", "blocks.1.refinement"):
        assert in_strips.order.count(name) == whole.order.count(name)
    one_convolution = f"blocks.{len(model.blocks) - 1}.synthesis.blocks.0.conv1"
    assert len(in_strips.outputs[one_convolution]) > 4
    rows = sum(x.shape[2] for x in in_strips.outputs[one_convolution])
    assert rows > whole.outputs[one_convolution][0].shape[2]  # some of them twice


def test_without_hooks_the_residual_blocks_overwrite_their_maps(most_strips: list[int]) -> None:
    model = build()
    blocks = model.blocks[1].synthesis.blocks
    x = torch.randn(1, 8, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = blocks(x.clone())
        watched, kept = x.clone(memory_format=torch.preserve_format), x.clone()
        handle = blocks[3].conv1.register_forward_hook(lambda *_: None)
        same(blocks(watched, rows=Strips()), expected, 1e-4)
        assert torch.equal(watched, kept)
        handle.remove()
        same(blocks(x, rows=Strips()), expected, 1e-4)
        assert not torch.equal(x, kept)
    assert max(most_strips) > 4


def test_a_hook_may_change_what_a_module_makes(most_strips: list[int]) -> None:
    model = build()
    given = inputs(model)
    with torch.no_grad():
        plain = model(*given)
        handle = model.blocks[1].synthesis.blocks[2].conv1.register_forward_hook(lambda *args: args[-1] * 0)
        changed = model(*given)
        handle.remove()
        assert torch.equal(model(*given), plain)
    handle = model.blocks[1].synthesis.blocks[2].conv1.register_forward_hook(lambda *args: args[-1] * 0)
    same(changed, model(*given), 1e-5)
    assert not torch.allclose(changed, plain, atol=1e-4)


# memory


class Largest(TorchDispatchMode):
    """Remember the largest tensor that an operation returned."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("reading", [{}, COPY], ids=str)
def test_low_memory_never_holds_a_whole_map_of_the_last_side(
    monkeypatch: pytest.MonkeyPatch, reading: dict[str, object]
) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", 50_000)
    model = RPFModel(16, 8, channels=16, width=1 / 32, **reading)
    lr, reference = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 128, 128)
    largest = {}
    for memory in ("auto", "low"):
        model.memory = memory
        with torch.no_grad(), Largest() as mode:
            model(lr, reference)
        largest[memory] = mode.values
    with Largest() as mode:
        model(lr, reference)
    features = 16 * 128 * 128
    assert mode.values == 4 * features // 2  # all features beside each other, with gradients
    assert largest["auto"] == features  # the skip of the warping module
    assert largest["low"] < features // 2  # a strip with its halo


def test_threads_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model with gradients and without, and a second with another setting, at once."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
    auto, low = build(), build("low", skip="literal")
    given = inputs(auto)
    expected = {model: model(*given).detach() for model in (auto, low)}

    def run(place: int) -> None:
        model = (auto, low)[place % 2]
        with torch.set_grad_enabled(place % 3 == 0):
            output = model(*given)
        assert output.requires_grad == (place % 3 == 0)
        torch.testing.assert_close(output.detach(), expected[model], rtol=0, atol=1e-5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(12)))


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_release_gives_memory_back() -> None:
    """64 MB between pieces that stay in use: the C library keeps the holes until it is told."""
    code = """
import torch
from pathlib import Path
from rpf_lightning.model.strips import release

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

torch.empty(2**24, dtype=torch.uint8)  # freed: from now on, pieces of this size come from the heap
pieces = [torch.ones(2**20, dtype=torch.uint8) for _ in range(128)]
del pieces[::2]
before = resident()
release()
print(before - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 32 * 2**20
