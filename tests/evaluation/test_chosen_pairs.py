"""Which pairs are compared, what the references are, and who is the other person."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from rpf_lightning.cli import main
from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.data.preparation.prepared_folder import content_hash
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.sample import full_reference
from rpf_lightning.evaluation import evaluate
from rpf_lightning.evaluation.building import build_methods
from rpf_lightning.evaluation.evaluation_batch import collate
from rpf_lightning.evaluation.evaluation_pairs import EvaluationPairs, choose_pairs, pairs_for
from rpf_lightning.evaluation.result_files import reference_title
from rpf_lightning.model.resize import resize

ROOT = Path(__file__).parents[2]


def prepared_data(root, **kwargs):
    return ReferencePairsDataModule(str(root), **{"lr_size": 16, "size": 64, "val_fraction": 0.5, **kwargs})


def chosen(root, split, methods=(), **kwargs):
    return pairs_for(choose_pairs(prepared_data(root, **kwargs), split)[0], methods)


def others(root, split, **kwargs):
    """GT -> the other person's photo."""
    (method,) = build_methods(["bicubic"])
    method.needs_other = True
    samples = chosen(root, split, [method], **kwargs)
    return {sample.id: sample.other_id for sample in (samples[i] for i in range(len(samples)))}


@pytest.mark.parametrize("split", ["val", "train", "all"])
def test_limits_do_not_change_who_is_the_other_person(prepared, split):
    whole = others(prepared, split)
    few = others(prepared, split, limit_val=2, limit_train=3)
    assert len(few) == 2 < len(whole)
    assert few.items() <= whole.items()
    # one pair shows one person: the other is found among those that were left out
    assert others(prepared, split, limit_val=1, limit_train=1).items() <= whole.items()


def test_other_people_are_those_of_the_split(prepare, tmp_path):
    """A person of the training part, however near, is no other person of the validation part."""
    prepare(val_fraction=0.5)
    photos = PreparedPhotos(tmp_path / "prepared")
    who = dict(zip(photos.ids, photos.identities, strict=True))
    for split in ("train", "val"):
        people = {photos.identities[pair.gt] for pair in photos.pairs(split)}
        assert 1 < len(people) < 6
        assert {who[name] for name in others(photos.root, split).values()} <= people


@pytest.mark.parametrize("split", ["val", "all"])
def test_unmasked_references_where_the_data_says_so(prepared, model_dir, split):
    methods = build_methods(
        ["reference", "reference-unmasked", "model-gt:gt", "model-swap:swap"], str(model_dir)
    )
    samples = {}
    for masked in (True, False):
        pairs = chosen(prepared, split, methods, mask_reference=masked)
        sample = samples[masked] = collate([pairs[0]])
        photo = pairs.base.photos.photo(pairs.base.pairs[0].reference)
        assert torch.equal(sample.reference, full_reference(photo, 64, masked)[0])
        assert torch.equal(sample.unmasked, full_reference(photo, 64, False)[0])
        assert sample.masked is masked
        assert reference_title(sample) == f"reference ({'' if masked else 'un'}masked)"
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
    assert unmasked.describe() == {"kind": "reference-unmasked"}


def test_the_lr_as_the_reference_is_applied_and_recorded(prepared, model_dir, tmp_path):
    sample = chosen(prepared, None, reference="lr", degradation="dpsr")[0]
    assert torch.equal(sample.reference, resize(sample.lr[None], 64)[0].clamp(0, 1))
    assert sample.reference_id == "enlarged LR"
    assert reference_title(sample) == reference_title(collate([sample])) == "reference (enlarged LR)"
    for split in (None, "all"):
        data, out = prepared_data(prepared, reference="lr"), str(tmp_path / str(split))
        results = evaluate(model_dir=str(model_dir), data=data, out=out, split=split, grid_images=1)
        assert list(results["methods"]) == ["bicubic", "without_reference", "with_reference"]
        assert results["protocol"]["reference"] == "lr"
        own, none = (results["methods"][name] for name in ("with_reference", "without_reference"))
        assert own == pytest.approx(none, rel=1e-5)  # what a model makes of no reference
    for method in ("reference", "reference-unmasked", "model-swap"):
        with pytest.raises(ValueError, match=f"reference is lr, .* but {method} needs a photo"):
            evaluate(
                model_dir=str(model_dir), data=data, out=str(tmp_path / "out"), methods=["bicubic", method]
            )
    assert not (tmp_path / "out").exists()


