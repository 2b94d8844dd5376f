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

# Rounded figures of docs/network.md: side -> GMAC and parameters in millions of (warping, synthesis, refinement)
GMAC = {
    32: (0.2, 0.4, 11.2),
    64: (1.0, 1.5, 45.1),
    128: (3.8, 6.1, 83.9),
    256: (15.4, 24.5, 122.9),
    512: (61.7, 98.0, 162.3),
    1024: (246.8, 392.0, 202.4),
}
MILLIONS = {
    32: (0.55, 0.38, 42.5),
    64: (0.80, 0.38, 55.1),
    128: (1.05, 0.38, 59.9),
    256: (1.30, 0.38, 61.4),
    512: (1.55, 0.38, 62.0),
    1024: (1.80, 0.38, 62.4),
}
LITERAL_GMAC = (6.4, 25.8, 64.7, 103.7, 143.1, 183.2)
LITERAL_MILLIONS = (42.5, 55.1, 63.5, 66.0, 66.9, 67.3)
SMALL = {"lr_size": 4, "scale": 8, "channels": 3, "width": 1 / 128}
NEW = {"synthesis_residual": True, "synthesis_copy": True, "flow_from": "previous", "refinement_mean": False}
OPTIONS = {
    "default": {},
    "skip": {"skip": "literal"},
    "act": {"act": "relu"},
    "fuse": {"synthesis_fuse": False},
    "residual": {"residual": True},
    "synthesis_residual": {"synthesis_residual": True},
    "not progressive": {"progressive": False},
    "init": {"init": "torch", "flow_unit": "pixels"},
}


def on_meta(**kwargs):
    with torch.device("meta"):
        return RPFModel(**kwargs)


def small(**kwargs):
    return RPFModel(**{**SMALL, **kwargs})


def printed(value, decimals):
    """Within 1 % of the reference's figure, or of its last printed digit."""
    return pytest.approx(value, rel=0.01, abs=0.5 * 10**-decimals)


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


def test_table_of_the_papers_model():
    header, rule, *lines, total = table(on_meta()).splitlines()
    names = [name.strip() for name in header.strip("|").split("|")]
    assert names == [
        "side", "warping GMAC", "synthesis GMAC", "refinement GMAC", "GMAC", "GFLOP",
        "warping M", "synthesis M", "refinement M", "M",
    ]  # fmt: skip
    assert rule == "|" + "---:|" * len(names)
    rows = dict(map(cells, lines))
    assert list(rows) == [str(side) for side in GMAC]
    for side in GMAC:
        values = rows[str(side)]
        assert values[:3] == [printed(v, 1) for v in GMAC[side]]
        assert values[5:8] == [printed(v, d) for v, d in zip(MILLIONS[side], (2, 2, 1), strict=True)]
        assert values[3] == pytest.approx(sum(values[:3]), abs=0.002)
        assert values[4] == pytest.approx(2 * values[3], abs=0.002)
        assert values[8] == pytest.approx(sum(values[5:8]), abs=0.002)
    title, totals = cells(total)
    assert title == "total"
    assert totals == [pytest.approx(sum(column), abs=0.005) for column in zip(*rows.values(), strict=True)]
    assert totals[3] == pytest.approx(1479, rel=0.01)
    assert totals[4] == pytest.approx(2958, rel=0.01)
    assert totals[8] == pytest.approx(352, rel=0.01)


def test_literal_skip():
    rows = [row for row in count(on_meta(skip="literal")) if row.module == "refinement"]
    assert [row.macs / 1e9 for row in rows] == [printed(v, 1) for v in LITERAL_GMAC]
    assert [row.parameters / 1e6 for row in rows] == [printed(v, 1) for v in LITERAL_MILLIONS]


def test_order():
    rows = count(small())
    assert [row[:3] for row in rows] == [
        (n, side, name) for n, side in enumerate((8, 16, 32), start=1) for name in MODULES
    ]
    assert MODULES == ("warping", "synthesis", "refinement")
    assert all(type(number) is int for row in rows for number in (row.parameters, row.macs))


