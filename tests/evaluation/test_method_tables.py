"""What the tables say, on made-up results."""

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
PUBLISHED2 = """
without progressive:22.58/.3659/.6649
without reference:22.90/.3623/.6631
without non-facial removal:22.39/.3678/.6820
RPF:23.16/.3591/.7101
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
GCFSR, RPF = ["22.19", "0.6345", "0.3689", "0.6623"], ["23.16", "0.6980", "0.3591", "0.7101"]


def made_up(kinds, better="", **extra):
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


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def row_of(text, name):
    """A row of the first table of a page, by its headers."""
    header = next(cells(line) for line in text.splitlines() if line.startswith("| method"))
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return dict(zip(header, cells(line), strict=True))


def theirs(results, table=TABLE1):
    """The paper's numbers beside each method."""
    factor, rows = table_rows(results, table)
    assert factor == 64
    return {name: paper for name, _, paper in rows}


def test_the_papers_numbers_are_those_of_the_specification():
    lines = [line.split() for line in PUBLISHED.strip().splitlines()]
    for place, factor in enumerate((32, 64), start=1):
        assert TABLE1.values[factor] == {of[0]: tuple(map(float, of[place].split("/"))) for of in lines}
    lines = [line.split(":") for line in PUBLISHED2.strip().splitlines()]
    assert TABLE2.values == {64: {name: tuple(map(float, of.split("/"))) for name, of in lines}}
    assert TABLE2.metrics == ("psnr", "lpips", "isc")


def test_rows_of_table_2_are_trained_models():
    kinds = {
        "bicubic": "bicubic", "RPF": "model", "without_reference": "model-none", "without_progressive": "model",
        "without_non-facial_removal": "model-unmasked", "at_inference": "model-none",
    }  # fmt: skip
    results = made_up(kinds)
    hashes = {"RPF": "a", "without_reference": "b", "without_progressive": "c", "at_inference": "a"}
    for name, weights in hashes.items():
        results["protocol"]["methods"][name]["weights_sha256"] = weights
    papers = theirs(results, TABLE2)
    assert papers["RPF"] == ["23.16", "0.3591", "0.7101"]
    assert papers["without reference"] == ["22.90", "0.3623", "0.6631"]  # by its title
    assert papers["without_progressive"] == ["22.58", "0.3659", "0.6649"]
    assert papers["without_non-facial_removal"] == ["22.39", "0.3678", "0.6820"]
    assert papers["at_inference"] == papers["bicubic"] == ["–"] * 3
    assert not any("(paper)" in name for name in papers)
    # the same weights used without a reference are no model that was trained without references
    results["protocol"]["methods"]["without_reference"]["weights_sha256"] = "a"
    papers = theirs(results, TABLE2)
    assert papers["without reference"] == ["–"] * 3
    assert papers["without reference (paper)"] == ["22.90", "0.3623", "0.6631"]
    # folders have no weights
    papers = theirs(made_up(dict.fromkeys(("RPF", "without_progressive"), "folder")), TABLE2)
    assert papers["without_progressive"] == ["22.58", "0.3659", "0.6649"]


def test_table_2_has_its_own_columns_and_caption():
    results = made_up({"RPF": "model"})
    text, tex = paper_markdown(results, TABLE2), paper_latex(results, TABLE2)
    assert text.startswith("## Table 2\n")
    header = list(row_of(text, "RPF"))
    assert header[-3:] == ["paper ×64 PSNR (dB)", "paper ×64 LPIPS", r"paper ×64 ISC\*"]
    assert "SSIM" not in "".join(header)
    for caption in (text, tex):
        assert "Table 2 (IV-C, CelebA-HQ), factor 64" in caption
        assert "a model trained for it" in caption
    assert r"\multicolumn{3}{c}{paper, $\times64$}" in tex
    (row,) = (line for line in tex.splitlines() if line.startswith("RPF"))
    (columns,) = (line for line in tex.splitlines() if line.startswith(r"\begin{tabular}"))
    assert row.count("&") == columns.count("r", columns.index("{l")) == 7
    assert "a model trained for it" not in paper_markdown(results, TABLE1)


