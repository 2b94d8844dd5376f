"""What is broken, too large or done at the same time by others is refused or works; nothing is silently wrong."""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import naive_layers as naive
import pytest
import safetensors.torch
import torch
from torch import Tensor

from rpf_lightning.model import RPFConfig, RPFModel, storage
from rpf_lightning.model.storage import CONFIG_FILE, WEIGHTS_FILE
from rpf_lightning.model.turns import Turns

SMALL: dict[str, Any] = {"lr_size": 8, "scale": 4, "channels": 4, "width": 1 / 64}
NAME = "blocks.1.refinement.to_rgb.weight"


def build(**kwargs: Any) -> RPFModel:
    torch.manual_seed(0)
    return naive.stir(RPFModel(**{**SMALL, **kwargs})).eval()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    build().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(directory: Path, **changes: Any) -> None:
    file = directory / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def faces(batch: int = 1, side: int = 8) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(side))


# Weights that are not finite, and outputs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(directory: Path, value: float, dtype: torch.dtype) -> None:
    file = directory / WEIGHTS_FILE
    state = {key: tensor.to(dtype) for key, tensor in safetensors.torch.load_file(file).items()}
    state[NAME].view(-1)[3] = value
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: {re.escape(NAME)} holds NaN or infinite"):
        RPFModel.from_pretrained(directory)
    with pytest.raises(ValueError, match="holds NaN or infinite"):  # what fits read
        storage.load(directory)


