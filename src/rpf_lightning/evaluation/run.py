"""`rpf evaluate`: any number of methods on the same pairs of a data set."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch.utils.data import Dataset

from rpf_lightning.data import PairsDataModule
from rpf_lightning.data.dataset import PairsDataset, fingerprint
from rpf_lightning.data.modules import ReferencePairsDataModule
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.pairs import SplitPairs
from rpf_lightning.data.sample import full_reference, make_face
from rpf_lightning.evaluation.compare import Networks, compare
from rpf_lightning.evaluation.contact import chosen_places, draw_sheet, picture_row, spread
from rpf_lightning.evaluation.methods import (
    KINDS,
    Bicubic,
    CopiedReference,
    EvaluationBatch,
    Folder,
    Method,
    Model,
    NetworkMethod,
    PublishedGCFSR,
    Reference,
    RefinementChain,
)
from rpf_lightning.evaluation.report import table_for_console, write_results
from rpf_lightning.model import RPFModel

DEFAULT_METHODS = (
    "bicubic", "model-none:without_reference", "model:with_reference", "model-swap:other_person",
)  # fmt: skip
DATA_CLASS = "rpf_lightning.data.ReferencePairsDataModule"
PARTS = ("train", "val", "test")
WIDTH = 200  # of the table in a file or a pipe, where rich would take 80


class EvaluationPairs(Dataset[EvaluationBatch]):
    """Pairs of photos at full size, without the thin-plate splines that only training needs.

    Args:
        base: The pairs, and how samples are made.
        others: The same GTs with references of other people; None gives none.
    """

    def __init__(self, base: PairsDataset, others: Sequence[Pair] | None) -> None:
        self.base, self.others = base, None if others is None else list(others)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> EvaluationBatch:
        base, pair = self.base, self.base.pairs[index]
        face = make_face(
            base.photos.photo(pair.gt), lr_size=base.lr_size, size=base.size, side=base.size,
            source_side=base.source_side,
        )  # fmt: skip
        name = base.photos.ids[pair.gt]
        lr = face.lr if base.degrade is None else base.degrade(face.lr[None], [name])[0]
        references = [pair.reference, *([] if self.others is None else [self.others[index].reference])]
        pixels = [
            full_reference(base.photos.photo(place), base.size, base.mask_reference)[0][0]
            for place in references
        ]
        names = [base.photos.ids[place] for place in references]
        other, other_id = (None, None) if self.others is None else (pixels[1], names[1])
        return EvaluationBatch(lr, face.gt, face.gt_mask, pixels[0], other, name, names[0], other_id)

    def ids(self) -> list[str]:
        """Return the names of the GTs."""
        return [self.base.photos.ids[pair.gt] for pair in self.base.pairs]

    def fingerprint(self) -> str:
        """Hash of everything that the samples depend on, but the degradation."""
        others = None if self.others is None else [pair[:2] for pair in self.others]
        return fingerprint(self.base.fingerprint(), others)


class ChosenPairs(PairsDataModule):
    """Pairs that were chosen, as the validation part.

    Args:
        found: The photos and pairs; only the validation part is used.
        kwargs: Arguments of `PairsDataModule`.
    """

    def __init__(self, found: SplitPairs, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.found = found

    def find_pairs(self) -> SplitPairs:
        """Return them."""
        return self.found


def choose_pairs(data: PairsDataModule, split: str | None = None) -> tuple[PairsDataModule, str]:
    """Choose the pairs to evaluate on.

    Args:
        data: The data; its sides are known.
        split: The name of a split of the prepared folder, such as "all" or "paper_test"; or a part of the
            datamodule's own: "train", "val", "test". None is "val".

    Returns:
        A datamodule whose validation part they are, and what the protocol says of the choice.

    Raises:
        FileNotFoundError: If there is no such split; the message has those there are.
    """
    named: list[str] = []
    if isinstance(data, ReferencePairsDataModule) and split is not None:
        photos = data.prepared()
        named = photos.splits
        if split in named:
            pairs = photos.pairs(split)
            return _with_pairs(data, pairs, photos, photos.near_duplicates()), split
    if split in (None, "val"):
        return data, "val"
    if split not in PARTS:
        raise FileNotFoundError(
            f"no split {split!r}: expected one of {', '.join(dict.fromkeys([*named, *PARTS]))}"
        )
    found = data.split_pairs()
    pairs = getattr(found, split)
    said = "test (no such part: validation)" if split == "test" and pairs == found.val else split
    return _with_pairs(data, pairs, found.photos, found.duplicates), said


def _with_pairs(data: PairsDataModule, pairs: list[Pair], photos: Any, duplicates: Any) -> ChosenPairs:
    people = {photos.identities[pair.gt] for pair in pairs}
    others = [place for place, name in enumerate(photos.identities) if name in people]
    return ChosenPairs(
        SplitPairs(photos, [], pairs, pairs, others, duplicates),
        lr_size=data.lr_size, size=data.size, limit_val=data.limit_val, seed=data.seed,
        degradation=data.degradation, mask_reference=data.mask_reference,
    )  # fmt: skip


def evaluate_model_dir(
    model_dir: str | None,
    data: PairsDataModule,
    out: str,
    batch_size: int = 8,
    grid_images: int = 6,
    lpips: bool = False,
    isc: bool = False,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    split: str | None = None,
    isc_pack: str | None = None,
    landmarks: str | None = None,
    contact_images: int = 4,
    workers: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Compare methods on the same pairs of people never trained on.

    Args:
        model_dir: Directory of the models that name none; may be None where all do.
        data: Where the pairs come from; sides that it leaves open are the first model's.
        out: Folder for `results.json`, `table.md`, `table.tex`, `per_image.csv` and pictures.
        batch_size: Pairs per step.
        grid_images: Faces in `grid.png`, of the first model with its own reference.
        lpips: Measure LPIPS (AlexNet); needs AlexNet's weights.
        isc: Measure ISC to the GT and to the reference; needs an insightface pack.
        methods: See `rpf_lightning.evaluation.methods`; gaps are taken to the first.
        split: See `choose_pairs`.
        isc_pack: Name of the insightface pack.
        landmarks: Measure the landmark distance: "face-alignment" or "onnx:PATH".
        contact_images: Faces on each of `worst.png`, `median.png` and `best.png`.
        workers: Processes that load.
        device: A torch device, or "auto".

    Returns:
        The contents of `results.json`.

    Raises:
        FileNotFoundError: If data, models or weights that were asked for are missing.
        ValueError: If methods, sides or results do not fit, see `compare`.
    """
    built = build_methods(methods or DEFAULT_METHODS, model_dir)
    first = next((m.model for m in built if isinstance(m, NetworkMethod)), None)
    data.size = data.size or getattr(first, "size", None)
    data.lr_size = data.lr_size or getattr(first, "lr_size", None)
    chosen, said = choose_pairs(data, split)
    base = chosen.val_dataset()
    others = chosen.val_dataset(other_person=True).pairs if any(m.needs_other for m in built) else None
    dataset = EvaluationPairs(base, others)
    extra: dict[str, Any] = {
        "data": type(data).__name__, "split": said, "photos_sha256": base.photos.sha256,
        "degradation": data.degradation, "seed": data.seed, "mask_reference": data.mask_reference,
    }  # fmt: skip
    if model_dir:
        extra["model_dir"] = Path(model_dir).name
    results = compare(
        built, dataset, out, lr_size=base.lr_size, size=base.size, batch_size=batch_size, workers=workers,
        device=device, networks=_networks(lpips, isc, isc_pack, landmarks, extra), protocol_extra=extra,
    )  # fmt: skip
    place = torch.device(results["protocol"]["device"])
    own = next((m for m in built if isinstance(m, Model) and m.given == "own"), None)
    rows = (
        [] if own is None else [picture_row(own.model, dataset[i]) for i in spread(len(dataset), grid_images)]
    )
    metric, places = chosen_places(results, (own or built[-1]).name, contact_images)
    sheets = {
        name: draw_sheet(built, dataset, of, metric, place) for name, of in places.items() if contact_images
    }
    files = write_results(Path(out), results, rows, sheets)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table_for_console(results))
    for file in files:
        console.print(f"{file}", soft_wrap=True, highlight=False)
    return results


