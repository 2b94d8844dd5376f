"""Inference time and memory of the whole network: the floor, a straightforward version, and ours.

    python benchmarks/inference.py                       # 16 -> 1024 at width 1, all tables (about 12 minutes)
    python benchmarks/inference.py --scale 8 --width 0.25
    python benchmarks/inference.py --only ours low compiled

Every variant runs in a process of its own: ceilings taken before and after, one forward to warm up, then the best of
`--repeats`. The floor is the network's FLOP divided by the ceiling, which is a large fp32 matrix product; where the
processor's convolutions are faster than its matrix products, the second ratio, to the rate of a 512 -> 512
convolution, is the stricter one. `difference` is the largest absolute difference of the output to the first variant's.
Memory is resident memory: after loading the model, and how much the variant's preparation and runs add to that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import gpu
import measure
import torch
import torch.nn.functional as F
from straightforward import StraightforwardRPF
from torch import Tensor

from rpf_lightning.model import RPFModel, strips
from rpf_lightning.model.reconstruction_block import ReconstructionBlock
from rpf_lightning.model.resize import resize
from rpf_lightning.model.storage import CONFIG_FILE, read_config
from rpf_lightning.model.strips import WHOLE, Strips
from rpf_lightning.model.summary import count

Run = Callable[[], Tensor]
IMAGES = "images.pt"


def straightforward(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """Per-sample weights and grouped convolutions, contiguous, nothing folded."""
    network = StraightforwardRPF(model).eval()
    return lambda: network(lr, reference)


def modules(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """The library's modules on whole maps: in place, one sample's style in the weights."""
    model._rows = lambda *_: WHOLE  # type: ignore[method-assign]
    return lambda: model(lr, reference)


def channels_last(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """+ channels_last."""
    return modules(model.to(memory_format=torch.channels_last), lr, reference)


def fused(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """+ fuse()."""
    return modules(model.fuse(), lr, reference)


def ours(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """+ in strips = the default on a CPU."""
    model.fuse()
    return lambda: model(lr, reference)


def unfused(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """The same without fuse(), as loaded."""
    return lambda: model(lr, reference)


def low(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """memory="low"."""
    model.fuse()
    model.memory = "low"
    return lambda: model(lr, reference)


def light(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """The light network: channels 64, 64, 64, 32, 16, 16, width .125, with the copy path."""
    return ours(model, lr, reference)


def compiled(model: RPFModel, lr: Tensor, reference: Tensor) -> Run:
    """torch.compile of the fused modules."""
    model.fuse()
    network = torch.compile(model)
    return lambda: network(lr, reference)


DEFAULT = (straightforward, modules, channels_last, fused, ours, unfused, low, light)
VARIANTS = {variant.__name__: variant for variant in (*DEFAULT, compiled)}  # the last needs a C++ compiler


def build(options: argparse.Namespace) -> tuple[RPFModel, Tensor, Tensor]:
    """A seeded model whose warp is not the identity and whose images are in the range of photos; smooth inputs."""
    torch.manual_seed(0)
    model = RPFModel(16, options.scale, width=options.width, validate=False).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.weight.normal_(std=0.5)  # type: ignore[union-attr, operator]
            block.synthesis.to_rgb.weight.mul_(0.1)  # type: ignore[union-attr, operator]
            block.refinement.to_rgb.weight.mul_(0.4)  # type: ignore[union-attr, operator]
            block.refinement.to_rgb.bias.fill_(0.5)  # type: ignore[union-attr, operator]
    return model, torch.rand(1, 3, 16, 16), resize(torch.rand(1, 3, 32, 32), model.size).clamp(0, 1)


def light_network(blocks: int) -> RPFModel:
    """A seeded network whose blocks above 128 pixels have few channels, with everything that is not in the paper."""
    torch.manual_seed(0)
    channels = [64, 64, 64, 32, 16, 16][:blocks]
    model = RPFModel(
        16, 2**blocks, channels=channels, width=0.125, residual=True, synthesis_residual=True, synthesis_copy=True,
        flow_from="previous", refinement_mean=False, validate=False,
    )  # fmt: skip
    with torch.no_grad():
        for block in model.blocks:
            block.warping.flow_head.weight.normal_(std=0.5)  # type: ignore[union-attr, operator]
    return model.eval()


def save(folder: Path, options: argparse.Namespace) -> None:
    """Write the model and the images for the processes that measure."""
    model, *images = build(options)
    model.save_pretrained(folder)
    torch.save(tuple(images), folder / IMAGES)


def run_variant(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant in this process."""
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        before = measure.ceiling(), measure.convolution_ceiling()
        with torch.inference_mode(False):
            if name == "light":
                model = light_network(len(read_config(options.folder / CONFIG_FILE).sides))
            else:
                model = RPFModel.from_pretrained(options.folder, validate=False)
        lr, reference = torch.load(options.folder / IMAGES)
        loaded = measure.resident()
        measure.reset_peak()
        run = VARIANTS[name](model, lr, reference)
        output = run()
        times = [measure.seconds(run) for _ in range(options.repeats)]
        memory = measure.peak() - loaded
        after = measure.ceiling(), measure.convolution_ceiling()
        product, convolution = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        result = {"seconds": min(times), "loaded": loaded, "memory": memory}
        result |= {"ceiling": product, "convolution": convolution}
        torch.save(output, options.folder / name)
        if name == "ours" and options.layers:
            result["layers"] = layers(run)
            result["reuse"] = reuse(model, lr, reference)
            result["sides"] = by_side(model, options.repeats)
    return result


