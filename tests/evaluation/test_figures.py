"""The figures: what they print, what they show, and what they refuse."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from rpf_lightning import metrics
from rpf_lightning.cli import main
from rpf_lightning.data import Degradation, ReferencePairsDataModule, SyntheticFacesDataModule
from rpf_lightning.data.dataset import collate
from rpf_lightning.data.sample import full_reference, gt_at, image_tensor, lr_of
from rpf_lightning.evaluation import figures
from rpf_lightning.evaluation.chosen_metrics import image_metrics
from rpf_lightning.evaluation.figures import (
    FIGURES,
    _strength,
    figure_comparison,
    figure_degradations,
    figure_intermediates,
    figure_mask,
    figure_references,
    figure_thin_plate,
)
from rpf_lightning.model import RPFModel
from rpf_lightning.model.resize import resize

DOT = (0, 255, 80)
CELL = 192  # 64 pixels three times


def faces(**kwargs):
    given = {"people": 8, "photos_each": 4, "val_fraction": 0.5, "seed": 3, **kwargs}
    return SyntheticFacesDataModule(**given)


@pytest.fixture
def model(model_dir):
    return RPFModel.from_pretrained(model_dir)


@pytest.fixture
def pairs():
    """The pairs that two rows show: the first and the one in the middle."""
    data = faces(lr_size=16, size=64).val_dataset(warped=True)
    return [collate([data[0]]), collate([data[len(data) // 2]])]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "figures" / "figure.png"


def shows(out, box, image, dots=False):
    """A cell holds an image (1, 3, s, s), every pixel of it repeated; dots may cover some of it."""
    found = np.asarray(Image.open(out).convert("RGB").crop(box)).astype(int)
    pixels = (image[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(int)
    expected = pixels.repeat(CELL // len(pixels), 0).repeat(CELL // len(pixels), 1)
    assert found.shape == expected.shape == (CELL, CELL, 3)
    dotted = (found == DOT).all(-1) & dots
    assert dotted.any() == dots
    np.testing.assert_array_equal(found[~dotted], expected[~dotted])


def printed(output, gt):
    """What stands under a result."""
    values = {"psnr": metrics.psnr(output, gt).item(), "ssim": metrics.ssim(output, gt).item()}
    return pytest.approx(values, rel=1e-6)


def run(model, batch):
    with torch.no_grad():
        return model(batch.lr, batch.reference)


def test_comparison(model, model_dir, out, pairs, tmp_path):
    (tmp_path / "results").mkdir()
    rng = np.random.default_rng(0)
    pngs = {}
    for batch in pairs:
        pngs[batch.id[0]] = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pngs[batch.id[0]]).save(tmp_path / "results" / f"{batch.id[0]}.png")
    methods = {
        "grey": lambda b: torch.full_like(b.gt, 0.5),
        "files": tmp_path / "results",
        "again": model_dir,
    }
    rows = figure_comparison(model_dir, faces(), out, rows=2, methods=methods)

    assert [row.caption for row in rows] == [f"{b.id[0]}, reference {b.reference_id[0]}" for b in pairs]
    for row, batch in zip(rows, pairs, strict=True):
        pictures = {
            "LR": batch.lr,
            "bicubic": resize(batch.lr, 64).clamp(0, 1),
            "grey": torch.full_like(batch.gt, 0.5),
            "files": torch.from_numpy(pngs[batch.id[0]]).permute(2, 0, 1)[None] / 255,
            "again": run(model, batch),
            "RPF": run(model, batch),
            "GT": batch.gt,
            "reference": batch.reference,
        }
        assert list(row.boxes) == list(pictures)
        lefts = [box[0] for box in row.boxes.values()]
        assert lefts == sorted(lefts)
        for title, image in pictures.items():
            shows(out, row.boxes[title], image)
        results = ("bicubic", "grey", "files", "again", "RPF")
        assert row.values == {title: printed(pictures[title], batch.gt) for title in results}
    assert len({row.values["RPF"]["psnr"] for row in rows}) == 2


def test_intermediates(model, out, pairs):
    data = faces()
    rows = figure_intermediates(model, data, out, rows=2)
    assert len(rows) == 4  # two photos, two blocks
    photos = data.split_pairs().photos
    for number, row in enumerate(rows):
        batch, block = pairs[number // 2], number % 2
        with torch.no_grad():
            _, blocks = model(batch.lr, batch.reference, return_intermediates=True)
        side = (32, 64)[block]
        assert f"block {block + 1}, {side} x {side}" in row.caption
        assert batch.id[0] in row.caption
        gt = gt_at(image_tensor(photos.photo(photos.ids.index(batch.id[0]))), side)[None]
        pictures = {
            "input": batch.lr if block == 0 else blocks[0].output.clamp(0, 1),
            "reference": model.encode_reference(batch.reference)[block],
            "aligned": blocks[block].aligned,
            "synthesized": blocks[block].synthesized,
            "refined": blocks[block].output,
            "GT": gt,
        }
        assert list(row.boxes) == list(pictures)
        for title, image in pictures.items():
            shows(out, row.boxes[title], image)
        assert row.values == {title: printed(pictures[title], gt) for title in ("synthesized", "refined")}


def landmarks_off(flow, batch):
    """Independent of the package: scipy reads the flow at the GT's landmarks."""
    gt, reference = batch.gt_landmarks[0].numpy(), batch.reference_landmarks[0].numpy()
    at = (gt * 64 - 0.5).T[::-1]
    moved = np.stack([map_coordinates(axis.numpy(), at, order=1, mode="nearest") for axis in flow[0]], 1)
    return 100 * np.linalg.norm(gt + moved / 64 - reference, axis=1).mean()


