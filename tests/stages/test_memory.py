"""The memory estimate: exact in what is known, of the right growth in what is not, near what a real step takes."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from rpf_lightning.model import Critic, RPFModel, StyleGAN2Critic
from rpf_lightning.stages.memory import training_memory

NETWORK = {"lr_size": 16, "scale": 8, "channels": 16, "width": 0.125}
STAGES = ("refinement", "warping", "synthesis", "finetune")


def values(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("critic", [None, "srntt", "stylegan2"])
def test_parameters_are_counted_exactly(stage, block, critic):
    found = training_memory(
        NETWORK, block, stage, 2, adversarial=critic is not None, critic=critic or "srntt", bf16=block == 3
    )
    model = RPFModel(**NETWORK)
    side = 16 * 2**block
    judge = {None: 0, "srntt": values(Critic(side)), "stylegan2": values(StyleGAN2Critic(side, 0.125))}[
        critic
    ]
    trained = getattr(model.blocks[block - 1], "refinement" if stage == "finetune" else stage)
    assert found.weights == 4 * (values(model) + judge)
    assert found.optimizer == 12 * (values(trained) + judge)
    assert found.total == sum(found)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("adversarial", [True, False])
def test_activations_grow_with_the_batch_and_nothing_else_does(stage, adversarial):
    found = [
        training_memory(NETWORK, 2, stage, batch, adversarial=adversarial) for batch in (32, 64, 128, 256)
    ]
    assert len({(f.weights, f.optimizer) for f in found}) == 1
    steps = [b.activations - a.activations for a, b in pairwise(found)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.05)
    assert steps[2] == pytest.approx(2 * steps[1], rel=0.05)  # the weights' own temporaries move the peak


@pytest.mark.parametrize("stage", ["warping", "synthesis"])
def test_twice_the_side_takes_four_times_the_activations(stage):
    a, b = (training_memory(NETWORK, block, stage, 16, adversarial=False).activations for block in (2, 3))
    assert b == pytest.approx(4 * a, rel=0.1)


def test_every_term_takes_its_share():
    def activations(**kwargs):
        return training_memory(NETWORK, 2, "refinement", 8, **{"adversarial": False, **kwargs})

    plain, bf16 = activations(), activations(bf16=True)
    assert 0.4 < bf16.activations / plain.activations < 0.7
    assert bf16.weights == plain.weights
    assert activations(adversarial=True).activations > plain.activations
    assert activations(perceptual=True).weights - plain.weights == 4 * 2_469_696  # AlexNet's convolutions
    tiny = {**NETWORK, "width": 1 / 64}  # or the peak is elsewhere
    blind, seen = (
        training_memory(tiny, 2, "refinement", 64, adversarial=False, perceptual=p) for p in (False, True)
    )
    kept = 4 * 64 * (64 * 15**2 + 192 * 7**2 + (384 + 2 * 256) * 3**2)  # its five ReLUs' outputs
    assert seen.activations - blind.activations > kept


def test_penalty_stays_in_fp32():
    a, b = (training_memory(NETWORK, 3, "synthesis", 16, bf16=bf16).activations for bf16 in (False, True))
    assert b > 0.55 * a  # its second graph is the largest part


def test_counting_allocates_nothing_and_leaves_randomness_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = training_memory({"lr_size": 16, "scale": 64}, 6, "finetune", 1)
    assert 5e9 < found.total < 20e9
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("block", "stage", "message"), [(0, "warping", "block"), (4, "warping", "1 .. 3"), (1, "fit", "stage")]
)
def test_bad_arguments(block, stage, message):
    with pytest.raises(ValueError, match=message):
        training_memory(NETWORK, block, stage, 1)


STEP = """
import sys
from pathlib import Path
import torch
from rpf_lightning.losses import critic_loss, generator_loss, gradient_penalty
from rpf_lightning.model import Critic, RPFModel

def status(key):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if key in l)

stage, block, batch, network = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
model = RPFModel(**network).requires_grad_(False).to(memory_format=torch.channels_last)  # as the stages do
side = model.sides[block - 1]
block = model.blocks[block - 1]
trained = getattr(block, stage).requires_grad_(True)
critic = Critic(side).to(memory_format=torch.channels_last)
optimizers = [torch.optim.Adam(m.parameters(), betas=(0.0, 0.9)) for m in (trained, critic)]
torch.nn.functional.conv2d(torch.rand(1, 3, 16, 16), torch.rand(3, 3, 3, 3))  # loads the library
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
for _ in range(2):
    x, image, real = (torch.rand(batch, 3, s, s) for s in (side // 2, side, side))
    output = block.warping(x, image)[1] if stage == "warping" else None
    if stage == "synthesis":
        output = block.synthesis(x, image)
    if stage == "refinement":
        output = block.refinement(image)
    if stage != "warping":
        loss = critic_loss(critic(real), critic(output.detach())) + gradient_penalty(critic, real, output)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    loss = (output - real).abs().mean()
    if stage != "warping":
        critic.requires_grad_(False)
        loss = loss + generator_loss(critic(output))
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    critic.requires_grad_(True)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stage", ["warping", "synthesis", "refinement"])
def test_a_real_step_takes_about_as_much(stage):
    network = {"lr_size": 16, "scale": 4, "width": 0.25}
    found = training_memory(network, 2, stage, 16, adversarial=stage != "warping")
    environment = {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed goes back at once
    done = subprocess.run(
        [sys.executable, "-c", STEP, stage, "2", "16", repr(network)],
        capture_output=True, text=True, env=environment, check=True, timeout=100,
    )  # fmt: skip
    assert int(done.stdout) == pytest.approx(found.total - found.weights, rel=0.3)