def layers(run: Run) -> list[list[Any]]:
    """Seconds and MACs of one run by kind of layer: [name, calls, GMAC, seconds], largest first."""
    with torch.profiler.profile(record_shapes=True, with_flops=True) as profile:
        run()
    groups: dict[str, list[Any]] = defaultdict(lambda: [0, 0.0, 0.0])
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key in ("aten::conv2d", "aten::conv_transpose2d"):
            group, macs = _convolution(event)
            total = event.cpu_time_total
        else:
            group, macs, total = event.key.removeprefix("aten::"), event.flops / 2, event.self_cpu_time_total
            if "conv" in group:
                continue  # inside the two above
        row = groups[group]
        row[0] += event.count
        row[1] += macs / 1e9
        row[2] += total / 1e6
    return sorted(([name, *row] for name, row in groups.items()), key=lambda row: -row[3])


def _convolution(event: Any) -> tuple[str, float]:
    """Name and MACs of all calls of one shape; the rows of a strip's rim count, for they are computed."""
    (_, _, height, width), weight = event.input_shapes[:2]
    a, b, kernel = weight[:3]
    if event.key == "aten::conv_transpose2d":  # the profiler does not know its FLOP
        macs = float(a * b * kernel * kernel * height * width) * event.input_shapes[0][0] * event.count
        return f"deconv {kernel}x{kernel} {a} -> {b}, from width {width}", macs
    if kernel == 4:
        return f"FIR, {a} channels, width {width}", event.flops / 2
    return f"conv {b} -> {a}, width {width}", event.flops / 2


def reuse(model: RPFModel, lr: Tensor, reference: Tensor) -> dict[str, float]:
    """Seconds of what further LR images of one person share, and of the rest.

    `encode`: masking and halving, which `encode_reference` keeps. `features`: the warping modules' first convolutions
    of the reference, the only other thing that depends on the reference alone; the library does not keep them.
    """
    mask = torch.ones_like(reference[:, :1])
    levels = model.encode_reference(reference, mask)
    convolutions = [block.warping.reference_features for block in model.blocks]  # type: ignore[union-attr]

    def features() -> None:
        for convolution, level in zip(convolutions, levels, strict=True):
            convolution(level)  # type: ignore[operator]

    features()
    return {
        "encode": min(measure.seconds(lambda: model.encode_reference(reference, mask)) for _ in range(3)),
        "features": min(measure.seconds(features) for _ in range(3)),
        "forward": min(measure.seconds(lambda: model(lr, levels)) for _ in range(2)),
    }


