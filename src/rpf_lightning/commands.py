"""What `rpf` does, as functions that a notebook can call: their signatures are the command line.

They take what a command line holds, texts and numbers, and print what they did. What they call takes models and data
as well. Everything heavy is imported inside, so that a wrong argument is told at once.
"""

from __future__ import annotations

import json
import sys
from inspect import signature
from pathlib import Path
from typing import Any, Literal


def curriculum(
    *options: str,
    configs: list[str],
    model_dir: str | None = None,
    only: list[str] | None = None,
    from_: str | None = None,
    dry_run: bool = False,
) -> None:
    """Run all fits of a model in order; the same call goes on where it stopped.

    A fit's name is block2-warping or joint1-2; block2 and warping stand for all fits of that block or stage.

    Args:
        options: For every fit, such as --data.init_args.root DIR; --warping.trainer.max_epochs 8 for one stage.
        configs: A curriculum.yaml; when given again, an overlay for every fit. All other options go to the fits, those
            of one stage with its name in front: --warping.trainer.max_epochs 8.
        model_dir: Model directory, in place of the file's.
        only: Run these fits alone, in the plan's order: block2-warping, joint1-2, block2 or warping.
        from_: Start at this fit.
        dry_run: Print the plan, one line per fit: side, parameters, steps, file, operations.
    """
    from rpf_lightning.curriculum import run_curriculum

    overlays = [word for overlay in configs[1:] for word in ("--config", overlay)]
    run_curriculum(configs[0], [*overlays, *options], model_dir, dry_run, only=only, start=from_)


def prepare_celeba_hq(
    *,
    mapping: str,
    identities: str,
    images: str | None = None,
    out: str | None = None,
    partition: str | None = None,
    counts: bool = False,
    **options: Any,
) -> None:
    """Turn the raw CelebA-HQ release into hashed reference pairs.

    Args:
        mapping: CelebA-HQ-to-CelebA-mapping.txt.
        identities: identity_CelebA.txt.
        images: Folder with the photos; needed unless only counts are printed.
        out: Prepared folder, likewise.
        partition: list_eval_partition.txt: also write the split without shared people.
        counts: Only print counts as JSON; needs no photos.
        options: See `Options`.
    """
    from rpf_lightning.data.preparation.celeba import counts as count
    from rpf_lightning.data.preparation.celeba import read_metadata
    from rpf_lightning.data.preparation.options import Options
    from rpf_lightning.data.preparation.pipeline import prepare_celeba_hq as prepare

    how = Options(**options)
    if counts:
        metadata = read_metadata(mapping, identities, partition)
        for warning in metadata.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(json.dumps(count(metadata)))
    elif images is None or out is None:
        raise ValueError("expected --images and --out, or --counts")
    else:
        prepare(images, mapping, identities, out, partition=partition, options=how)


def prepare_faces(
    *,
    images: str,
    out: str,
    identities: str | None = None,
    identities_from_folders: bool = False,
    val_fraction: float | None = None,
    seed: int = 0,
    **options: Any,
) -> None:
    """Turn any folder of photos into hashed reference pairs.

    Args:
        images: Folder with the photos (PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIC), with its subfolders.
        out: Prepared folder.
        identities: CSV file with the columns file, identity.
        identities_from_folders: The folder that holds a photo names its person.
        val_fraction: Share of the people held out: writes pairs_train and pairs_val, without it pairs_all.
        seed: Seed of that split.
        options: See `Options`.
    """
    from rpf_lightning.data.preparation.options import Options
    from rpf_lightning.data.preparation.pipeline import prepare_faces as prepare

    how = Options(**options)
    prepare(
        images, out, identities=identities, people_in_folders=identities_from_folders, val_fraction=val_fraction,
        seed=seed, options=how,
    )  # fmt: skip


def prepare_verify(folder: str, *, images: str | None = None) -> None:
    """Check a prepared folder and its photos against their hashes.

    Args:
        folder: A prepared folder.
        images: Where the photos lie now.

    Raises:
        ValueError: With all that differs, twenty lines at most.
    """
    from rpf_lightning.data.preparation.prepared_folder import read_summary, verify

    if problems := verify(folder, images):
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise ValueError("\n".join([*problems[:20], *more]))
    summary = read_summary(Path(folder))
    print(
        f"{folder}: {summary['counts']['kept']:,} photos, their people, landmarks, masks and pairs are as prepared; "
        f"sha256 {summary['sha256']}"
    )