def test_thin_plate(model, out, pairs):
    rows = figure_thin_plate(model, faces(), out, rows=2)
    for row, batch in zip(rows, pairs, strict=True):
        with torch.no_grad():
            block = model(batch.lr, batch.reference, return_intermediates=True)[1][-1]
        shows(out, row.boxes["GT"], batch.gt, dots=True)
        shows(out, row.boxes["reference"], batch.reference, dots=True)
        shows(out, row.boxes["TPS warp"], batch.warped_reference, dots=True)
        shows(out, row.boxes["learned warp"], block.aligned)
        off = {title: values["landmarks"] for title, values in row.values.items()}
        assert off["reference"] == pytest.approx(landmarks_off(0 * batch.flow, batch), rel=1e-4)
        assert off["learned warp"] == pytest.approx(landmarks_off(block.flow, batch), rel=1e-4)
        assert off["TPS warp"] == pytest.approx(landmarks_off(batch.flow, batch), rel=1e-2, abs=1e-4)
        assert off["TPS warp"] < 0.1 * off["reference"]
        # the overlay: the mean of both where the warped face is, the GT elsewhere
        over = np.asarray(Image.open(out).crop(row.boxes["TPS warp over GT"]))[1::3, 1::3] / 255
        gt, warped = (image[0].permute(1, 2, 0).numpy() for image in (batch.gt, batch.warped_reference))
        is_gt = np.abs(over - gt).max(-1) < 0.003
        is_mean = np.abs(over - (gt + warped) / 2).max(-1) < 0.003
        assert (is_gt | is_mean).all()
        assert is_gt[0].all()
        assert is_mean[36:44, 28:36].all()  # the nose
        # a dot is where the landmark is
        x, y = (batch.gt_landmarks[0, 30] * CELL).int().tolist()
        left, top = row.boxes["GT"][:2]
        assert Image.open(out).getpixel((left + x, top + y)) == DOT


def test_thin_plate_without_a_model(out):
    (row,) = figure_thin_plate(None, faces(lr_size=16, size=64), out, rows=1)
    assert list(row.boxes) == ["GT", "reference", "TPS warp", "TPS warp over GT"]


def colours(image):
    """A stand-in for an identity network."""
    return image.mean(dim=(2, 3)) - 0.4


