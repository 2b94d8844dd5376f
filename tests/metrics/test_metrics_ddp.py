"""Two gloo processes with unequal shares give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchmetrics import MetricCollection
from rpf_lightning.metrics import ISC, PSNR, SSIM, DetailError, LandmarkDistance, LRConsistency, PSNRFace, ReferenceISC
from rpf_lightning.faces.landmarks import Found

# the batches of each process in each epoch; once one process has none
SHARES = {1: [[[[0, 1, 2], [3, 4, 5], [6]]]] * 2, 2: [[[[0, 1], [2]], [[3, 4, 5, 6]]], [[[0, 1, 2, 3], [4, 5, 6]], []]]}

def features(image): return F.adaptive_avg_pool2d(image, 2).flatten(1) - 0.4

def landmarks(images):
    points = [image[:2, :34].reshape(-1, 2)[:68].astype(float) for image in images]
    return [Found(None if image[0, 0, 0] < 40 else known, []) for image, known in zip(images, points)]

def work(rank, size, out):
    dist.init_process_group("gloo", init_method=f"file://{out}/store{size}", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(0)
    output, gt, reference = torch.rand(3, 7, 3, 36, 36, generator=generator)
    output = gt + torch.linspace(0.1, 1, 7).view(7, 1, 1, 1) * (output - gt)
    lr, mask = torch.rand(7, 3, 9, 9, generator=generator), torch.rand(7, 1, 36, 36, generator=generator).round()
    mask[[0, 1, 4]] = 0  # with two processes the first begins with a batch without faces
    data = {"output": output, "gt": gt, "mask": mask, "lr": lr, "reference": reference}
    metrics = MetricCollection({
        "psnr": PSNR(), "ssim": SSIM(), "face": PSNRFace(), "detail": DetailError(), "lr": LRConsistency(),
        "isc": ISC(features), "reference": ReferenceISC(features), "landmarks": LandmarkDistance(landmarks),
    })
    results = []
    for shares in SHARES[size]:
        for places in shares[rank]:
            metrics.update(**{name: tensor[places] for name, tensor in data.items()})
        values = {name: value.item() for name, value in metrics.compute().items()}
        own = int(metrics["face"].count)
        with metrics["face"].sync_context():
            counts = [int(metrics["face"].count), int(metrics["face"].missing)]
        results.append({"values": values, "counts": counts, "own": own})
        metrics.reset()
    Path(out, f"{size}-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.start_processes(work, (2, sys.argv[1]), nprocs=2, start_method=sys.argv[2])
    work(0, 1, sys.argv[1])
"""

START = "fork" if os.name == "posix" else "spawn"  # quicker: nothing is imported again


@pytest.mark.slow
def test_processes_with_unequal_shares_give_what_one_gives(tmp_path: Path) -> None:
    script = tmp_path / "measure.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), START], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(results) == ["1-0", "2-0", "2-1"]
    one = results["1-0"][0]
    assert one["counts"] == [4, 3]
    assert len(set(one["values"].values())) == 8
    for epochs in results.values():
        for result in epochs:
            assert result["values"] == pytest.approx(one["values"], rel=1e-9)
            assert result["counts"] == [4, 3]
    # unequal shares: the mean of the processes' means would be another
    assert [[epoch["own"] for epoch in results[f"2-{rank}"]] for rank in (0, 1)] == [[1, 4], [3, 0]]