def enhance(
    photos: list[str] | None = None,
    *,
    out: str,
    references: list[str] | None = None,
    faces: list[str] | None = None,
    people: str | None = None,
    model_dir: str = "celeba-hq-16to128",
    aligned: bool = False,
    csv: str | None = None,
    mask_model: Literal["auto", "bisenet", "hull", "template"] = "auto",
    landmark_model: str | None = None,
    face_models: Literal["auto", "insightface", "dlib"] = "auto",
    pack: str | None = None,
    force: bool = False,
    scale: int | None = None,
    keep_size: bool = False,
    quality: int = 95,
    strip_metadata: bool = False,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Sharpen small faces in photos with portraits of the same people.

    Args:
        photos: Photos with small faces, or folders of them; with --aligned one aligned square crop.
        out: NAME.png, .jpg or .webp, beside it NAME_side_by_side.png; for several photos, a folder or --csv a folder.
        references: One large face of the same person; of several, the one whose pose is nearest, matches first.
        faces: Which face of the photo, 0 is the largest; or INDEX=PORTRAIT for each of several people.
        people: A folder with a folder of portraits per person: each is found by identity.
        model_dir: A model directory, the name of a packaged model, or a repository of the Hugging Face hub.
        aligned: Photo and reference are aligned squares: detect nothing.
        csv: A list in place of photos: columns photo, and as needed reference, face, name; with --aligned lr, and as
            needed reference, mask, name.
        mask_model: What masks the reference; auto is bisenet where its weights are found, else hull.
        landmark_model: For --mask_model hull: dlib (when left out), face-alignment, onnx:PATH or my_module.MyLandmarks.
        face_models: What finds and compares faces; auto is insightface where a pack is found or named, else dlib.
        pack: insightface pack.
        force: Enhance also with a reference of another person.
        scale: How many times the photo is enlarged; left out: as the face needs it.
        keep_size: The photo keeps its size, as --scale 1.
        quality: Of JPEG and WebP, 1 to 100.
        strip_metadata: Keep neither EXIF nor colour profile.
        batch_size: Of --aligned --csv: faces per step.
        num_workers: Of --aligned --csv: processes that load.
        device: A torch device, such as cuda:1; auto is the GPU where there is one.

    Raises:
        FileNotFoundError: If a photo, a model or weights are missing.
        ValueError: If arguments do not go together, or a photo cannot be enhanced, see `enhance_people`; of many photos
            after all others are done, with every reason.
    """
    photos, references, faces = photos or [], references or [], faces or []
    if aligned and csv is not None:
        if photos or references or faces or people is not None:
            raise ValueError("--aligned --csv: expected no photo, --reference, --face or --people with it")
        chosen = [mask_model != "auto", landmark_model, face_models != "auto", pack, force]
        if any(value not in (None, False) for value in chosen):
            raise ValueError(
                "--aligned --csv: expected none of --mask_model, --landmark_model, --face_models, --pack, --force"
            )
        if scale is not None or keep_size or quality != 95 or strip_metadata:
            raise ValueError(
                "--aligned --csv: expected none of --scale, --keep_size, --quality, --strip_metadata"
            )
        from rpf_lightning.predicting import predict_list, read_list

        predict_list(model_dir, read_list(csv), out, batch_size, num_workers, device)
        return
    if keep_size and scale is not None:
        raise ValueError("--scale, --keep_size: expected one of them")
    if aligned and (
        faces or people or len(photos) != 1 or len(references) != 1 or keep_size or scale is not None
    ):
        raise ValueError(
            "--aligned: expected one photo, one --reference, and none of --face, --people, --scale, --keep_size; or "
            "--csv LIST"
        )
    if csv is not None and (photos or references or faces):
        raise ValueError("--csv: expected no photo, --reference or --face, which stand in the list")
    if csv is None and not (photos and (references or faces or people)):
        raise ValueError(
            "expected a photo and --reference, --face INDEX=PORTRAIT or --people FOLDER; or --csv LIST"
        )
    if people is not None and references:
        raise ValueError("--people: expected no --reference, but --face INDEX=PORTRAIT for further people")
    from rpf_lightning.devices import place_of
    from rpf_lightning.enhancing import FaceNetworks, enhance_aligned, outputs, people_in, write_enhanced
    from rpf_lightning.enhancing.found import check_size
    from rpf_lightning.enhancing.many import Done, Enhancer, enhance_many
    from rpf_lightning.enhancing.portraits import check_portraits
    from rpf_lightning.enhancing.tasks import Task, asked_faces, read_tasks, tasks_of
    from rpf_lightning.model import RPFModel

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    scale = 1 if keep_size else scale
    known = {} if people is None else people_in(people)
    asked = asked_faces(faces, references)
    many = csv is not None or len(photos) > 1 or Path(photos[0]).is_dir()
    if many:
        tasks = tasks_of(photos, out, asked) if csv is None else read_tasks(csv, out)
        if not known and (bare := [task.photo for task in tasks if not task.faces]):
            raise ValueError(f"{csv}: expected a reference for {bare[0]}, or --people FOLDER")
    else:
        tasks = [Task(Path(photos[0]), Path(out), asked)]
        check_size(photos[0], scale)  # before networks are loaded
        for given in asked.values():
            check_portraits(given, "portraits")
    portraits = [file for task in tasks for files in task.faces.values() for file in files]
    inputs = [
        *(task.photo for task in tasks),
        *portraits,
        *(file for files in known.values() for file in files),
    ]
    outputs.check_places([task.out for task in tasks], inputs, quality)  # before anything is computed
    place = place_of(device)
    networks = FaceNetworks(pack, mask_model, landmark_model, place, face_models)
    print(networks.said, file=sys.stderr)  # results go to stdout
    model = RPFModel.from_pretrained(model_dir).to(place)
    if aligned:
        done = Done(enhance_aligned(photos[0], references[0], model, networks, force), {})
    else:
        enhancer = Enhancer(model, networks, known, force, scale)
        if many:
            if failed := enhance_many(tasks, out, enhancer, quality, strip_metadata, warn=warn):
                reasons = "".join(
                    f"\n  {reason if str(photo) in reason else f'{photo}: {reason}'}"
                    for photo, reason in failed.items()
                )
                raise ValueError(f"{len(failed)} of {len(tasks)} photos could not be enhanced:{reasons}")
            return
        for text in enhancer.warnings:
            warn(text)
        done = enhancer(tasks[0], lambda text: print(f"{text} ...", file=sys.stderr, flush=True))
        del enhancer
    del networks, model  # writing a large photo needs their memory
    files = write_enhanced(done.result, out, strip_metadata, quality)
    for text in done.result.warnings:
        warn(text)
    for line in done.lines():
        print(line)
    if done.result.sought:
        print(f"faces were sought from {done.result.sought} pixels on")
    print(" and ".join(map(str, files)))


def figure(
    name: Literal["comparison", "intermediates", "thin-plate", "references", "mask", "degradations"],
    *,
    model_dir: str,
    out: str,
    rows: int | None = None,
    data: str | None = None,
    split: str = "",
    images: str | None = None,
    people: int = 200,
    val_fraction: float = 0.15,
    seed: int = 0,
    degradation: Literal["bicubic", "dpsr", "realistic"] = "bicubic",
    device: str = "auto",
    metrics: list[str] | None = None,
    methods: list[str] | None = None,
    same: int | None = None,
    others: int | None = None,
    isc: bool | None = None,
    unmasked_model: str | None = None,
    strengths: int | None = None,
) -> None:
    """Draw one of the paper's figures as a PNG and print its values.

    Args:
        name: Which figure.
        model_dir: A model directory or name.
        out: The PNG.
        rows: Photos.
        data: A folder that `rpf prepare` has written; without it faces are drawn.
        split: Of --data, such as paper or disjoint.
        images: Where the photos of --data lie now.
        people: Drawn people.
        val_fraction: Share of the people held out, as in training.
        seed: Of that split, of drawn faces and of degradations.
        degradation: Of the LR.
        device: A torch device, such as cuda:1; auto is the GPU where there is one.
        metrics: What is printed under results: psnr, ssim, psnr_face, detail_error, lr_consistency.
        methods: comparison: KIND[:NAME[=ARGUMENT]], as in `rpf evaluate`.
        same: references: how many of the same person.
        others: references: how many of other people.
        isc: references: print ISC; needs an insightface pack.
        unmasked_model: mask: the directory of a model that was trained without the removal.
        strengths: degradations: draws of each kind.

    Raises:
        FileNotFoundError: If data, a model or weights are missing.
        ValueError: If an argument is wrong or not of this figure.
    """
    from rpf_lightning.data import ReferencePairsDataModule, SyntheticFacesDataModule
    from rpf_lightning.devices import place_of
    from rpf_lightning.evaluation.building import build_methods
    from rpf_lightning.evaluation.figures import FIGURES
    from rpf_lightning.evaluation.subjects import load

    draw: Any = FIGURES[name.replace("-", "_")]
    takes = signature(draw).parameters
    of_some: dict[str, Any] = {
        "rows": rows, "metrics": metrics, "methods": methods, "same": same, "others": others, "identity": isc or None,
        "unmasked_model": unmasked_model, "strengths": strengths,
    }  # fmt: skip
    given = {key: value for key, value in of_some.items() if value is not None}
    if wrong := [key for key in given if key not in takes]:
        raise ValueError(f"--{wrong[0].replace('identity', 'isc')}: rpf figure {name} has no such option")
    if methods is not None:
        given["methods"] = {method.name: method for method in build_methods(methods, model_dir)}
    if "seed" in takes:
        given["seed"] = seed
    shared: dict[str, Any] = {"val_fraction": val_fraction, "seed": seed, "degradation": degradation}
    if data is None:
        source: Any = SyntheticFacesDataModule(people=people, photos_each=5, **shared)
    else:
        source = ReferencePairsDataModule(root=data, split=split, images=images, **shared)
    model = load("model_dir", model_dir).to(place_of(device))
    if "identity" in given:
        from rpf_lightning.faces.arcface import ArcFace

        given["identity"] = ArcFace()
    for row in draw(model=model, data=source, out=out, **given):
        print(row.caption)
        for title, values in row.values.items():
            print(f"  {title}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))
    print(out)


def export(
    model_dir: str,
    *,
    out: str,
    format: Literal["onnx", "torch"] = "onnx",
    batch_size: int = 1,
    lr_size: int | None = None,
    reference: bool = True,
    mask: bool = True,
    references: int | None = None,
    opset: int = 18,
    tolerance: float = 1e-4,
) -> None:
    """Write a model at fixed sizes as ONNX or as a torch.export program, and compare it with the model.

    Args:
        model_dir: A model directory, the name of a packaged model, or a repository of the Hugging Face hub.
        out: The file; .pt2 for torch.
        format: Kind of the file.
        batch_size: Images per run.
        lr_size: Side of the LR; the model's when left out.
        reference: Whether there is a reference; without one the LR is the only input.
        mask: Whether there is a mask; without one the reference is masked already.
        references: K references per image; left out: one, without that axis.
        opset: ONNX operator set, 18 at least.
        tolerance: Largest difference that passes.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If an argument is outside its range.
        RuntimeError: If the outputs differ by more than `tolerance`; nothing is written then.
        ImportError: If what ONNX needs is not installed.
    """
    from rpf_lightning.export import export_model
    from rpf_lightning.model import RPFModel

    exported = export_model(
        RPFModel.from_pretrained(model_dir), out, format, batch_size, lr_size, reference, mask, references, opset,
        tolerance,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in exported.files)
    inputs = ", ".join(f"{name} {shape}" for name, shape in exported.inputs.items())
    files = " and ".join(map(str, exported.files))
    print(f"{files}: {size / 1e6:.1f} MB, {inputs}, largest difference {exported.difference:.2g}")