def _networks(
    lpips: bool, isc: bool, isc_pack: str | None, landmarks: str | None, extra: dict[str, Any]
) -> Networks:
    """Load the networks that were asked for, and name them in the protocol."""
    networks = Networks()
    if lpips:
        from rpf_lightning.metrics.perceptual import LPIPS

        networks = networks._replace(perceptual=LPIPS())
        extra["lpips_network"] = "AlexNet, heads of lpips v0.1, images clamped to [0, 1]"
    if isc:
        from rpf_lightning.faces.identity import BOX_X, BOX_Y, ArcFace

        arcface = ArcFace(isc_pack)
        networks = networks._replace(identity=arcface)
        extra["isc_network"] = f"{arcface.pack}/{arcface.file}"
        extra["isc_crop"] = f"x {BOX_X}, y {BOX_Y} of the aligned image, antialiased to 112"
    if landmarks:
        from rpf_lightning.faces.landmarks import landmark_model

        networks = networks._replace(landmarks=landmark_model(landmarks, pack=isc_pack))
        kind, _, path = landmarks.partition(":")
        extra["landmark_network"] = f"{kind}:{Path(path).name}" if path else kind
    return networks


def build_methods(specs: Sequence[str], model_dir: str | None = None) -> list[Method]:
    """Make methods from text; a model directory is loaded once, however many methods name it.

    Args:
        specs: See `rpf_lightning.evaluation.methods`.
        model_dir: The directory of models that name none.

    Raises:
        ValueError: If a text is of another form, or two methods have one name.
        FileNotFoundError: If what it names is missing.
    """
    models: dict[str, RPFModel] = {}

    def model(directory: str) -> RPFModel:
        key = str(Path(directory).resolve()) if Path(directory).exists() else directory
        if key not in models:
            models[key] = RPFModel.from_pretrained(directory)
        return models[key]

    methods = [_build(spec, model_dir, model) for spec in specs]
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"expected a name of its own for every method, but {', '.join(twice)} is given twice"
        )
    return methods


