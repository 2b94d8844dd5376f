"""Which pairs are compared, what the references are, and who is the other person."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data import PairsDataModule, ReferencePairsDataModule
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import full_reference
from rpf_lightning.evaluation import evaluate
from rpf_lightning.evaluation.building import build_methods
from rpf_lightning.evaluation.contact import reference_title
from rpf_lightning.evaluation.evaluation_batch import collate
from rpf_lightning.evaluation.evaluation_pairs import EvaluationPairs, choose_pairs, pairs_for
from rpf_lightning.metrics import psnr
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize

SIDES: dict[str, Any] = {"lr_size": 16, "size": 64}


def prepared_data(root: Path, **kwargs: Any) -> ReferencePairsDataModule:
    return ReferencePairsDataModule(str(root), **{**SIDES, "val_fraction": 0.5, **kwargs})


def others(data: PairsDataModule, split: str | None) -> dict[str, str]:
    """GT -> the other person's photo."""
    chosen, _ = choose_pairs(data, split)
    (method,) = build_methods(["bicubic"])
    method.needs_other = True
    samples = pairs_for(chosen, [method])
    return {str(sample.id): str(sample.other_id) for sample in (samples[i] for i in range(len(samples)))}


@pytest.mark.parametrize("split", [None, "val", "train", "test", "all"])
def test_limits_do_not_change_who_is_the_other_person(
    prepare: Any, tmp_path: Path, split: str | None
) -> None:
    prepare()
    whole = others(prepared_data(tmp_path / "prepared"), split)
    limits = {"limit_val": 2, "limit_train": 3}
    few = others(prepared_data(tmp_path / "prepared", **limits), split)
    assert len(few) == 2 < len(whole)
    assert few == {gt: whole[gt] for gt in few}
    # one pair shows one person: the other is found among those that were left out
    one = others(prepared_data(tmp_path / "prepared", limit_val=1, limit_train=1), split)
    assert one.items() <= whole.items()


def test_other_people_are_those_of_the_split(prepare: Any, tmp_path: Path) -> None:
    """A person of the training part, however near, is no other person of the validation part."""
    prepare(val_fraction=0.5)
    photos = PreparedPhotos(tmp_path / "prepared")
    who = dict(zip(photos.ids, photos.identities, strict=True))
    for split in ("train", "val"):
        people = {photos.identities[pair.gt] for pair in photos.pairs(split)}
        assert 1 < len(people) < 6
        data = ReferencePairsDataModule(str(tmp_path / "prepared"), **SIDES)
        assert {who[name] for name in others(data, split).values()} <= people


@pytest.mark.parametrize("split", ["val", "all"])
def test_unmasked_references_where_the_data_says_so(prepared: Path, model_dir: Path, split: str) -> None:
    methods = build_methods(
        ["reference", "reference-unmasked", "model-gt:gt", "model-swap:swap"], str(model_dir)
    )
    samples = {}
    for masked in (True, False):
        chosen, _ = choose_pairs(prepared_data(prepared, mask_reference=masked), split)
        pairs = pairs_for(chosen, methods)
        samples[masked] = collate([pairs[0]])
        photos, pair = pairs.base.photos, pairs.base.pairs[0]
        whole = full_reference(photos.photo(pair.reference), 64, False)[0]
        wanted = full_reference(photos.photo(pair.reference), 64, masked)[0]
        assert torch.equal(samples[masked].reference, wanted)
        assert torch.equal(samples[masked].unmasked, whole)
        assert samples[masked].masked is masked
    masked, whole = samples[True], samples[False]
    copied, unmasked, gt, _ = methods
    assert torch.equal(copied(masked), masked.reference)
    assert torch.equal(unmasked(masked), whole.reference)
    assert torch.equal(unmasked.reference(masked), whole.reference)  # ISC to what was copied
    assert not torch.equal(masked.reference, whole.reference)
    assert not torch.equal(masked.other, whole.other)
    # the upper end sees what the models see: without the mask the whole GT
    assert torch.equal(gt.reference(masked), masked.gt * masked.mask)
    assert torch.equal(gt.reference(whole), whole.gt)
    assert reference_title(masked) == "reference (masked)"
    assert reference_title(whole) == "reference (unmasked)"
    assert unmasked.describe() == {"kind": "reference-unmasked"}


def test_the_lr_as_the_reference_is_applied_and_recorded(
    prepared: Path, model_dir: Path, tmp_path: Path
) -> None:
    data = prepared_data(prepared, reference="lr", degradation="dpsr")
    chosen, _ = choose_pairs(data, None)
    sample = pairs_for(chosen, [])[0]
    assert torch.equal(sample.reference, resize(sample.lr[None], 64)[0].clamp(0, 1))
    assert sample.reference_id == "enlarged LR"
    assert reference_title(sample) == reference_title(collate([sample])) == "reference (enlarged LR)"
    for split in (None, "all"):
        data = prepared_data(prepared, reference="lr")
        results = evaluate(
            model_dir=str(model_dir), data=data, out=str(tmp_path / str(split)), split=split, grid_images=1
        )
        assert list(results["methods"]) == ["bicubic", "without_reference", "with_reference"]
        assert results["protocol"]["reference"] == "lr"
        own, none = (results["methods"][name] for name in ("with_reference", "without_reference"))
        assert own == pytest.approx(none, rel=1e-5)  # what a model makes of no reference
    data = prepared_data(prepared)
    results = evaluate(
        model_dir=str(model_dir), data=data, out=str(tmp_path / "photo"), contact_images=0, grid_images=0
    )
    assert results["protocol"]["reference"] == "photo"
    with torch.no_grad():
        outputs = [
            RPFModel.from_pretrained(model_dir)(s.lr[None], s.reference[None]) for s in data.val_dataset()
        ]
    values = [psnr(o, s.gt[None]).item() for o, s in zip(outputs, data.val_dataset(), strict=True)]
    assert results["methods"]["with_reference"]["psnr"] == pytest.approx(np.mean(values), abs=1e-3)


