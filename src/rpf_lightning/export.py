"""Export of a whole model at fixed sizes, to ONNX or `torch.export`; every file is run and compared."""

from __future__ import annotations

import glob
import io
import os
import shutil
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rpf_lightning.files import write_atomically
from rpf_lightning.model import RPFModel

Format = Literal["onnx", "torch"]
OLDEST_OPSET = 18  # the first whose Resize can antialias
TOLERANCE = 1e-4  # of values in [0, 1]
TEMPORARY = ".exporting"  # end of the name of a folder


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: The file that was asked for and, for ONNX above 1.5 GiB of weights, the file that holds them.
        inputs: Names of the inputs in their order, with their shapes.
        difference: Largest absolute difference between the exported and the eager output.
    """

    files: tuple[Path, ...]
    inputs: dict[str, tuple[int, ...]]
    difference: float


def export_model(
    model: RPFModel,
    path: str | Path,
    format: Format = "onnx",
    batch_size: int = 1,
    lr_size: int | None = None,
    reference: bool = True,
    mask: bool = True,
    references: int | None = None,
    opset: int = OLDEST_OPSET,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a model as one graph of fixed sizes, then run the file and compare it with the model.

    The inputs are `lr` (B, 3, l, l), `reference` (B, 3, S, S) and `mask` (B, 1, S, S), the output is `output`
    (B, 3, S, S), all fp32 in [0, 1] as in `RPFModel.forward`. The file appears whole and checked, or not at
    all; one that was there before stays until then. Of two files, the weights are replaced first.

    Args:
        model: On the CPU, in fp32.
        path: The file to write; missing folders are made. ONNX above 1.5 GiB of weights has a second file
            beside it, of the same name with ``.data`` at its end.
        format: ``"onnx"``, or ``"torch"`` for a file ``.pt2`` that `torch.export.load` reads.
        batch_size: B.
        lr_size: l; a side of more than L enters at a later block. None: L.
        reference: False: the only input is `lr`, whose enlargement serves as the reference.
        mask: False: there is no input `mask`. Without a reference there never is one.
        references: K, of a model with `synthesis_copy`: `reference` is (B, K, 3, S, S) and `mask` (B, K, 1, S, S); one
            that is zero everywhere is absent. None: one reference per sample, without that axis.
        opset: ONNX operator set; 18 at least.
        tolerance: Largest difference of the outputs that passes. Rounding stays far below the default in a
            trained model, but an untrained one without `residual` amplifies it and may need more.

    Raises:
        ValueError: If an argument is outside its range, or the model is not on the CPU in fp32.
        RuntimeError: If the outputs differ by more than `tolerance`.
        ModuleNotFoundError: If ONNX is asked for without the extra `export`.
    """
    path = Path(path)
    _check(model, path, format, opset)
    inputs = _random_inputs(model, batch_size, lr_size, reference, mask, references)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(TEMPORARY, f".{path.name}.", path.parent) as folder,
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", category=FutureWarning)  # torch's about its own calls
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch's, about its own load
        warnings.filterwarnings("ignore", "No complete tensor found")  # torch's, about a fused model's layout
        file = Path(folder) / path.name
        _write(torch.export.export(model, tuple(inputs.values())), file, format, list(inputs), opset)
        difference = (_run(file, format, inputs) - model(*inputs.values())).abs().max().item()
        if not difference <= tolerance:  # also true for NaN
            raise RuntimeError(
                f"{path}: not written, its output differs from the model's by {difference:.3g}, "
                f"more than the tolerance of {tolerance:g}"
            )
        written = sorted(Path(folder).iterdir())
        for part in reversed(written):  # the weights before the graph that names them
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.replace(path.with_name(part.name))
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    return Exported(tuple(path.with_name(part.name) for part in written), shapes, difference)


def _check(model: RPFModel, path: Path, format: str, opset: int) -> None:
    if format not in get_args(Format):
        raise ValueError(f"format: expected {' or '.join(get_args(Format))}, got {format!r}")
    if format == "onnx":
        from onnx.defs import onnx_opset_version

        if find_spec("onnxscript") is None:
            raise ModuleNotFoundError(
                "ONNX needs onnxscript: pip install 'rpf-lightning[export]'", name="onnxscript"
            )
        newest = onnx_opset_version()
        if not OLDEST_OPSET <= opset <= newest:
            raise ValueError(f"opset: expected {OLDEST_OPSET} to {newest}, got {opset}")
    elif path.suffix != ".pt2":  # torch.export.load expects it
        raise ValueError(f"path: expected a name that ends in .pt2 for the format torch, got {path.name}")
    if path.is_dir():
        raise ValueError(f"path: expected a file, but {path} is a directory")
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    if kinds != {("cpu", torch.float32)}:
        raise ValueError(f"model: expected parameters on the CPU in fp32, got {kinds}")


def _random_inputs(
    model: RPFModel, batch_size: int, lr_size: int | None, reference: bool, mask: bool, references: int | None
) -> dict[str, Tensor]:
    sides = model.config.entry_sides
    lr_size = model.lr_size if lr_size is None else lr_size
    if lr_size not in sides:
        raise ValueError(f"lr_size: expected {' or '.join(map(str, sides))}, got {lr_size}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if references is not None and not (reference and model.config.synthesis_copy and references >= 1):
        raise ValueError(
            f"references: expected at least 1, with a reference and a model with synthesis_copy=True, got {references}"
        )
    generator = torch.Generator().manual_seed(0)
    inputs = {"lr": torch.rand(batch_size, 3, lr_size, lr_size, generator=generator)}
    if reference:
        batch = (batch_size,) if references is None else (batch_size, references)
        inputs["reference"] = torch.rand(*batch, 3, model.size, model.size, generator=generator)
        if mask:
            inputs["mask"] = torch.rand(*batch, 1, model.size, model.size, generator=generator).round()
    return inputs


def _write(
    program: torch.export.ExportedProgram, file: Path, format: Format, names: list[str], opset: int
) -> None:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # would put this machine's paths into the file
    if format == "torch":
        # by way of memory: on a full disk torch's own writer ends the process
        content = io.BytesIO()
        torch.export.save(program, content)
        write_atomically(file, content.getbuffer())
    else:
        try:
            torch.onnx.export(
                program, f=file, input_names=names, output_names=["output"], opset_version=opset,
                external_data=False,  # one file; torch writes two where protobuf's limit of 2 GB is near
                verbose=False,
            )  # fmt: skip
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(file)
            raise


def _run(file: Path, format: Format, inputs: dict[str, Tensor]) -> Tensor:
    if format == "torch":
        return torch.export.load(file).module()(*inputs.values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    options.enable_cpu_mem_arena = False  # keeps less memory after the largest maps
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(output)