def _build(spec: str, model_dir: str | None, model: Callable[[str], RPFModel]) -> Method:
    kind, _, rest = spec.partition(":")
    name, _, argument = rest.partition("=")
    name = name or kind
    if kind not in KINDS or (spec.partition(":")[1] and not rest):
        raise ValueError(f"method {spec!r}: expected kind[:NAME[=ARGUMENT]], kind one of {', '.join(KINDS)}")
    if kind in ("bicubic", "reference"):
        if argument:
            raise ValueError(f"method {spec!r}: {kind} takes no argument")
        return Bicubic(name) if kind == "bicubic" else CopiedReference(name)
    if kind in ("gcfsr", "folder"):
        if not argument:
            raise ValueError(f"method {spec!r}: expected {kind}:NAME={'FILE' if kind == 'gcfsr' else 'DIR'}")
        return PublishedGCFSR(name, argument) if kind == "gcfsr" else Folder(name, argument)
    directory = argument or model_dir
    if not directory:
        raise ValueError(f"method {spec!r}: expected {kind}:NAME=DIR, or a model_dir for all models")
    if kind == "refinement":
        return RefinementChain(name, model(directory), Path(directory).name)
    given = cast(Reference, kind.partition("-")[2] or "own")
    return Model(name, model(directory), given, Path(directory).name)


def main(words: Sequence[str]) -> None:
    """Run `rpf evaluate`.

    Args:
        words: The command line after it.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(prog="rpf evaluate", description=evaluate_model_dir.__doc__)
    parser.add_argument("--config", action=ActionConfigFile)
    texts: dict[str, tuple[Any, Any, str]] = {
        "model_dir": (str | None, None, "directory of the models that name none"),
        "methods": (
            list[str],
            [],
            "kind[:NAME[=ARGUMENT]], kind: " + ", ".join(KINDS) + "; --method adds one",
        ),
        "split": (
            str | None,
            None,
            "pairs of the prepared folder: all, val, test, paper_test, ...; default val",
        ),
        "lr_size": (int | None, None, "side of the LR; default the first model's"),
        "size": (int | None, None, "side of the faces; default the first model's"),
        "batch_size": (int, 8, "pairs per step"),
        "grid_images": (int, 6, "faces in grid.png"),
        "contact_images": (int, 4, "faces on each of worst.png, median.png and best.png"),
        "lpips": (bool, False, "LPIPS; needs AlexNet's weights"),
        "isc": (bool, False, "ISC; needs an insightface pack"),
        "isc_pack": (str | None, None, "name of the insightface pack"),
        "landmarks": (str | None, None, "landmark distance: face-alignment or onnx:PATH"),
        "workers": (int, 0, "processes that load"),
        "device": (str, "auto", "a torch device"),
    }
    for name, (kind, default, text) in texts.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--out", type=str, required=True, help="folder of the results")
    parser.add_subclass_arguments(
        PairsDataModule, "data", help="a prepared folder, or a datamodule with --data.init_args"
    )
    words, added = _plain_words(words, list(texts))
    config = parser.parse_args(words)
    data = parser.instantiate(config).data
    if data is None:
        parser.error("--data: expected a prepared folder or a datamodule")
    data.lr_size, data.size = config.lr_size or data.lr_size, config.size or data.size
    evaluate_model_dir(
        config.model_dir, data, config.out, config.batch_size, config.grid_images, config.lpips, config.isc,
        methods=[*config.methods, *added], split=config.split, isc_pack=config.isc_pack,
        landmarks=config.landmarks, contact_images=config.contact_images, workers=config.workers,
        device=config.device,
    )  # fmt: skip


def _plain_words(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Translate the short form: `--lr-size`, `--lpips` without a value, `--data DIR`, and `--method` taken out."""
    plain: list[str] = []
    methods: list[str] = []
    rest = [part for word in words for part in _split(word)]
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        value = rest[0] if rest and not rest[0].startswith("--") else None
        if word == "--method" and value is not None:
            methods.append(rest.pop(0))
        elif word in ("--lpips", "--isc") and value is None:
            plain += [word, "true"]
        elif word == "--data" and value is not None and not re.fullmatch(r"[\w.]*DataModule", value):
            folder = rest.pop(0)
            plain += [word, DATA_CLASS, "--data.init_args.root", folder]
        else:
            plain.append(f"--{name}" if word.startswith("--") and name in options else word)
    return plain, methods


def _split(word: str) -> list[str]:
    """`--option=value` in two words; not `--data.x=value`, which jsonargparse reads itself."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and re.fullmatch(r"--[\w-]+", name) else [word]