def by_side(model: RPFModel, repeats: int) -> list[list[float]]:
    """Each block on whole maps and in strips, in turns: [side, seconds and MB of either]."""
    rows = []
    for block in cast("list[ReconstructionBlock]", model.blocks):
        x, level = torch.rand(1, 3, block.in_side, block.in_side), torch.rand(1, 3, block.side, block.side)
        spent: dict[int, list[float]] = {2**62: [], strips.STRIP_BYTES: []}
        added = dict.fromkeys(spent, 0.0)
        for size in list(spent) * (repeats + 1):
            strips.STRIP_BYTES = size
            strips.release()
            before = measure.resident()
            measure.reset_peak()
            spent[size].append(measure.seconds(partial(block, x, level, rows=Strips())))
            added[size] = measure.peak() - before
        rows.append([block.side, *(value for size in spent for value in (min(spent[size]), added[size]))])
    return rows


def fir_folding() -> str:
    """Separate FIR against the FIR folded into the convolution (6x6 kernels), on maps of 16 MB."""

    def best(run: Callable[..., object], *tensors: Tensor) -> str:
        run(*tensors)
        return f"{min(measure.seconds(partial(run, *tensors)) for _ in range(5)) * 1e3:.1f}"

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)

    rows = []
    for side, fine, coarse in ((1024, 32, 64), (512, 64, 128), (128, 256, 512), (64, 512, 512)):
        height = min(side, 16 * 2**20 // (4 * fine * side))
        fir, name = tensor(fine, 1, 4, 4), f"side {side}, {fine} channels, and {coarse} at half the side"
        x, weight, folded = (
            tensor(1, fine, height, side),
            tensor(coarse, fine, 3, 3),
            tensor(coarse, fine, 6, 6),
        )
        rows.append(["down: " + name, best(down, x, fir, weight), best(down_folded, x, folded)])
        x, weight = tensor(1, coarse, height // 2, side // 2), tensor(coarse, fine, 3, 3)
        folded = tensor(4 * fine, coarse, 3, 3)
        rows.append(["up: " + name, best(up, x, fir, weight), best(up_folded, x, folded)])
    return measure.markdown(["FIR and convolution", "apart, ms", "folded, ms"], rows)


def down(x: Tensor, fir: Tensor, weight: Tensor) -> Tensor:
    """FIR, then a convolution with stride 2."""
    return F.conv2d(F.conv2d(x, fir, padding=2, groups=len(fir)), weight, stride=2)


def down_folded(x: Tensor, weight: Tensor) -> Tensor:
    """The same as one 6x6 convolution: four times the products."""
    return F.conv2d(x, weight, stride=2, padding=2)


def up(x: Tensor, fir: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution, then the FIR."""
    return F.conv2d(F.conv_transpose2d(x, weight, stride=2), fir, padding=1, groups=len(fir))


def up_folded(x: Tensor, weight: Tensor) -> Tensor:
    """The same as one 3x3 convolution for each of the four phases: four times the products."""
    return F.pixel_shuffle(F.conv2d(x, weight, padding=1), 2)


def child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant in a fresh process, which leaves its output in the folder."""
    command = [sys.executable, __file__, "--child", name, "--folder", options.folder]
    command += ["--threads", options.threads, "--repeats", options.repeats]
    command += ["--layers" if options.layers else "--no-layers"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(options: argparse.Namespace) -> None:
    """Run the variants one after the other and print the tables."""
    print(measure.heading())
    with torch.device("meta"):
        model = RPFModel(16, options.scale, width=options.width)
        small = light_network(len(model.blocks))
    macs_of = [sum(entry.macs for entry in count(network)) for network in (model, small)]
    said = f"{macs_of[0] / 1e9:.0f} GMAC; the light network has {macs_of[1] / 1e9:.0f}"
    print(f"\n16 -> {model.size}, width {options.width}, batch 1, fp32: {said}\n")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        save(options.folder, options)
        for name in options.only:
            results[name] = child(name, options)
            print(name, results[name]["seconds"], file=sys.stderr)
        outputs = {name: torch.load(Path(folder) / name) for name in options.only}
    rows = []
    for name, result in results.items():
        macs = macs_of[name == "light"]
        difference = (
            "another network" if name == "light" else _difference(outputs[name], outputs[options.only[0]])
        )
        ratios = [result["seconds"] * result[kind] / (2 * macs) for kind in ("ceiling", "convolution")]
        rows.append([
            VARIANTS[name].__doc__.removesuffix("."),
            f"{result['ceiling'] / 1e9:.0f}, {result['convolution'] / 1e9:.0f}",
            f"{2 * macs / result['ceiling']:.2f}", f"{result['seconds']:.2f}", *(f"{r:.2f}" for r in ratios),
            f"{result['loaded']:.0f}", f"{result['memory']:.0f}",
            difference,
        ])  # fmt: skip
    head = [
        "variant", "ceilings, GFLOP/s", "floor, s", "seconds", "ratio", "to convolution",
        "loaded, MB", "peak adds, MB", "difference",
    ]  # fmt: skip
    print(measure.markdown(head, rows))
    if "light" in results:
        bound = 2 * 300e9 / results["light"]["ceiling"]
        print(
            f"\nThe light network: {results['light']['seconds']:.2f} s; 300 GMAC at the ceiling: {bound:.2f} s."
        )
    if "ours" in results and options.layers:
        _print_layers(results["ours"])
        print("\n" + fir_folding())
    print()
    gpu.report(options.scale, options.width)


def _difference(output: Tensor, first: Tensor) -> str:
    return f"{(output - first).abs().max().item():.1e}"


def _print_layers(result: dict[str, Any]) -> None:
    rows, rest = [], [0, 0.0, 0.0]
    for name, calls, gmac, spent in result["layers"]:
        if spent > 0.01 * result["seconds"]:
            floor = 2e9 * gmac / result["ceiling"]
            rows.append([name, calls, f"{gmac:.1f}", f"{floor:.3f}", f"{spent:.3f}", f"{spent - floor:.3f}"])
        else:
            rest = [a + b for a, b in zip(rest, (calls, gmac, spent), strict=True)]
    floor = 2e9 * rest[1] / result["ceiling"]
    rows.append(
        ["the rest", rest[0], f"{rest[1]:.1f}", f"{floor:.3f}", f"{rest[2]:.3f}", f"{rest[2] - floor:.3f}"]
    )
    head = ["what is left, under the profiler", "calls", "GMAC", "floor, s", "seconds", "above floor"]
    print("\n" + measure.markdown(head, rows))
    head = ["block of side", "whole maps, s", "adds, MB", "in strips, s", "adds, MB"]
    rows = [
        [f"{side:.0f}", f"{a:.3f}", f"{b:.0f}", f"{c:.3f}", f"{d:.0f}"]
        for side, a, b, c, d in result["sides"]
    ]
    print("\n" + measure.markdown(head, rows))
    spent = result["reuse"]
    saved, more = (
        100 * spent[part] / (spent["encode"] + spent["forward"]) for part in ("encode", "features")
    )
    print(
        f"\nA further LR image of one person: `encode_reference` {spent['encode']:.3f} s once, then "
        f"{spent['forward']:.2f} s each; saved per image {saved:.1f} %. Keeping the warping modules' features of "
        f"the reference as well would save {spent['features']:.3f} s, {more:.1f} %."
    )


def main() -> None:
    """Read the command line."""
    parser = measure.parser(__doc__, prepared=False)
    parser.add_argument("--scale", type=int, default=64)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    names = [variant.__name__ for variant in DEFAULT]
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=names, metavar="VARIANT")
    parser.add_argument("--layers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="only write the measured model and its images"
    )
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save:
        save(options.save, options)
    elif options.child:
        print(json.dumps(run_variant(options.child, options)))
    else:
        report(options)


if __name__ == "__main__":
    main()