def test_smallest_warping_by_hand():
    warping = count(RPFModel(4, 2, channels=2, width=1 / 128))[0]
    lr_features, reference_features, flow_head = 4 * 4 * 8 * 27, 8 * 8 * 2 * 27, 8 * 8 * 2 * 4 * 9
    assert warping.macs == lr_features + reference_features + flow_head
    assert warping.parameters == 8 * 27 + 8 + 2 * 27 + 2 + 2 * 4 * 9 + 2


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_macs_are_those_of_a_real_run(options):
    model = small(**options)
    expected = []
    for block in model.blocks:
        x, image = torch.rand(1, 3, block.in_side, block.in_side), torch.rand(1, 3, block.side, block.side)
        for module, inputs in zip(block.children(), ((x, image), (x, image), (image,)), strict=False):
            with Products() as products:
                module(*inputs)
            expected.append(products.macs)
    assert [row.macs for row in count(model)] == expected
    assert min(expected) > 0


def test_macs_of_the_copy_path_and_of_a_flow_that_is_handed_on():
    """The gate, the resizing of the reference's high band and of the flow count; the first block is handed none."""
    model = small(**NEW)
    expected = []
    for n, block in enumerate(model.blocks):
        x, level = torch.rand(1, 3, block.in_side, block.in_side), torch.rand(1, 4, block.side, block.side)
        flow = torch.rand(1, 2, block.in_side, block.in_side) if n else None
        for module, inputs in (
            (block.warping, (x, level, flow)),
            (block.synthesis, (x, level, Slots(level))),
            (block.refinement, (level[:, :3],)),
        ):
            with Products() as products:
                module(*inputs)
            expected.append(products.macs)
    assert [row.macs for row in count(model)] == expected
    plain = count(small(**{**NEW, "synthesis_copy": False, "flow_from": None}))
    more = [row.macs - other.macs for row, other in zip(count(model), plain, strict=True)]
    sides = [(block.in_side, block.side) for block in model.blocks]
    for place, (small_side, side) in enumerate(sides):
        up = small_side * (small_side * side + side * side)  # of one channel
        gate, down = 9 * 3 * side * side, side * (side * small_side + small_side * small_side)
        assert more[3 * place] == (2 * up if place else 0)
        assert more[3 * place + 1] == gate + 3 * down + 3 * up
        assert more[3 * place + 2] == 0


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


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_parameters_are_the_models(options):
    model = small(**options)
    assert sum(row.parameters for row in count(model)) == sum(p.numel() for p in model.parameters())


def test_parameters_come_from_the_given_model():
    model = small()
    before = count(model)
    model.blocks[0].refinement.to_rgb.bias = None
    after = count(model)
    assert before[2].parameters - after[2].parameters == 3
    assert [row.parameters for row in before[3:]] == [row.parameters for row in after[3:]]


def test_leaves_the_model_and_the_random_numbers_alone():
    model = small(synthesis_residual=True).eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    config, state = model.config, torch.get_rng_state()
    count(model)
    table(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config == config
    assert not any(module.training for module in model.modules())
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(after) == list(tensors)
    for name, tensor in after.items():
        assert tensor is tensors[name]
        assert torch.equal(tensor, values[name])
        assert tensor.grad is None


def test_caches_no_resizing_matrix_on_meta():
    resample_matrix.cache_clear()
    count(on_meta(**SMALL))
    assert resample_matrix.cache_info().currsize > 0
    assert small().blocks[0].enlarge.matrix.device.type == "cpu"


def test_same_anywhere():
    expected = count(small())
    assert count(on_meta(**SMALL)) == expected
    assert count(on_meta(**SMALL).to("meta")) == expected
    assert count(small().half()) == expected
    assert count(small().eval()) == expected
    with torch.inference_mode():
        assert count(small()) == expected
        assert not torch.is_grad_enabled()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert count(small()) == expected


def test_main_prints_the_table(capsys):
    state = torch.get_rng_state()
    words = [f"--{name}={value}" for name, value in SMALL.items()]
    main(["summary", *words, "--skip", "literal", "--progressive=false"])
    assert torch.equal(torch.get_rng_state(), state)  # no weights were drawn
    assert capsys.readouterr().out == table(small(skip="literal", progressive=False)) + "\n"


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
        (["--width", "0"], "channels and width must be positive, got 64 and 0"),
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
        (json.dumps({"lr_size": "16"}), "'<' not supported"),
        (json.dumps({"scale": 3}), "scale: expected a power of two"),
        (json.dumps({"width": float("inf")}), "width must be positive"),
    ],
)
def test_main_names_the_file_at_fault(tmp_path, content, message, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
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