def test_references(model, out, pairs):
    data = faces()
    rows = figure_references(model, data, out, rows=2, same=2, others=2, identity=colours)
    photos = data.split_pairs().photos
    place = {name: index for index, name in enumerate(photos.ids)}
    assert len(rows) == 4
    titles = ["same person 1", "same person 2", "other person 1", "other person 2"]
    for number, batch in enumerate(pairs):
        above, below = rows[2 * number : 2 * number + 2]
        assert above.caption == f"{batch.id[0]}: references"
        assert below.caption == f"{batch.id[0]}: outputs"
        shows(out, above.boxes["GT and LR"], batch.gt)
        shows(out, below.boxes["GT and LR"], batch.lr)
        assert list(below.values) == titles
        gt = place[batch.id[0]]
        points = photos.landmarks

        def distance(index, gt=gt, points=points):
            return np.abs(points[index] - points[gt]).sum(1).mean()

        who = photos.identities
        expected = sorted((i for i in place.values() if who[i] == who[gt] and i != gt), key=distance)[:2]
        for i in sorted(data.split_pairs().others, key=distance):
            if who[i] not in {who[j] for j in expected} and len(expected) < 4:
                expected.append(i)
        for title, index in zip(titles, expected, strict=True):
            reference = full_reference(photos.photo(index), 64, True)[0]
            shows(out, above.boxes[title], reference)
            with torch.no_grad():
                output = model(batch.lr, reference)
            shows(out, below.boxes[title], output)
            values = {"psnr_face": metrics.psnr_face(output, batch.gt, batch.gt_mask).item()}
            values["isc"] = metrics.isc(output, batch.gt, colours).item()
            assert below.values[title] == pytest.approx(values, rel=1e-6)


def test_references_shows_those_that_exist(model, out):
    rows = figure_references(model, faces(), out, rows=1, same=9, others=9)
    assert len([title for title in rows[1].boxes if title.startswith("same")]) == 3  # four photos of each
    assert len([title for title in rows[1].boxes if title.startswith("other")]) == 3  # four people held out
    assert "isc" not in rows[1].values["same person 1"]


@pytest.mark.parametrize("own", [True, False])
def test_mask(model, out, pairs, own):
    data = faces(mask_reference=own)
    torch.manual_seed(1)
    second = RPFModel(model.config, synthesis_residual=False).eval()
    for given, network in ((None, model), (second, second)):
        rows = figure_mask(model, data, out, rows=2, unmasked_model=given)
        photos = data.split_pairs().photos
        for row, batch in zip(rows, pairs, strict=True):
            photo = photos.photo(photos.ids.index(batch.reference_id[0]))
            whole = full_reference(photo, 64, mask_reference=False)[0]
            without = run(network, batch._replace(reference=whole))
            pictures = {
                "LR": batch.lr,
                "masked reference": batch.reference,
                "output with mask": run(model, batch),
                "unmasked reference": whole,
                "output without mask": without,
                "GT": batch.gt,
            }
            assert list(row.boxes) == list(pictures)
            for title, image in pictures.items():
                shows(out, row.boxes[title], image)
            results = ("output with mask", "output without mask")
            assert row.values == {title: printed(pictures[title], batch.gt) for title in results}
            assert row.values["output with mask"] != row.values["output without mask"]


@pytest.mark.parametrize("own", ["bicubic", "realistic"])
def test_degradations(model, out, pairs, own, monkeypatch):
    notes = {}
    real = figures.cell

    def noting(image, *lines, **kwargs):
        notes.setdefault(lines, image)
        return real(image, *lines, **kwargs)

    monkeypatch.setattr("rpf_lightning.evaluation.figures.cell", noting)
    data = faces(degradation=own)
    rows = figure_degradations(model, data, out, rows=2, strengths=2, seed=5)
    photos = data.split_pairs().photos
    for number, batch in enumerate(pairs):
        above, below = rows[2 * number : 2 * number + 2]
        name = batch.id[0]
        y = image_tensor(photos.photo(photos.ids.index(name)))
        lrs = {"bicubic": lr_of(y, 64, 16)[None]}
        for kind, source in (("dpsr", lrs["bicubic"]), ("realistic", gt_at(y, 64)[None])):
            ordered = sorted(
                (Degradation(kind, 16, seed) for seed in range(5, 37)), key=lambda d: _strength(d, name)
            )
            for title, degrade in ((f"{kind} 1", ordered[0]), (f"{kind} 2", ordered[-1])):
                lrs[title] = degrade(source, [name])
                assert [lines for lines in notes if lines and lines[-1] == f"seed {degrade.seed}"]
        assert list(above.boxes) == ["GT and reference", *lrs]
        assert list(below.values) == list(lrs)
        shows(out, above.boxes["GT and reference"], batch.gt)
        shows(out, below.boxes["GT and reference"], batch.reference)
        for title, lr in lrs.items():
            output = run(model, batch._replace(lr=lr))
            shows(out, above.boxes[title], lr)
            shows(out, below.boxes[title], output)
            assert below.values[title] == printed(output, batch.gt)