def test_chosen_pairs_are_degraded_like_the_datas_own(prepared: Path) -> None:
    given: dict[str, Any] = {"degradation": "dpsr", "seed": 3}
    own = pairs_for(prepared_data(prepared, **given), [])[0]
    chosen, _ = choose_pairs(prepared_data(prepared, **given), "all")
    samples = pairs_for(chosen, [])
    (same,) = (samples[place] for place, name in enumerate(samples.ids()) if name == own.id)
    assert torch.equal(same.lr, own.lr)
    for other in ({"degradation": "bicubic"}, {"seed": 4}):
        chosen, _ = choose_pairs(prepared_data(prepared, **given | other), "all")
        samples = pairs_for(chosen, [])
        (same,) = (samples[place] for place, name in enumerate(samples.ids()) if name == own.id)
        assert not torch.equal(same.lr, own.lr)


@pytest.mark.parametrize("method", ["reference", "reference-unmasked", "model-swap"])
def test_methods_that_need_a_photo_are_refused_without_one(
    prepared: Path, model_dir: Path, tmp_path: Path, method: str
) -> None:
    data = prepared_data(prepared, reference="lr")
    with pytest.raises(ValueError, match=f"reference is lr, .* but {method} needs a photo"):
        evaluate(model_dir=str(model_dir), data=data, out=str(tmp_path / "out"), methods=["bicubic", method])
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_knows_pairs_others_and_references(prepared: Path) -> None:
    base = prepared_data(prepared).val_dataset()
    swapped = prepared_data(prepared).val_dataset(other_person=True)
    unmasked = prepared_data(prepared, mask_reference=False).val_dataset()
    few = prepared_data(prepared, limit_val=2).val_dataset()
    fingerprints = [
        EvaluationPairs(base, None).fingerprint(),
        EvaluationPairs(base, swapped.pairs).fingerprint(),
        EvaluationPairs(base, swapped.pairs[::-1]).fingerprint(),
        EvaluationPairs(base, None, lr_as_reference=True).fingerprint(),
        EvaluationPairs(unmasked, None).fingerprint(),
        EvaluationPairs(few, None).fingerprint(),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert EvaluationPairs(prepared_data(prepared).val_dataset(), None).fingerprint() == fingerprints[0]


def test_table_1_runs_on_the_papers_test_pairs(prepared: Path, model_dir: Path, tmp_path: Path) -> None:
    """On a folder with such a split, which here holds all pairs."""
    summary = json.loads((prepared / "prepare.json").read_text())
    (name,) = (path.name for path in prepared.glob("pairs_all.*"))
    (prepared / name.replace("all", "paper_test")).write_bytes((prepared / name).read_bytes())
    summary["splits"] = [*summary["splits"], "paper_test"]
    (prepared / "prepare.json").write_text(json.dumps(summary))
    config = Path(__file__).parents[2] / "configs" / "eval" / "table1_x64.yaml"
    out = tmp_path / "out"
    words = ["--model_dir", str(model_dir), "--data.init_args.root", str(prepared), "--out", str(out)]
    words += ["--lpips", "false", "--isc", "false"]
    main(["evaluate", "--config", str(config), *words])
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["protocol"]["split"] == "paper_test"
    assert results["protocol"]["pairs"] == len(PreparedPhotos(prepared).pairs("all"))
    kinds = {name: of["kind"] for name, of in results["protocol"]["methods"].items()}
    assert kinds["reference-unmasked"] == "reference-unmasked"
    assert "of the split paper_test" in (out / "table.md").read_text(encoding="utf-8")
    assert Image.open(out / "worst.png").mode == "RGB"


def test_documented_commands_evaluate_models_on_people_that_were_held_out() -> None:
    root = Path(__file__).parents[2]
    for page in (root / "README.md", root / "docs" / "evaluation.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        commands = [line for line in text.splitlines() if line.startswith("    rpf evaluate")]
        with_models = [line for line in commands if "model:" in line]
        assert with_models
        assert all("--split val" in line for line in with_models)


def test_the_fingerprint_knows_how_the_lr_is_made(prepared: Path) -> None:
    prints = set()
    for degradation, seed in (("bicubic", 0), ("dpsr", 0), ("dpsr", 1), ("realistic", 0)):
        data = prepared_data(prepared, degradation=degradation)
        dataset = pairs_for(data, build_methods(["bicubic"]))
        if dataset.base.degrade is not None:
            dataset.base.degrade.seed = seed
        prints.add(dataset.fingerprint())
    assert len(prints) == 4


def test_the_protocol_names_the_split_of_the_data(prepared: Path) -> None:
    assert choose_pairs(prepared_data(prepared))[1] == "val"
    data = ReferencePairsDataModule(str(prepared), split="disjoint", lr_size=16, size=64)
    assert choose_pairs(data, "val")[1] == "disjoint val"