def test_methods_stand_beside_the_papers_of_their_name_or_kind():
    results = made_up(
        {"bicubic": "bicubic", "published": "gcfsr", "pulse": "folder", "ours": "model", "later": "model"}
    )
    for described in results["protocol"]["methods"].values():
        described |= {"blend": "before_activation", "normalize": True}
    papers = theirs(results)
    assert (papers["published"], papers["ours"]) == (GCFSR, RPF)
    assert papers["pulse"] == ["17.53", "0.5306", "0.6068", "0.4068"]
    assert papers["bicubic"] == papers["later"] == ["–"] * 4
    assert papers["GLEAN (paper)"] == ["21.38", "0.6016", "0.4109", "0.6118"]
    assert not {"GCFSR (paper)", "PULSE (paper)", "RPF (paper)"} & papers.keys()
    # a folder of that name comes first
    papers = theirs(made_up({"GCFSR": "folder", "published": "gcfsr"}))
    assert papers["GCFSR"] == GCFSR
    assert papers["published"] == ["–"] * 4
    # the first model that has no name of the paper's stands beside RPF
    papers = theirs(made_up({"without_progressive": "model", "mine": "model", "other": "model"}), TABLE2)
    assert papers["mine"] == ["23.16", "0.3591", "0.7101"]
    assert papers["other"] == ["–"] * 3


def test_a_gcfsr_of_ours_says_that_its_readings_were_not_checked():
    results = made_up({"bicubic": "bicubic", "mine": "gcfsr"}, blend="after_activation", normalize=False)
    for text in (paper_markdown(results), paper_latex(results).replace("\\", "")):
        assert "mine: GCFSR's published weights in a network of our own" in text
        assert "blend after_activation, normalize False" in text
        assert "not checked against published outputs" in text
    assert "network of our own" not in paper_markdown(made_up({"bicubic": "bicubic"}))


@pytest.mark.parametrize("kind", ["reference", "reference-unmasked", "model-gt"])
def test_what_copies_or_sees_the_answer_is_never_the_best(kind):
    text = table_markdown(made_up({"bicubic": "bicubic", "it": kind}, better="it"))
    row, other = row_of(text, "it"), row_of(text, "bicubic")
    assert not any(cell.startswith("**") for cell in row.values())
    best = [header for header, cell in other.items() if cell.startswith("**")]
    assert best == [header for header in other if header not in ("method", "ISC to the reference")]
    text = table_markdown(made_up({"bicubic": "bicubic", "it": "model"}, better="it"))
    assert row_of(text, "it")["PSNR (dB) ↑"] == "**30.00**"


def test_isc_to_the_reference_has_no_better_value():
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


def test_the_columns_of_table_1():
    results = made_up({"bicubic": "bicubic", "my_RPF": "model"})
    text = paper_markdown(results)
    header = ["method", "PSNR (dB) ↑", "SSIM ↑", "LPIPS ↓", "ISC ↑", "LR consistency (dB) ↑"]
    assert list(row_of(text, "bicubic"))[:6] == header
    assert "| paper ×64 ISC\\* |" in text
    assert "*: not comparable with ours in any case" in text
    assert "landmark distance" not in text
    for name, of in results["methods"].items():
        of["landmark_distance"] = 1.25
        results["metrics"]["landmark_distance"] = COLUMNS["landmark_distance"]
        results["intervals"][name]["landmark_distance"] = [1.0, 1.5]
    text, tex = paper_markdown(results), paper_latex(results)
    assert list(row_of(text, "bicubic"))[6] == "landmark distance (%) ↓"
    assert "| 40.00 [40.00, 40.00] | 1.25 [1.00, 1.50] |" in text
    assert "PSNR & SSIM & LPIPS & ISC & LR consistency & landmark distance & PSNR & SSIM & LPIPS & ISC" in tex
    assert r"my\_RPF & " in tex
    assert r"& 23.16 & 0.6980 & 0.3591 & 0.7101 \\" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in body} == {6 + 4}
    assert not set(tex) & set("–↑→×")
    assert tex.count("{") == tex.count("}")
    assert tex.count(r"\begin") == tex.count(r"\end") == 2


@pytest.mark.parametrize(
    ("size", "numbers"), [(512, "25.03 & 0.6913 & 0.3003 & 0.8063"), (64, " & ".join(RPF))]
)
def test_another_factor(size, numbers):
    results = made_up({"RPF": "model"})
    results["protocol"]["size"] = size
    assert numbers in paper_latex(results)
    assert ("none for our factor of 4" in paper_markdown(results)) == (size == 64)