def test_strength_orders_draws():
    drawn = sorted((Degradation("realistic", 16, s) for s in range(64)), key=lambda d: _strength(d, "x"))
    weak, strong = drawn[0], drawn[-1]
    a, b = weak.draw("x"), strong.draw("x")
    assert sum(a.sigma) < sum(b.sigma)
    assert a.delta < b.delta
    assert a.quality > b.quality
    assert 0 <= _strength(weak, "x") < _strength(strong, "x") <= 3


@pytest.mark.parametrize("name", FIGURES)
def test_a_prepared_folder(name, model_dir, prepared, tmp_path, capsys):
    args = [name.replace("_", "-"), "--model_dir", str(model_dir), "--data", str(prepared)]
    args += ["--val-fraction", "0.5", "--rows", "1", "--out", str(tmp_path / "a.png")]
    main(["figure", *args])
    said = capsys.readouterr().out
    assert str(tmp_path / "a.png") in said
    data = ReferencePairsDataModule(root=str(prepared), val_fraction=0.5)
    rows = FIGURES[name](model_dir, data, tmp_path / "b.png", rows=1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    for row in rows:
        assert row.caption in said
        for title, values in row.values.items():
            for key, value in values.items():
                lines = [line for line in said.splitlines() if line.startswith(f"  {title}: ")]
                assert any(f"{key} {value:.4f}" in line for line in lines)


def test_command_with_embedded_faces(model_dir, tmp_path):
    """With another method; and degradations are drawn with the command's seed."""
    given = ["--model_dir", str(model_dir), "--people", "8", "--rows", "1", "--seed", "3"]
    data = {"people": 8, "photos_each": 5, "seed": 3}
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    words = ["--method", f"model:twin={model_dir}", "--metrics", "ssim", "--degradation", "dpsr"]
    main(["figure", "comparison", *given, *words, "--out", str(a)])
    more = {"methods": {"twin": model_dir}, "metrics": ["ssim"]}
    figure_comparison(model_dir, SyntheticFacesDataModule(**data, degradation="dpsr"), b, rows=1, **more)
    assert a.read_bytes() == b.read_bytes()
    main(["figure", "degradations", *given, "--strengths", "1", "--out", str(a)])
    for file, seed in ((b, 3), (c, 0)):
        figure_degradations(model_dir, SyntheticFacesDataModule(**data), file, rows=1, strengths=1, seed=seed)
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


@pytest.mark.parametrize(
    ("args", "computing"),
    [
        (["comparison", "--method", "model:twin={model}", "--method", "model-gt:third={model}"], 2),
        (["intermediates"], 1),
        (["thin-plate"], 1),
        (["references", "--same", "1", "--others", "1"], 1),
        (["mask", "--unmasked-model", "{model}"], 2),
        (["degradations", "--strengths", "1"], 1),
    ],
)
def test_command_computes_on_the_named_device(args, computing, model_dir, tmp_path, monkeypatch):
    """With every model; "meta" stands for a GPU, and the models are asked there for where they are only."""
    places, twin = {}, RPFModel.from_pretrained(model_dir)

    def forward(self, lr, reference, **kwargs):
        assert lr.device == reference.device
        places[id(self)] = (next(self.parameters()).device.type, lr.device.type)
        return twin.forward(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 64, 64), **kwargs)

    monkeypatch.setattr(RPFModel, "__call__", forward)
    monkeypatch.setattr("rpf_lightning.devices.place_of", {"cuda:1": torch.device("meta")}.__getitem__)
    args = [word.replace("{model}", str(model_dir)) for word in args]
    args += ["--model_dir", str(model_dir), "--people", "8", "--val-fraction", "0.5", "--rows", "1"]
    args += ["--device", "cuda:1"]
    main(["figure", *args, "--out", str(tmp_path / "a.png")])
    assert list(places.values()) == [("meta", "meta")] * computing


