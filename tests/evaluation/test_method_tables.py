"""What the tables say, on made-up results."""

from typing import Any

import pytest

from rpf_lightning.evaluation.paper_tables import TABLE1, TABLE2, paper_latex, paper_markdown, table_rows
from rpf_lightning.evaluation.result_tables import table_for_console, table_markdown
from rpf_lightning.evaluation.statistics import estimate
from rpf_lightning.metrics import (
    ISC,
    LPIPS,
    PSNR,
    SSIM,
    DetailError,
    LandmarkDistance,
    LRConsistency,
    PSNRFace,
    ReferenceISC,
)

# Table 1, as the paper prints it: PSNR/SSIM/LPIPS/ISC at x32 and at x64
PUBLISHED = """
PULSE 19.78/.5732/.5432/.4923 17.53/.5306/.6068/.4068
mGANprior 21.26/.6117/.5099/.5230 18.69/.5721/.5530/.4397
GLEAN 24.34/.6534/.3257/.7750 21.38/.6016/.4109/.6118
GPEN 23.65/.6417/.3340/.7541 20.20/.5991/.4306/.5978
GCFSR 24.64/.6786/.3064/.7837 22.19/.6345/.3689/.6623
CollageNet 25.71/.7003/.5046/.5114 24.56/.7926/.5696/.4157
MPRNet 21.97/.6201/.5073/.5301 18.93/.5846/.5513/.4279
RPF 25.03/.6913/.3003/.8063 23.16/.6980/.3591/.7101
"""

VALUES = {
    "psnr": 20.0, "ssim": 0.5, "psnr_face": 19.0, "detail_error": 0.05, "lr_consistency": 40.0, "lpips": 0.4,
    "isc": 0.6, "isc_reference": 0.3,
}  # fmt: skip


COLUMNS = {
    name: {"label": m.label, "unit": m.unit, "digits": m.digits, "higher_is_better": m.higher_is_better}
    for name, m in {
        "psnr": PSNR, "ssim": SSIM, "psnr_face": PSNRFace, "detail_error": DetailError,
        "lr_consistency": LRConsistency, "lpips": LPIPS, "isc": ISC, "isc_reference": ReferenceISC,
        "landmark_distance": LandmarkDistance,
    }.items()
}  # fmt: skip


def made_up(kinds: dict[str, str], better: str = "", **extra: Any) -> dict[str, Any]:
    """Results of one pair: method -> kind; `better` has the best values of all."""
    lower = ("detail_error", "lpips")
    methods = {
        name: {
            metric: value * ((0.5 if metric in lower else 1.5) if name == better else 1)
            for metric, value in VALUES.items()
        }
        for name in kinds
    }
    described = {name: {"kind": kind, **extra} for name, kind in kinds.items()}
    return {
        "protocol": {
            "pairs": 1, "lr_size": 16, "size": 1024, "split": "paper_test", "methods": described, "intervals": "x",
        },
        "metrics": {name: COLUMNS[name] for name in VALUES},
        "methods": methods,
        "counts": {name: dict.fromkeys(of, 1) for name, of in methods.items()},
        "intervals": {name: {metric: [v, v] for metric, v in of.items()} for name, of in methods.items()},
        "gaps": [],
        "faults": {},
        "per_image": [],
    }  # fmt: skip


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row_of(text: str, name: str) -> dict[str, str]:
    """A row of the first table of a page, by its headers."""
    header = cells(text.splitlines()[0])
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return dict(zip(header, cells(line), strict=True))


def test_the_papers_numbers_are_those_of_the_specification() -> None:
    lines = [line.split() for line in PUBLISHED.strip().splitlines()]
    for place, factor in enumerate((32, 64), start=1):
        assert TABLE1.values[factor] == {
            line[0]: tuple(float(number) for number in line[place].split("/")) for line in lines
        }