def test_chosen_pairs_are_degraded_like_the_datas_own(prepared):
    given = {"degradation": "dpsr", "seed": 3}
    own = pairs_for(prepared_data(prepared, **given), [])[0]
    for other in ({}, {"degradation": "bicubic"}, {"seed": 4}):
        samples = chosen(prepared, "all", **given | other)
        same = samples[samples.ids().index(own.id)]
        assert torch.equal(same.lr, own.lr) == (other == {})


def test_the_fingerprint_knows_pairs_others_references_and_lr(prepared):
    base = prepared_data(prepared).val_dataset()
    swapped = prepared_data(prepared).val_dataset(other_person=True)
    unmasked = prepared_data(prepared, mask_reference=False).val_dataset()
    few = prepared_data(prepared, limit_val=2).val_dataset()
    pairs = [
        EvaluationPairs(base, None),
        EvaluationPairs(base, swapped.pairs),
        EvaluationPairs(base, swapped.pairs[::-1]),
        EvaluationPairs(base, None, lr_as_reference=True),
        EvaluationPairs(unmasked, None),
        EvaluationPairs(few, None),
    ]
    for degradation, seed in (("dpsr", 0), ("dpsr", 1), ("realistic", 0)):
        pairs.append(pairs_for(prepared_data(prepared, degradation=degradation), []))
        pairs[-1].base.degrade.seed = seed
    fingerprints = [of.fingerprint() for of in pairs]
    assert len(set(fingerprints)) == len(fingerprints)
    assert EvaluationPairs(prepared_data(prepared).val_dataset(), None).fingerprint() == fingerprints[0]


def test_table_1_runs_on_the_papers_test_pairs(prepared, model_dir, tmp_path):
    """On a folder with such a split, which here holds all pairs."""
    summary = json.loads((prepared / "prepare.json").read_text())
    (name,) = (path.name for path in prepared.glob("pairs_all.*"))
    (prepared / name.replace("all", "paper_test")).write_bytes((prepared / name).read_bytes())
    summary["splits"] = [*summary["splits"], "paper_test"]
    summary["sha256"] = content_hash(prepared, summary["splits"])
    (prepared / "prepare.json").write_text(json.dumps(summary))
    out = tmp_path / "out"
    words = ["--model_dir", str(model_dir), "--data.init_args.root", str(prepared), "--out", str(out)]
    words += ["--lpips", "false", "--isc", "false"]
    main(["evaluate", "--config", str(ROOT / "configs" / "eval" / "table1_x64.yaml"), *words])
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["protocol"]["split"] == "paper_test"
    assert results["protocol"]["pairs"] == len(PreparedPhotos(prepared).pairs("all"))
    assert results["protocol"]["methods"]["reference-unmasked"]["kind"] == "reference-unmasked"
    assert "of the split paper_test" in (out / "table.md").read_text(encoding="utf-8")
    assert Image.open(out / "worst.png").mode == "RGB"


def test_documented_commands_evaluate_models_on_people_that_were_held_out():
    for page in (ROOT / "README.md", ROOT / "docs" / "evaluation.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        commands = [line for line in text.splitlines() if line.startswith("    rpf evaluate")]
        with_models = [line for line in commands if "model:" in line]
        assert with_models
        assert all("--split val" in line for line in with_models)


def test_the_protocol_names_the_split_of_the_data(prepared):
    assert choose_pairs(prepared_data(prepared))[1] == "val"
    assert choose_pairs(prepared_data(prepared, val_fraction=0, split="disjoint"), "val")[1] == "disjoint val"
