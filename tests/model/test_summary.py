import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from rpf_lightning.cli import main
from rpf_lightning.model import RPFModel
from rpf_lightning.model.reference_slots import Slots
from rpf_lightning.model.resize import resample_matrix
from rpf_lightning.model.summary import MODULES, count, table

SMALL = {"lr_size": 4, "scale": 8, "channels": 3, "width": 1 / 128}
NEW = {"synthesis_residual": True, "synthesis_copy": True, "flow_from": "previous", "refinement_mean": False}
OPTIONS = {
    "default": {},
    "skip": {"skip": "literal", "act": "relu"},
    "fuse": {"synthesis_fuse": False, "synthesis_residual": True},
    "not progressive": {"progressive": False},
    "copy path and flow handed on": NEW,
}


def on_meta(**kwargs):
    with torch.device("meta"):
        return RPFModel(**kwargs)


def small(**kwargs):
    return RPFModel(**{**SMALL, **kwargs})


def cells(line):
    title, *values = (cell.strip() for cell in line.strip("|").split("|"))
    return title, [float(value) for value in values]


class Products(TorchFunctionMode):
    """Adds up multiply-accumulates of what really runs: every output value (or, transposed, every input value)
    meets the weights of one channel."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        if name == "conv2d":
            self.macs += result.numel() * args[1][0].numel()  # weight (out, in / groups, k, k)
        elif name == "conv_transpose2d":
            self.macs += args[0].numel() * args[1][0].numel()  # weight (in, out, k, k)
        elif name == "linear":
            self.macs += result.numel() * args[1].shape[1]
        elif "matmul" in name:
            self.macs += result.numel() * args[0].shape[-1]
        return result


def test_order():
    rows = count(small())
    assert [row[:3] for row in rows] == [
        (n, side, name) for n, side in enumerate((8, 16, 32), start=1) for name in MODULES
    ]
    assert MODULES == ("warping", "synthesis", "refinement")
    assert all(type(number) is int for row in rows for number in (row.parameters, row.macs))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_macs_are_those_of_a_real_run(options):
    model = small(**options)
    expected = []
    for n, block in enumerate(model.blocks):
        copies = model.config.synthesis_copy
        x = torch.rand(1, 3, block.in_side, block.in_side)
        level = torch.rand(1, 3 + copies, block.side, block.side)
        flow = torch.rand(1, 2, block.in_side, block.in_side) if n else None  # the first block is handed none
        slots = (Slots(level),) if copies else ()
        given = (x, level, flow), (x, level, *slots), (level[:, :3],)
        for module, inputs in zip(block.children(), given, strict=False):
            with Products() as products:
                module(*inputs)
            expected.append(products.macs)
    assert [row.macs for row in count(model)] == expected
    assert sum(row.parameters for row in count(model)) == sum(p.numel() for p in model.parameters())
    assert min(expected) > 0


def test_a_network_with_sizes_per_block_on_the_command_line(capsys):
    arguments = {**NEW, "channels": [3, 2, 1], "width": [1 / 64, 1 / 128, 1 / 128], "lr_size": 4, "scale": 8}
    words = [
        f"--{name}={json.dumps(value) if not isinstance(value, str) else value}"
        for name, value in arguments.items()
    ]
    main(["summary", *words])
    assert capsys.readouterr().out == table(RPFModel(**arguments)) + "\n"
    with pytest.raises(SystemExit):
        main(["summary", "--channels", "[64, 64]"])
    assert (
        "channels: expected one number or a list of 6, one per block, got [64, 64]" in capsys.readouterr().err
    )


def test_the_light_network():
    model = on_meta(channels=[64, 64, 64, 32, 16, 16], width=0.125, residual=True, **NEW)
    assert sum(row.macs for row in count(model)) / 1e9 == pytest.approx(96.5, abs=0.1)


def test_leaves_the_model_and_the_random_numbers_alone():
    model = small().eval()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    count(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name])


def test_caches_no_resizing_matrix_on_meta():
    resample_matrix.cache_clear()
    count(on_meta(**SMALL))
    assert resample_matrix.cache_info().currsize == 0
    assert small().blocks[0].enlarge.matrix.device.type == "cpu"


def test_same_anywhere():
    expected = count(small())
    assert count(on_meta(**SMALL)) == expected
    assert count(small().half()) == expected
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert count(small()) == expected


def test_docs_show_what_main_prints(capsys):
    page = (Path(__file__).parents[2] / "docs" / "network.md").read_text()
    main(["summary"])
    assert f"\n\n{capsys.readouterr().out}\n" in page
    lines = [line for line in page.splitlines() if line.startswith("| `rpf summary")]
    assert len(lines) == 7
    for line in lines:
        command, totals = cells(line)
        main(command.strip("`").split()[1:])
        assert cells(capsys.readouterr().out.splitlines()[-1]) == ("total", totals)


def test_main_reads_only_the_configuration_of_a_model_directory(tmp_path, capsys):
    model = small(residual=True)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = torch.get_rng_state()
    main(["summary", "--model_dir", str(tmp_path)])
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == table(model) + "\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lr_size", "12"], "lr_size: expected a power of two of at least 4, got 12"),
        (["--lr_size", "16.5"], '"lr_size"'),
        (["--width", "0"], "width: expected positive numbers up to 8, got 0"),
        (["--skip", "none"], '"skip"'),
        (["--depth", "3"], "--depth"),
        (["--model_dir", "x", "--width", "1", "--act", "relu"], "leave out --width, --act"),
    ],
)
def test_main_names_bad_arguments(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["summary", *args])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "expected JSON"),
        (json.dumps({"depth": 3}), "depth"),
        ("[16, 64]", "expected a JSON object"),
        (b"\xff{}", "expected JSON"),
        (json.dumps({"lr_size": "16"}), "lr_size: expected a power of two of at least 4, got '16'"),
        (json.dumps({"scale": 3}), "scale: expected a power of two"),
    ],
)
def test_main_names_the_file_at_fault(tmp_path, content, message, capsys):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stopped:
        main(["summary", "--model_dir", str(tmp_path)])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(tmp_path / "config.json") in err
    assert message in err


def test_needs_no_lightning():
    code = (
        "from rpf_lightning.cli import main; import sys\n"
        "main(['summary', '--lr_size=4', '--scale=2'])\n"
        "print([name for name in ('lightning', 'jsonargparse') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "['jsonargparse']"
