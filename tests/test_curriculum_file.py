"""What a `curriculum.yaml` may say: listed fits, their names, and which of them rest on which."""

from pathlib import Path
from typing import Any

import pytest

from rpf_lightning.curriculum_file import choose, left_out, named, read_curriculum
from small_fits import LISTED, entry, write_listed


def test_listed_fits_in_their_order(tmp_path: Path) -> None:
    curriculum, plan = read_curriculum(write_listed(tmp_path))
    assert [fit.name for fit in plan] == LISTED
    assert [(fit.first, fit.block) for fit in plan] == [(1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (3, 3)]
    assert [fit.config.name for fit in plan[:3]] == ["warping.yaml", "synthesis.yaml", "joint.yaml"]
    assert [fit.title for fit in plan] == [
        "block 1  warping", "block 2  synthesis", "blocks 1-2  joint", "block 3  refinement", "blocks 1-3  joint",
        "block 3  joint",
    ]  # fmt: skip
    assert curriculum.initial is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (None, ()),
        ({"trainer.max_epochs": 3, "model.init_args": {"decay": "cosine"}},
         ("--trainer.max_epochs", "3", "--model.init_args.decay", "cosine")),
        ({"trainer.logger": False, "trainer.max_time": None, "model.init_args.betas": [0.9, 0.99]},
         ("--trainer.logger", "false", "--trainer.max_time", "null", "--model.init_args.betas", "[0.9, 0.99]")),
        (["--trainer.max_epochs", 3, "--trainer.precision=32-true"],
         ("--trainer.max_epochs", "3", "--trainer.precision=32-true")),
    ],
)  # fmt: skip
def test_options_of_a_fit(tmp_path: Path, options: Any, words: tuple[str, ...]) -> None:
    fits = [{**entry("block1-warping"), "options": options}, entry("block2-warping")]
    first, second = read_curriculum(write_listed(tmp_path, fits))[1]
    assert (first.options, second.options) == (words, ())


@pytest.mark.parametrize(
    ("fits", "message"),
    [
        ([], "fits: expected a list of fits, got"),
        ({"stage": "warping"}, "fits: expected a list of fits, got"),
        ([entry("block1-warping"), "warping"], "entry 2: expected a mapping with stage, block and file, got 'warping'"),
        ([{**entry("block1-warping"), "stage": "warp"}], "entry 1: stage: expected one of .*joint, got 'warp'"),
        ([{"stage": "warping", "file": "warping.yaml"}], "expected the keys stage, block, file .*got stage, file"),
        ([{**entry("block1-warping"), "epochs": 1}], "of a warping fit, got stage, block, file, epochs"),
        ([{**entry("joint1-2"), "block": 2}], "expected the keys stage, first, last, file .*of a joint fit"),
        ([entry("block4-warping")], r"expected blocks in order among 1 \.\. 3, got block 4"),
        ([entry("joint2-1")], r"expected blocks in order among 1 \.\. 3, got first 2, last 1"),
        ([{**entry("block1-warping"), "block": True}], "got block True"),
        ([{**entry("block1-warping"), "file": 3}], "file: expected a name, got 3"),
        ([{**entry("block1-warping"), "options": "--a"}], "options: expected a list of words or a mapping, got '--a'"),
        ([{**entry("block1-warping"), "options": [["--a", 1]]}], "options: expected a list of words"),
        ([entry("block1-warping"), entry("joint1-2"), entry("block1-warping")], "block1-warping is listed before"),
    ],
)  # fmt: skip
def test_wrong_lists(tmp_path: Path, fits: Any, message: str) -> None:
    path = write_listed(tmp_path, fits)
    with pytest.raises(ValueError, match=message) as caught:
        read_curriculum(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_one_form_or_the_other(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"either fits.*or the files of the stages; got fits and warping, finetune"
    ):
        read_curriculum(write_listed(tmp_path, warping="warping.yaml", finetune="warping.yaml"))
    path = write_listed(tmp_path)
    path.write_text(path.read_text().replace("fits:", "fit:"))
    with pytest.raises(ValueError, match=r"expected the keys \['model_dir', 'network', 'refinement'.*'fits'"):
        read_curriculum(path)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("joint1-2", ["joint1-2"]),
        ("joint", ["joint1-2", "joint1-3", "joint3-3"]),
        ("block3", ["block3-refinement", "joint1-3", "joint3-3"]),
        ("block2", ["block2-synthesis", "joint1-2", "joint1-3"]),
        ("warping", ["block1-warping"]),
    ],
)
def test_a_joint_fit_belongs_to_each_of_its_blocks(tmp_path: Path, name: str, means: list[str]) -> None:
    plan = read_curriculum(write_listed(tmp_path))[1]
    assert [fit.name for fit in named(plan, name)] == means
    assert [fit.name for fit in choose(plan, name, None)] == means
    assert choose(plan, None, name) == plan[LISTED.index(means[0]) :]
    with pytest.raises(ValueError, match="no fit is left: only 'block1-warping', from 'block2"):
        choose(plan, "block1-warping", "block2")


def test_names_that_there_are_are_said(tmp_path: Path) -> None:
    plan = read_curriculum(write_listed(tmp_path))[1]
    several = "block1, block2, block3, warping, synthesis, joint, refinement"
    with pytest.raises(ValueError, match=f"'joint2-3' names no fit.*joint1-2, .*several at once: {several}"):
        named(plan, "joint2-3")


ALL = ["block1-refinement", "block1-warping", "block1-synthesis", "block1-finetune", "block2-refinement",
       "block2-warping", "joint1-2", "block3-refinement", "block3-warping", "joint1-3", "joint2-2",
       "joint3-3"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "earlier"),
    [
        ("block1-refinement", []),
        ("block1-finetune", ["block1-refinement", "block1-warping", "block1-synthesis"]),
        ("block2-refinement", []),
        ("block2-warping", ALL[:4]),
        ("joint1-2", ALL[:6]),  # it goes on from all that its blocks hold
        ("block3-refinement", []),
        ("block3-warping", ALL[:7]),  # not on its own block's refinement
        ("joint1-3", ALL[:9]),
        ("joint2-2", [n for n in ALL[:10] if "block3" not in n]),
        ("joint3-3", ALL[:11]),
    ],
)
def test_what_a_fit_rests_on(tmp_path: Path, name: str, earlier: list[str]) -> None:
    fits = [{**entry(n), "file": "warping.yaml"} for n in ALL]
    plan = read_curriculum(write_listed(tmp_path, fits))[1]
    (fit,) = named(plan, name)
    assert [other.name for other in plan[: plan.index(fit)] if fit.rests_on(other)] == earlier
    assert [other.name for other in left_out(plan, [fit], None)] == earlier
