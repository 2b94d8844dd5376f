import io
import zipfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

import rpf_lightning
from rpf_lightning import export
from rpf_lightning.cli import main
from rpf_lightning.export import export_model
from rpf_lightning.model import RPFModel

TOLERANCE = 1e-4
NEAR_IDENTITY = {"residual": True, "synthesis_residual": True}
LITERAL = {
    "skip": "literal", "act": "relu", "synthesis_fuse": False, "flow_unit": "pixels", "init": "torch",
}  # fmt: skip


def small(scale=2, lr_size=16, **kwargs):
    """A model in which every parameter matters and whose flows leave the image in places."""
    torch.manual_seed(0)
    model = RPFModel(lr_size, scale, **{"channels": 8, "width": 1 / 32, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        for block in model.blocks:
            block.warping.flow_head.weight.normal_(std=6 / block.warping.flow_scale)
            block.warping.flow_head.bias.copy_(torch.tensor([2.5, -1.5]))
    return model


def images(side, batch=1, channels=3, coarse=16):
    """Faces have no hard noise: squares of `coarse` pixels to a side, with values up to both ends."""
    x = (torch.rand(batch, channels, coarse, coarse) * 1.5 - 0.25).clamp(0, 1)
    return F.interpolate(x, size=(side, side), mode="nearest")


def inputs_of(exported):
    torch.manual_seed(1)
    inputs = {name: images(shape[-1], *shape[:2]) for name, shape in exported.inputs.items()}
    if "mask" in inputs:
        inputs["mask"] = (inputs["mask"] > 0.3).float()
    return inputs


def run_onnx(path, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_outputs()] == ["output"]
    assert [node.name for node in session.get_inputs()] == list(inputs)
    assert [node.shape for node in session.get_inputs()] == [list(x.shape) for x in inputs.values()]
    return torch.from_numpy(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])


def run_torch(path, inputs):
    return torch.export.load(path).module()(*inputs.values())


def contents(path):
    """All bytes of a file, those of an archive unpacked."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


def write_nothing(monkeypatch):
    """Replace the slow part, so that only what happens around it is tested."""
    monkeypatch.setattr(export, "_write", lambda _program, file, *_: file.write_bytes(b"new"))


CASES = {
    "mask": ({"scale": 4, **NEAR_IDENTITY}, {}, ["lr", "reference", "mask"]),
    "lr": ({**NEAR_IDENTITY}, {"reference": False}, ["lr"]),
    "later entry": ({"scale": 4}, {"lr_size": 32, "mask": False, "batch_size": 2}, ["lr", "reference"]),
    "not progressive": ({"scale": 4, "progressive": False}, {}, ["lr", "reference", "mask"]),
    "literal": (LITERAL, {"opset": 20}, ["lr", "reference", "mask"]),
}


@pytest.mark.parametrize(("options", "arguments", "names"), CASES.values(), ids=CASES)
def test_onnx_equals_eager(options, arguments, names, tmp_path):
    model, path = small(**options), tmp_path / "model.onnx"
    exported = export_model(model, path, **arguments)
    assert exported.files == (path,)
    assert list(exported.inputs) == names
    assert 0 <= exported.difference < TOLERANCE
    lr_size, batch = arguments.get("lr_size", 16), arguments.get("batch_size", 1)
    channels_and_side = {"lr": (3, lr_size), "reference": (3, model.size), "mask": (1, model.size)}
    for name in names:
        channels, side = channels_and_side[name]
        assert exported.inputs[name] == (batch, channels, side, side)
    inputs = inputs_of(exported)
    expected, records = model(*inputs.values(), return_intermediates=True)
    for record in records:  # what is compared: real warps, partly from outside the image
        assert record.flow.abs().max() > 4
        assert record.flow.std() > 0.5
        assert 0.02 < (record.aligned == 0).all(1).float().mean() < 0.98
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.1
    torch.testing.assert_close(run_onnx(path, inputs), expected.detach(), atol=TOLERANCE, rtol=0)
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert [s.version for s in graph.opset_import if not s.domain] == [arguments.get("opset", 18)]
    assert [node.op_type for node in graph.graph.node].count("GridSample") == len(records)
    assert str(Path(rpf_lightning.__file__).parent).encode() not in contents(path)


def test_torch_equals_eager(tmp_path):
    model, path = small(), tmp_path / "model.pt2"
    exported = export_model(model, path, "torch", batch_size=2)
    inputs = inputs_of(exported)
    assert list(inputs) == ["lr", "reference", "mask"]
    expected = model(*inputs.values()).detach()
    torch.testing.assert_close(run_torch(path, inputs), expected, atol=TOLERANCE, rtol=0)
    assert 0 <= exported.difference < TOLERANCE
    assert str(Path(rpf_lightning.__file__).parent).encode() not in contents(path)


def test_weights_near_protobufs_limit_get_their_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    model, path = small(lr_size=4), tmp_path / "model.onnx"
    exported = export_model(model, path, mask=False)
    assert exported.files == (path, tmp_path / "model.onnx.data")
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)
    inputs = inputs_of(exported)
    expected = model(*inputs.values()).detach()
    torch.testing.assert_close(run_onnx(path, inputs), expected, atol=TOLERANCE, rtol=0)
    moved = tmp_path / "elsewhere"  # the graph names the weights' file without a folder
    moved.mkdir()
    for file in exported.files:
        file.rename(moved / file.name)
    torch.testing.assert_close(run_onnx(moved / "model.onnx", inputs), expected, atol=TOLERANCE, rtol=0)


def test_the_model_and_the_random_state_stay_as_they_were(tmp_path):
    model = small(lr_size=4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lr, state = images(4), torch.get_rng_state()
    expected = model(lr)
    export_model(model, tmp_path / "model.onnx", reference=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(lr), expected)


@pytest.mark.parametrize(("wrong", "there_before"), [(2e-4, True), (float("nan"), False)])
def test_a_difference_leaves_no_file(wrong, there_before, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    if there_before:
        path.write_bytes(b"old")
    model = small(lr_size=4)
    write_nothing(monkeypatch)
    run = lambda _file, _format, inputs: model(*inputs.values()).detach() + wrong  # noqa: E731
    monkeypatch.setattr(export, "_run", run)
    with pytest.raises(RuntimeError, match=rf"{path}: not written, its output differs .* (0.0002|nan)"):
        export_model(model, path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"] * there_before


@pytest.mark.parametrize(("format", "name"), [("torch", "a.pt2"), ("onnx", "a.onnx")])
def test_a_full_disk_is_an_error_of_one_line(
    format, name, tmp_path, model_dir, capfd, disk_full_after_1000_bytes
):
    """torch's own writer would end the process."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"earlier")
    words = f"export {model_dir} --out {out / name} --format {format} --tolerance 1"
    with pytest.raises(SystemExit) as stopped, disk_full_after_1000_bytes:
        main(words.split())
    assert stopped.value.code == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "rpf export: error" in line]
    assert len(said) == 1
    assert "File too large" in said[0]
    assert name in said[0]
    assert [(file.name, file.read_bytes()) for file in out.iterdir()] == [(name, b"earlier")]


