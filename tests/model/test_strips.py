"""Strip-wise inference computes what the modules' own forward computes, in less memory."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys

import naive_layers as naive
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rpf_lightning import RPFModel
from rpf_lightning.model import strips
from rpf_lightning.model.strips import Map

READINGS = [
    {},
    {"skip": "literal"},
    {"act": "relu"},
    {"residual": True, "synthesis_residual": True},
    {"progressive": False},
    {"refinement_mean": False},
    {"synthesis_fuse": False, "init": "torch", "flow_unit": "pixels"},
]


def every_range(source: Map, expected: Tensor) -> None:
    assert (source.height, source.width) == tuple(expected.shape[2:])
    for first, stop in itertools.combinations(range(source.height + 1), 2):
        rows = source.rows(first, stop)
        assert rows.shape == expected[:, :, first:stop].shape, (first, stop)
        torch.testing.assert_close(rows, expected[:, :, first:stop], rtol=0, atol=1e-12)


@pytest.fixture
def most_strips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes for every whole map in how many strips it was computed; strips are small, so that there are several."""
    monkeypatch.setattr(strips, "STRIP_BYTES", 20_000)
    numbers: list[int] = []
    original = strips.whole

    def whole(source: Map, batch: int) -> Tensor:
        asked = []

        def rows(first: int, stop: int) -> Tensor:
            asked.append(first)
            return source.rows(first, stop)

        result = original(source._replace(rows=rows), batch)
        numbers.append(len(asked))
        return result

    monkeypatch.setattr(strips, "whole", whole)
    return numbers


def image(channels: int = 3, height: int = 8, width: int = 6, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (4, 1, 2), (4, 1, 1)])
def test_rows_of_a_convolution(kernel: int, stride: int, pad: int) -> None:
    x, weight = image(), torch.randn(5, 3, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, stride, pad)
    every_range(strips.convolve(strips.stored(x), weight, bias, stride, pad), expected)