def test_table_2_is_that_of_the_specification() -> None:
    text = (
        "without progressive 22.58/.3659/.6649; without reference 22.90/.3623/.6631; without non-facial removal "
        "22.39/.3678/.6820; RPF 23.16/.3591/.7101"
    )
    rows = [row.rsplit(" ", 1) for row in text.split("; ")]
    expected = {name: tuple(float(number) for number in values.split("/")) for name, values in rows}
    assert TABLE2.values == {64: expected}
    assert TABLE2.metrics == ("psnr", "lpips", "isc")


def test_rows_of_table_2_are_trained_models() -> None:
    kinds = {
        "bicubic": "bicubic", "RPF": "model", "without_reference": "model-none", "without_progressive": "model",
        "without_non-facial_removal": "model-unmasked", "at_inference": "model-none",
    }  # fmt: skip
    results = made_up(kinds)
    hashes = {"RPF": "a", "without_reference": "b", "without_progressive": "c", "at_inference": "a"}
    for name, weights in hashes.items():
        results["protocol"]["methods"][name]["weights_sha256"] = weights
    factor, rows = table_rows(results, TABLE2)
    theirs = {name: paper for name, _, paper in rows}
    assert factor == 64
    assert theirs["RPF"] == ["23.16", "0.3591", "0.7101"]
    assert theirs["without reference"] == ["22.90", "0.3623", "0.6631"]  # by its title
    assert theirs["without_progressive"] == ["22.58", "0.3659", "0.6649"]
    assert theirs["without_non-facial_removal"] == ["22.39", "0.3678", "0.6820"]
    assert theirs["at_inference"] == theirs["bicubic"] == ["–"] * 3
    assert not any("(paper)" in name for name in theirs)
    # the same weights used without a reference are no model that was trained without references
    results["protocol"]["methods"]["without_reference"]["weights_sha256"] = "a"
    theirs = {name: paper for name, _, paper in table_rows(results, TABLE2)[1]}
    assert theirs["without reference"] == ["–"] * 3
    assert theirs["without reference (paper)"] == ["22.90", "0.3623", "0.6631"]


def test_rows_of_table_2_may_be_folders_without_weights() -> None:
    kinds = dict.fromkeys(("RPF", "without_progressive"), "folder")
    theirs = {name: paper for name, _, paper in table_rows(made_up(kinds), TABLE2)[1]}
    assert theirs["without_progressive"] == ["22.58", "0.3659", "0.6649"]


def test_the_first_model_that_has_no_name_of_the_papers_stands_beside_rpf() -> None:
    kinds = {"without_progressive": "model", "mine": "model", "other": "model"}
    theirs = {name: paper for name, _, paper in table_rows(made_up(kinds), TABLE2)[1]}
    assert theirs["mine"] == ["23.16", "0.3591", "0.7101"]
    assert theirs["other"] == ["–"] * 3


def test_table_2_has_its_own_columns_and_caption() -> None:
    results = made_up({"RPF": "model"})
    text, tex = paper_markdown(results, TABLE2), paper_latex(results, TABLE2)
    assert text.startswith("## Table 2\n")
    header = cells(text.splitlines()[2])
    assert [title for title in header if title.startswith("paper")] == [
        "paper ×64 PSNR (dB)", "paper ×64 LPIPS", r"paper ×64 ISC\*",
    ]  # fmt: skip
    assert "SSIM" not in "".join(header)
    for caption in (text, tex):
        assert "Table 2 (IV-C, CelebA-HQ), factor 64" in caption
        assert "a model trained for it" in caption
    assert r"\multicolumn{3}{c}{paper, $\times64$}" in tex
    (row,) = (line for line in tex.splitlines() if line.startswith("RPF"))
    (columns,) = (line for line in tex.splitlines() if line.startswith(r"\begin{tabular}"))
    assert row.count("&") == columns.count("r", columns.index("{l")) == 7
    assert "a model trained for it" not in paper_markdown(results, TABLE1)