def test_weights_too_large_for_fp32_and_whole_numbers_are_refused(directory: Path) -> None:
    file = directory / WEIGHTS_FILE
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**state, NAME: torch.full_like(state[NAME].double(), 1e200)}, file)
    with pytest.raises(ValueError, match=f"{re.escape(NAME)} holds NaN or infinite"):
        RPFModel.from_pretrained(directory)
    safetensors.torch.save_file({**state, NAME: torch.ones_like(state[NAME], dtype=torch.int32)}, file)
    with pytest.raises(
        ValueError, match=f"expected floating point weights, {re.escape(NAME)} has torch.int32"
    ):
        RPFModel.from_pretrained(directory)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("module", ["warping.flow_head", "synthesis.to_rgb", "refinement.to_rgb"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_is_no_picture(block: int, module: str, sign: int, fused: bool) -> None:
    """A finite weight that is huge: what overflows would be clamped to white or black, or sampled outside."""
    model = build()
    model.blocks[block].get_submodule(module).weight.data.fill_(sign * 3e38)
    if fused:
        model.fuse()
    lr, reference = faces(), faces(side=32)
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(ValueError, match=r"block \d .* NaN or infinite values"),
        ):
            model(lr, reference)


# config.json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 2**60}, "scale: expected an output, lr_size times scale, of at most 4096 pixels"),
        ({"lr_size": 2**40}, "of at most 4096 pixels"),
        ({"scale": 10**4000}, "scale: expected a power of two"),
        ({"scale": 4.0}, "scale: expected a power of two of at least 2, got 4.0"),
        ({"scale": "4"}, "scale: expected a power of two of at least 2, got '4'"),
        ({"lr_size": None}, "lr_size: expected a power of two"),
        ({"channels": 10**9}, "channels: expected positive whole numbers up to 4096"),
        ({"channels": 2.5}, "channels: expected positive whole numbers"),
        ({"channels": True}, "channels: expected positive whole numbers"),
        ({"channels": [4, "4"]}, "channels: expected positive whole numbers"),
        ({"channels": {}}, "channels: expected positive whole numbers"),
        ({"width": 1e9}, "width: expected positive numbers up to 8"),
        ({"width": float("inf")}, "width: expected positive numbers"),
        ({"width": "1"}, "width: expected positive numbers"),
        ({"residual": "false"}, "residual: expected true or false, got 'false'"),
        ({"progressive": 0}, "progressive: expected true or false, got 0"),
        ({"skip": ["literal"]}, "skip: expected same_resolution or literal"),
        ({"reference_temperature": "warm"}, "reference_temperature: expected a positive number"),
        ({"extra": 1}, "extra"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_has_bounds(directory: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(directory, **changes)
    with pytest.raises(ValueError, match=f"{CONFIG_FILE}: does not fit RPFModel: .*{re.escape(message)}"):
        RPFModel.from_pretrained(directory)


@pytest.mark.parametrize(
    "text", ["[" * 50_000, '{"scale": 1' + "0" * 9000 + "}", " " * 200_000], ids=lambda t: t[:12]
)
def test_a_file_that_is_no_configuration(directory: Path, text: str) -> None:
    (directory / CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{CONFIG_FILE}: expected (JSON|a few lines)"):
        RPFModel.from_pretrained(directory)


@pytest.mark.parametrize("changes", [{"channels": 3000}, {"width": 8}, {"scale": 512}, {"scale": 2}], ids=str)
def test_the_files_head_is_compared_before_anything_is_allocated(
    directory: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(directory, **changes)
    made: list[str] = []
    original = RPFModel.__init__

    def watched(self: RPFModel, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        tensors = [*self.parameters(), *self.buffers()]
        made.extend({tensor.device.type for tensor in tensors})

    monkeypatch.setattr(RPFModel, "__init__", watched)
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("read"))
    started = time.perf_counter()
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} does not fit the network of its {CONFIG_FILE}"):
        RPFModel.from_pretrained(directory)
    assert set(made) == {"meta"}
    assert time.perf_counter() - started < 20


# Half precision

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of values in [0, 1]; 1/255 is 4e-3


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("fused", ["no", "before", "after"])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory", ["auto", "low"])
def test_half_weights(dtype: torch.dtype, fused: str, copies: bool, batch: int, memory: Any) -> None:
    """Images in fp32 or in the weights' precision, references in any form; fp32 comes out, about the same."""
    kwargs = {"synthesis_copy": True, "flow_from": "previous"} if copies else {}
    exact = build(residual=True, synthesis_residual=True, memory=memory, **kwargs)
    half = copy.deepcopy(exact)
    if fused == "before":
        half.fuse()
    half = half.half() if dtype == torch.float16 else half.bfloat16()
    if fused == "after":
        half.fuse()
    lr, reference, mask = faces(batch), faces(batch, 32), torch.ones(batch, 1, 32, 32)
    given: list[tuple[Any, ...]] = [(lr, None, None), (lr, reference, None), (lr, reference, mask)]
    if copies:
        given.append((lr, torch.stack((reference, reference.flip(-1)), 1), None))
    with torch.no_grad():
        for images in given:
            expected = exact(*images)
            for cast in (dtype, torch.float32):
                output, records = half(
                    *(image if image is None else image.to(cast) for image in images),
                    return_intermediates=True,
                )
                assert {record.output.dtype for record in records} == {output.dtype} == {torch.float32}
                assert (output - expected).abs().max() < TOLERANCE[dtype]
        levels = half.encode_reference(reference.to(dtype), mask.to(dtype))
        assert {level.dtype for level in levels} == {torch.float32}
        assert (half(lr.to(dtype), levels) - exact(lr, reference, mask)).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_what_must_be_exact_stays_in_fp32(dtype: torch.dtype) -> None:
    """Flows, coordinates and resizing: a flow of many pixels has no steps of half precision."""
    model = build()
    for block in model.blocks:
        block.warping.flow_head.weight.data.zero_()
        block.warping.flow_head.bias.data.fill_(1.0)
        block.warping.flow_scale = 10 + 2**-12
    half = copy.deepcopy(model).to(dtype)
    for exact, own in ((model, half), (model, half.float())):
        for one, other in zip(exact.buffers(), own.buffers(), strict=True):
            if one.ndim == 2:
                assert torch.equal(one, other)
    half = half.to(dtype)
    with torch.no_grad():
        _, records = half(faces(), faces(side=32), return_intermediates=True)
    for record in records:
        assert record.flow.dtype == torch.float32
        assert torch.all(record.flow == 10 + 2**-12)


def test_other_precisions_are_refused_in_a_sentence() -> None:
    lr = faces()
    with pytest.raises(
        ValueError, match=r"lr: expected torch\.float16 as the model's weights, got torch\.bfloat16"
    ):
        build().half()(lr.bfloat16())
    with pytest.raises(
        ValueError, match=r"lr: expected torch\.float32 as the model's weights, got torch\.float16"
    ):
        build()(lr.half())


def test_half_precision_that_overflows_is_no_picture() -> None:
    model = build()
    model.blocks[0].refinement.to_rgb.weight.data.fill_(3e4)
    assert model(faces()).isfinite().all()
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        model.half()(faces())


# Threads


def run(*works: Callable[[], None]) -> list[BaseException]:
    errors: list[BaseException] = []

    def catching(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=catching, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it waits for ever"
    return errors


def test_fuse_while_other_threads_compute() -> None:
    expected = build()(faces(), faces(side=32)).detach()
    for _ in range(5):
        model, outputs = build(), list[Tensor]()

        def compute(model: RPFModel = model, outputs: list[Tensor] = outputs) -> None:
            for _ in range(6):
                with torch.inference_mode():
                    outputs.append(model(faces(), faces(side=32)))

        assert run(compute, compute, compute, model.fuse) == []
        assert model.fused
        assert len(outputs) == 18
        for output in outputs:
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)


def test_fuse_in_eight_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build()(faces(), faces(side=32)).detach()
    fuse = RPFModel._fuse

    def slowly(self: RPFModel) -> RPFModel:
        inside.append(1)
        time.sleep(0.01)  # where another thread would come in
        assert len(inside) == 1
        fuse(self)
        inside.pop()
        return self

    inside: list[int] = []
    monkeypatch.setattr(RPFModel, "_fuse", slowly)
    model = build()
    assert run(*[model.fuse] * 8) == []
    torch.testing.assert_close(model(faces(), faces(side=32)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("change", ["half", "load_state_dict", "fuse"])
def test_changes_wait_for_a_forward_and_keep_others_out(change: str) -> None:
    model = build()
    state = copy.deepcopy(model.state_dict())
    entered, leave, order = threading.Event(), threading.Event(), list[str]()

    def stop(*_: Any) -> None:
        if not entered.is_set():
            entered.set()
            assert leave.wait(30)
            order.append("computed")

    hook = model.blocks[0].refinement.register_forward_pre_hook(stop)

    def changing() -> None:
        assert entered.wait(30)
        getattr(model, change)(*([state] if change == "load_state_dict" else []))
        order.append("changed")

    def late() -> None:
        assert entered.wait(30)
        time.sleep(0.1)  # the change waits by now
        threading.Timer(0.1, leave.set).start()
        model(faces())
        order.append("late")

    assert run(lambda: model(faces()), changing, late) == []
    hook.remove()
    assert order == ["computed", "changed", "late"]


def test_a_change_from_inside_of_a_forward_is_refused() -> None:
    model = build()
    model.blocks[0].refinement.register_forward_pre_hook(lambda *_: model.fuse())
    with pytest.raises(RuntimeError, match="cannot be changed from inside of a forward"):
        model(faces())
    assert not model.fused


def test_a_thread_inside_never_waits_for_itself() -> None:
    """A hook may call the model while another thread waits to change it."""
    turns = Turns()
    waiting = threading.Thread(target=lambda: turns.changing().__enter__(), daemon=True)
    with turns.using():
        waiting.start()
        while not turns._waiting:
            time.sleep(0.001)
        assert run(lambda: None) == []
        with turns.using():
            pass
    waiting.join(30)
    assert not waiting.is_alive()


def test_models_can_be_copied_and_pickled() -> None:
    model = build()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._turns is not model._turns
        assert torch.equal(twin(faces()), model(faces()))


# The hub


def test_arguments_of_the_hub_reach_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda _, **kwargs: asked.append(kwargs) or str(directory)
    )
    given = {
        "revision": "v1", "token": "hf_x", "cache_dir": directory.parent / "hub", "local_files_only": True,
        "force_download": True,
    }  # fmt: skip
    for offline, expected in (("0", given), ("1", {**given, "force_download": False})):
        monkeypatch.setenv("RPF_OFFLINE", offline)
        RPFModel.from_pretrained("owner/name", **given)
        asked[-1].pop("allow_patterns")
        assert asked[-1] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"revison": "v1"}, "owner/name: .*from_pretrained has no argument revison"),
        ({"device_map": "auto", "torch_dtype": "half"}, "no argument device_map, torch_dtype"),
        ({"memory": "tiny"}, "memory: expected auto or low"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_fetched(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_from_hub", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=message):
        RPFModel.from_pretrained("owner/name", **arguments)


def test_a_saved_model_is_what_the_hub_takes_and_gives(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf upload owner/name DIR` puts the folder's files there as they are; only the two are asked for."""
    assert sorted(file.name for file in directory.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(directory))
    loaded = RPFModel.from_pretrained("owner/name")
    assert torch.equal(loaded(faces()), build()(faces()))


def test_a_configuration_on_meta_takes_no_memory() -> None:
    """The largest one that is allowed is described at once."""
    started = time.perf_counter()
    with torch.device("meta"):
        model = RPFModel(RPFConfig(4, 1024, channels=4096, width=8))
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert time.perf_counter() - started < 20