def test_a_difference_within_the_tolerance_passes(tmp_path, monkeypatch):
    path = tmp_path / "made" / "on the way" / "model.onnx"
    model = small(lr_size=4)
    write_nothing(monkeypatch)
    run = lambda _file, _format, inputs: model(*inputs.values()).detach() + 5e-5  # noqa: E731
    monkeypatch.setattr(export, "_run", run)
    exported = export_model(model, path)
    assert exported.difference == pytest.approx(5e-5, rel=0.01)
    with pytest.raises(RuntimeError, match="more than the tolerance of 1e-05"):
        export_model(model, path, tolerance=1e-5)
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_failing_export_leaves_nothing(format, tmp_path, monkeypatch):
    def fail(*args, f=None, **_):
        file = f or args[1]
        if isinstance(file, io.BytesIO):
            file.write(b"half")
        else:
            Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(small(lr_size=4), tmp_path / "model.pt2", format)
    assert list(tmp_path.iterdir()) == []


BAD = {
    "format": ({"format": "tflite"}, "format: expected onnx or torch, got 'tflite'"),
    "batch": ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    "side": ({"lr_size": 8}, "lr_size: expected 16 or 32, got 8"),
    "side of the output": ({"lr_size": 64}, "lr_size: expected 16 or 32, got 64"),
    "old opset": ({"opset": 17}, r"opset: expected 18 to \d+, got 17"),
    "unknown opset": ({"opset": 999}, r"opset: expected 18 to \d+, got 999"),
    "ending": ({"format": "torch"}, "path: expected a name that ends in .pt2 .* got model.onnx"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(arguments, message, tmp_path):
    path = tmp_path / "folder" / "model.onnx"
    with pytest.raises(ValueError, match=message):
        export_model(small(4), path, **arguments)
    assert not path.parent.exists()


def test_bad_paths_and_models(tmp_path):
    with pytest.raises(ValueError, match=f"path: expected a file, but {tmp_path} is a directory"):
        export_model(small(), tmp_path)
    with pytest.raises(ValueError, match=r"model: expected parameters on the CPU in fp32, got .*float16"):
        export_model(small().half(), tmp_path / "model.onnx")


def test_onnx_without_its_extra(model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["export", str(model_dir), "--out", str(tmp_path / "model.onnx")])
    assert "pip install 'rpf-lightning[export]'" in capsys.readouterr().err


def test_command(model_dir, tmp_path, capfd, caplog):
    path = tmp_path / "out" / "model.onnx"
    main(["export", str(model_dir), "--out", str(path), "--batch_size", "2", "--lr_size", "32", "--no-mask"])
    out, err = capfd.readouterr()
    size = path.stat().st_size / 1e6
    assert out.startswith(f"{path}: {size:.1f} MB, lr (2, 3, 32, 32), reference (2, 3, 64, 64), largest diff")
    assert out.count("\n") == 1
    assert float(out.split()[-1]) < TOLERANCE
    assert err == ""
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
    model, inputs = RPFModel.from_pretrained(model_dir), {"lr": images(32, 2), "reference": images(64, 2)}
    with torch.no_grad():  # in strips, as the command line runs it
        expected = model(*inputs.values())
    torch.testing.assert_close(run_onnx(path, inputs), expected, atol=TOLERANCE, rtol=0)


def test_the_command_names_what_is_wrong(model_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, options, message in (
        (tmp_path / "empty", [], "empty is no model directory: it has no config.json"),
        (model_dir, ["--opset", "12"], "rpf export: error: opset: expected 18 to"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", str(folder), "--out", str(tmp_path / "a.onnx"), *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(("format", "run"), [("onnx", run_onnx), ("torch", run_torch)])
def test_a_fused_model(format, run, tmp_path):
    model, path = small(), tmp_path / "model.pt2"
    inputs = {"lr": images(16), "reference": images(32)}
    expected = model(*inputs.values()).detach()
    export_model(model.fuse(), path, format, mask=False)
    torch.testing.assert_close(run(path, inputs), expected, atol=TOLERANCE, rtol=0)


COPY = {**NEAR_IDENTITY, "synthesis_copy": True, "flow_from": "previous", "refinement_mean": False}


@pytest.mark.parametrize(("format", "scale", "references"), [("onnx", 4, 2), ("torch", 2, None)])
def test_copy_path_and_several_references(tmp_path, format, scale, references):
    """Absent references, which differ from run to run, as well."""
    model, path = small(scale, **COPY), tmp_path / "model.pt2"
    with torch.no_grad():  # flows of flows as steep as `small` makes them would amplify the rounding
        for block in model.blocks:
            block.warping.flow_head.weight.mul_(0.05)
    exported = export_model(model, path, format, batch_size=2, references=references)
    axis = () if references is None else (2,)
    assert exported.inputs["reference"] == (2, *axis, 3, model.size, model.size)
    assert exported.inputs["mask"] == (2, *axis, 1, model.size, model.size)
    torch.manual_seed(1)
    inputs = {
        key: images(shape[-1], shape[0] * (shape[1] if len(shape) == 5 else 1), shape[-3]).view(shape)
        for key, shape in exported.inputs.items()
    }
    inputs["mask"] = (inputs["mask"] > 0.3).float()
    inputs["mask"][0, :1] = 0  # the first one of the first sample
    run = run_onnx if format == "onnx" else run_torch
    with torch.no_grad():
        expected = model(*inputs.values())
    torch.testing.assert_close(run(path, inputs), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "kwargs"),
    [({}, {"references": 2}), (COPY, {"references": 0}), (COPY, {"references": 2, "reference": False})],
)
def test_references_of_a_model_that_takes_none(tmp_path, options, kwargs):
    message = r"references: expected at least 1, with a reference and .*synthesis_copy"
    with pytest.raises(ValueError, match=message):
        export_model(small(**options), tmp_path / "m.onnx", **kwargs)