def test_the_enlarged_lr_as_reference(model, out, pairs):
    """Where the data say so: what the model makes is what it makes without a reference."""
    batch = pairs[0]
    enlarged = resize(batch.lr, 64).clamp(0, 1)
    with torch.no_grad():
        alone, blocks = model(batch.lr, None, return_intermediates=True)
    (row,) = figure_comparison(
        model, faces(reference="lr"), out, rows=1, methods={"given": lambda b: b.reference}
    )
    assert row.caption == f"{batch.id[0]}, reference enlarged LR"
    for title, image in {"RPF": alone, "reference": enlarged, "given": enlarged}.items():
        shows(out, row.boxes[title], image)
    rows = figure_intermediates(model, faces(reference="lr"), out, rows=1)
    for row, block, reference in zip(rows, blocks, model.encode_reference(enlarged), strict=True):
        shows(out, row.boxes["reference"], reference)
        shows(out, row.boxes["refined"], block.output)
    data = faces(reference="lr", degradation="dpsr")
    above, below = figure_degradations(model, data, out, rows=1, strengths=1)
    assert list(above.boxes) == ["GT", "bicubic", "dpsr 1", "realistic 1"]
    assert list(below.boxes) == ["bicubic", "dpsr 1", "realistic 1"]
    shows(out, below.boxes["bicubic"], alone)
    (row,) = figure_comparison(model, data, out, rows=1)
    degraded = collate([data.val_dataset()[0]]).lr
    assert not torch.equal(degraded, pairs[0].lr)
    shows(out, row.boxes["reference"], resize(degraded, 64).clamp(0, 1))


@pytest.mark.parametrize("name", ["thin_plate", "references", "mask"])
def test_figures_of_references_refuse_the_lr_in_their_place(name, model, out):
    with pytest.raises(ValueError, match=r"^data: its reference is lr, .* take reference: photo"):
        FIGURES[name](model, faces(reference="lr"), out, rows=1)
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("mask --out a.jpg --people 4", "out: expected"),
        ("mask --model_dir nowhere/at/all --people 4", "model_dir: nowhere"),
        ("mask --data nowhere", "nowhere"),
        ("mask --isc", "--isc"),
        ("mask --device cuda:99", "device: cuda:99 is not here"),
        ("mask --device abacus", "device: expected auto"),
        ("comparison --method x=a", "method 'x=a': expected kind[:NAME[=ARGUMENT]]"),
    ],
)
def test_command_says_what_is_wrong(args, message, model_dir, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = args.split()
    with pytest.raises(SystemExit) as stop:
        main(["figure", name, "--model_dir", str(model_dir), "--out", "a.png", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_bad_arguments_are_named(model, out, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        (figure_mask, {"rows": 0}, ValueError, "^rows: "),
        (figure_mask, {"out": tmp_path / "a"}, ValueError, "^out: "),
        (figure_mask, {"metrics": ["fid"]}, ValueError, "^metrics: .*'fid'"),
        (figure_mask, {"data": faces(size=128)}, ValueError, "^data: its size 128 .* 64"),
        (figure_mask, {"model": tmp_path / "empty"}, FileNotFoundError, "^model: "),
        (figure_mask, {"unmasked_model": tmp_path / "empty"}, FileNotFoundError, "^unmasked_model: "),
        (figure_mask, {"data": faces(val_fraction=0)}, ValueError, "^data: "),
        (figure_references, {"same": 0}, ValueError, "^same: "),
        (figure_references, {"others": 0}, ValueError, "^others: "),
        (figure_references, {"data": faces(people=2)}, ValueError, "^data: no photo of a person other"),
        (figure_degradations, {"strengths": 0}, ValueError, "^strengths: "),
        (figure_degradations, {"strengths": 33}, ValueError, "^strengths: "),
        (figure_comparison, {"methods": {"GT": model}}, ValueError, "^methods: 'GT'"),
        (figure_comparison, {"methods": {"a": tmp_path / "none"}}, FileNotFoundError, "^methods: a: "),
        (figure_comparison, {"methods": {"a": tmp_path / "empty"}}, ValueError, "^methods: a: .*holds none"),
        (figure_comparison, {"methods": {"a": lambda b: b.lr}}, ValueError, "^methods: a: gave .*16"),
    ]
    for function, wrong, error, message in cases:
        with pytest.raises(error, match=message):
            function(**{"model": model, "data": faces(), "out": out, "rows": 1, **wrong})
    assert not out.exists()


def test_documented_commands_run(model_dir, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "figures.md").read_text()
    commands = re.findall(r"^    rpf figure (.*)$", page, flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} == {name.replace("_", "-") for name in FIGURES}
    monkeypatch.chdir(tmp_path)
    RPFModel.from_pretrained(model_dir).save_pretrained("runs/demo/model")
    for command in commands:
        main(["figure", *command.split(), "--people", "8", "--val-fraction", "0.5"])
        assert Path(command.split()[-1]).is_file()
    assert all(f"`{name}`" in page for name in image_metrics())