def test_our_gcfsr_and_rpf_stand_beside_the_papers_whatever_they_are_called() -> None:
    results = made_up({"bicubic": "bicubic", "published": "gcfsr", "ours": "model", "later": "model"})
    for described in results["protocol"]["methods"].values():
        described |= {"blend": "before_activation", "normalize": True}
    factor, rows = table_rows(results)
    theirs = {name: paper for name, _, paper in rows}
    assert factor == 64
    assert theirs["published"] == ["22.19", "0.6345", "0.3689", "0.6623"]
    assert theirs["ours"] == ["23.16", "0.6980", "0.3591", "0.7101"]
    assert theirs["bicubic"] == theirs["later"] == ["–"] * 4
    assert "GCFSR (paper)" not in theirs
    # a folder of that name comes first
    _, rows = table_rows(made_up({"GCFSR": "folder", "published": "gcfsr"}))
    theirs = {name: paper for name, _, paper in rows}
    assert theirs["GCFSR"] == ["22.19", "0.6345", "0.3689", "0.6623"]
    assert theirs["published"] == ["–"] * 4


def test_a_gcfsr_of_ours_says_that_its_readings_were_not_checked() -> None:
    results = made_up({"bicubic": "bicubic", "mine": "gcfsr"}, blend="after_activation", normalize=False)
    for text in (paper_markdown(results), paper_latex(results).replace("\\", "")):
        assert "mine: GCFSR's published weights in a network of our own" in text
        assert "blend after_activation, normalize False" in text
        assert "not checked against published outputs" in text
    assert "network of our own" not in paper_markdown(made_up({"bicubic": "bicubic"}))


@pytest.mark.parametrize("kind", ["reference", "reference-unmasked", "model-gt"])
def test_what_copies_or_sees_the_answer_is_never_the_best(kind: str) -> None:
    text = table_markdown(made_up({"bicubic": "bicubic", "it": kind}, better="it"))
    row, other = row_of(text, "it"), row_of(text, "bicubic")
    assert not any(cell.startswith("**") for cell in row.values())
    best = [header for header, cell in other.items() if cell.startswith("**")]
    assert best == [header for header in other if header not in ("method", "ISC to the reference")]
    text = table_markdown(made_up({"bicubic": "bicubic", "it": "model"}, better="it"))
    assert row_of(text, "it")["PSNR (dB) ↑"] == "**30.00**"


def test_isc_to_the_reference_has_no_better_value() -> None:
    """Methods see different references."""
    results = made_up({"own": "model", "other": "model-swap"}, better="own")
    metrics = {metric: estimate([0.1]) for metric in VALUES}
    results["gaps"] = [{"method": "own", "minus": "other", "kind": "own_minus_other", "metrics": metrics}]
    text = table_markdown(results)
    assert row_of(text, "own")["ISC to the reference"] == "0.4500"
    (note,) = (line for line in text.splitlines() if line.startswith("Own minus another"))
    assert "ISC +0.1000" in note
    assert "ISC to the reference" not in note
    titles = [column.header for column in table_for_console(results).columns]
    assert "ISC to the reference" in titles
    assert "ISC ↑" in titles


def test_lr_consistency_and_landmarks_stand_in_table_1() -> None:
    results = made_up({"bicubic": "bicubic", "RPF": "model"})
    text = paper_markdown(results)
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    assert cells(header)[:6] == [
        "method", "PSNR (dB) ↑", "SSIM ↑", "LPIPS ↓", "ISC ↑", "LR consistency (dB) ↑",
    ]  # fmt: skip
    assert "landmark distance" not in text
    for name, of in results["methods"].items():
        of["landmark_distance"] = 1.25
        results["metrics"]["landmark_distance"] = COLUMNS["landmark_distance"]
        results["intervals"][name]["landmark_distance"] = [1.0, 1.5]
    text, tex = paper_markdown(results), paper_latex(results)
    assert cells(next(line for line in text.splitlines() if line.startswith("| method")))[6] == (
        "landmark distance (%) ↓"
    )
    assert "| 40.00 [40.00, 40.00] | 1.25 [1.00, 1.50] |" in text
    assert (
        r"PSNR & SSIM & LPIPS & ISC & LR consistency & landmark distance & PSNR & SSIM & LPIPS & ISC" in tex
    )
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in body} == {6 + 4}