def test_rows_of_a_convolution_with_groups() -> None:
    x, weight = image(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    every_range(
        strips.convolve(strips.stored(x), weight, None, pad=2, groups=3),
        F.conv2d(x, weight, padding=2, groups=3),
    )


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 0), (4, 2, 1), (3, 1, 1)])
def test_rows_of_a_transposed_convolution(kernel: int, stride: int, pad: int) -> None:
    x, weight = image(), torch.randn(3, 5, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    expected = F.conv_transpose2d(x, weight, bias, stride, pad)
    every_range(strips.deconvolve(strips.stored(x), weight, bias, stride, pad), expected)


def test_rows_of_the_other_maps() -> None:
    a, b = image(4), image(4)
    every_range(strips.shuffle(strips.stored(a)), F.pixel_shuffle(a, 2))
    both = strips.concatenate_relu(strips.stored(a), strips.stored(b), 8)
    every_range(both, torch.cat((a, b), 1).relu())
    every_range(strips.each(strips.stored(a), lambda x: x * 2), a * 2)
    doubled = strips.each(strips.stored(a), lambda x: x * 2)
    every_range(strips.add(doubled, strips.stored(b)), a * 2 + b)


def test_rows_of_a_chain() -> None:
    """Stride, enlargement and convolutions together, so that borders and halves meet."""
    x, w = image(2), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    up = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    chain = strips.convolve(strips.convolve(strips.stored(x), w, None), w, None, stride=2)
    chain = strips.convolve(strips.deconvolve(chain, up, None, stride=2, pad=1), w, None)
    expected = F.conv2d(F.conv2d(x, w, padding=1), w, stride=2, padding=1)
    every_range(chain, F.conv2d(F.conv_transpose2d(expected, up, stride=2, padding=1), w, padding=1))


@pytest.mark.parametrize("batch", [1, 2])
def test_whole_computes_strips_of_the_given_size(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    x, weight = image(3, 16, 16, batch).float(), torch.randn(4, 3, 3, 3)
    source = strips.convolve(strips.stored(x), weight, None)
    asked = []

    def rows(first: int, stop: int) -> Tensor:
        asked.append((first, stop))
        return source.rows(first, stop)

    watched = source._replace(rows=rows)
    released = []
    monkeypatch.setattr(strips, "release", lambda: released.append(True))
    whole = strips.whole(watched, batch)
    assert asked == [(0, 16)]
    assert not released
    asked.clear()
    monkeypatch.setattr(strips, "STRIP_BYTES", 4 * 16 * 4 * 5)  # 5 rows of 16 columns and 4 channels
    torch.testing.assert_close(strips.whole(watched, batch), whole)
    assert [a for a, _ in asked] == [0, *(b for _, b in asked[:-1])]
    assert asked[-1][1] == 16
    assert max(b - a for a, b in asked) <= 5 // batch + (5 % batch > 0)
    assert released == [True]


@pytest.mark.parametrize("strip_bytes", [2**24, 60_000])
@pytest.mark.parametrize("memory", ["auto", "low"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_strips_equal_the_modules(
    monkeypatch: pytest.MonkeyPatch, reading: dict[str, object], batch: int, memory: str, strip_bytes: int
) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    torch.manual_seed(0)
    model = naive.stir_all(RPFModel(16, 4, channels=8, width=1 / 32, memory=memory, **reading)).double()
    lr, reference = torch.rand(batch, 3, 16, 16).double(), torch.rand(batch, 3, 64, 64).double()
    expected, blocks = model(lr, reference, return_intermediates=True)
    with torch.no_grad():
        output, records = model(lr, reference, return_intermediates=True)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
        for record, block in zip(records, blocks, strict=True):
            torch.testing.assert_close(record, block, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("memory", ["auto", "low"])
def test_strips_equal_the_modules_in_fp32(
    most_strips: list[int], memory: str, mode: type[torch.no_grad]
) -> None:
    """From the smallest side, where the warping module has no encoder."""
    model = naive.stir_all(RPFModel(4, 16, channels=8, width=1 / 32, memory=memory))
    lr, reference = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 64, 64)
    expected = model(lr, reference)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5
    assert expected.std() > 0.05
    assert not most_strips  # so far the modules ran
    with mode():
        output = model(lr, reference)
    assert max(most_strips) > 4
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_strips_round_like_the_modules_under_autocast(
    most_strips: list[int], batch: int, fused: bool
) -> None:
    model = naive.stir_all(RPFModel(16, 4, channels=8, width=1 / 32, memory="low"))
    lr, reference = torch.rand(batch, 3, 16, 16), torch.rand(batch, 3, 64, 64)
    exact = model(lr, reference)
    with torch.autocast("cpu", torch.bfloat16):
        modules = model(lr, reference)
        assert not most_strips
        model = model.fuse() if fused else model
        with torch.no_grad():
            in_strips = model(lr, reference)
    assert max(most_strips) > 4
    error = (modules - exact).abs().mean()
    assert error > 1e-5
    assert (in_strips - exact).abs().mean() < 2 * error


@pytest.mark.parametrize("fused", [False, True])  # fused, the convolutions get the parameters themselves
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory", ["auto", "low"])
@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_inputs_are_not_overwritten(
    most_strips: list[int],
    reading: dict[str, object],
    memory: str,
    batch: int,
    layout: torch.memory_format,
    fused: bool,
) -> None:
    model = naive.stir_all(RPFModel(16, 4, channels=8, width=1 / 32, memory=memory, **reading))
    model = model.fuse() if fused else model
    lr, reference = (torch.rand(batch, 3, side, side).to(memory_format=layout) for side in (16, 64))
    levels = model.encode_reference(reference)
    copies = [x.clone() for x in (lr, reference, *levels)]
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        first, second = model(lr, levels), model(lr, levels)
        assert torch.equal(first, second)
    assert max(most_strips) > 4
    for x, copy in zip((lr, reference, *levels), copies, strict=True):
        assert torch.equal(x, copy)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]), name


class Largest(TorchDispatchMode):
    """Remember the largest tensor that an operation returned."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


def test_low_memory_never_holds_a_whole_map_of_the_last_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", 100_000)
    model = RPFModel(16, 8, channels=16, width=1 / 32)
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


def test_with_gradients_the_modules_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("strips have no gradient")

    monkeypatch.setattr(strips, "warp", refuse)
    model = naive.stir_all(RPFModel(16, 2, channels=8, width=1 / 32))
    lr = torch.rand(1, 3, 16, 16, requires_grad=True)
    model(lr, torch.rand(1, 3, 32, 32)).sum().backward()
    assert lr.grad is not None
    assert lr.grad.abs().sum() > 0
    with torch.no_grad(), pytest.raises(AssertionError, match="no gradient"):
        model(lr, torch.rand(1, 3, 32, 32))


def test_unknown_memory_is_named() -> None:
    with pytest.raises(ValueError, match=r"memory: expected auto or low, got 'tiny'"):
        RPFModel(memory="tiny")


def test_a_window_is_computed_once() -> None:
    calls = []

    def rows(first: int, stop: int) -> Tensor:
        calls.append((first, stop))
        return torch.arange(first, stop)[None, None, :, None].expand(1, 1, -1, 2)

    kept = strips.window(Map(rows, 10, 2, 2), 2, 8)
    assert kept.rows(3, 5).flatten().tolist() == [3, 3, 4, 4]
    assert kept.rows(2, 8).shape == (1, 1, 6, 2)
    assert calls == [(2, 8)]


def test_a_residual_block_keeps_its_input() -> None:
    from rpf_lightning.model.synthesis import ResidualBlock

    block = ResidualBlock(4).double()
    nn.init.normal_(block.conv2.bias)
    x = image(4)
    with torch.no_grad():
        every_range(strips._residual(strips.stored(x), block), block(x))


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
