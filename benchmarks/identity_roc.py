"""How small may a face be for ArcFace, or dlib's descriptor, to tell people apart? The tables of benchmarks/RESULTS.md.

    python benchmarks/identity_roc.py --data prepared --people 200    # a folder of `rpf prepare`; a quarter of an hour
    python benchmarks/identity_roc.py --folders people                # a folder for each person, photos of any kind
    python benchmarks/identity_roc.py --data prepared --face-models dlib

Photos are reduced until their face has each side, never enlarged, and go through what `rpf enhance` does with a photo:
the face is found in it and its enlargements, aligned by its five points and compared with references of full size. Of a
prepared folder two photos of each person are drawn, near-duplicates left out: one is reduced, the other one is the
reference. Of folders every photo is both. For each side are printed:

- the share of photos in which a face is found, among those whose face has at least that side;
- the share of the pairs of one person above the cosine that 1 % (0.1 %) of the pairs of two people exceed, and that
  cosine;
- the shares of both kinds of pairs below the cosine that `rpf enhance` refuses as of another person.

A dash: there are no such pairs, or no such photos.

`rpf_lightning.enhancing.identity_check.LIMITS` were chosen by it.
"""

from __future__ import annotations

import argparse
import datetime
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.preparation.sources import list_photos
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.enhancing.aligned_faces import AlignedFace, FaceNetworks, find_faces
from rpf_lightning.enhancing.identity_check import limits_of

Photo = NDArray[np.uint8]
SIDES = (16, 24, 32, 48, 64, 96, 128, 256)
COLUMNS = (
    "side", "found", "same at 1 %", "cosine", "same at 0.1 %", "cosine", "same below {0}", "others below {0}",
)  # fmt: skip


def drawn_pairs(prepared: PreparedPhotos, people: int, seed: int) -> list[tuple[int, int]]:
    """Draw people, and of each of them two photos that are not the same photo twice."""
    photos = defaultdict(list)
    for index, name in enumerate(prepared.identities):
        if name:
            photos[name].append(index)
    twins = {frozenset(pair) for pair in prepared.near_duplicates()}
    pairs = {
        name: [pair for pair in combinations(members, 2) if frozenset(pair) not in twins]
        for name, members in sorted(photos.items())
    }
    names = [name for name in pairs if pairs[name]]
    rng = np.random.default_rng(seed)
    chosen = [names[i] for i in rng.permutation(len(names))[:people]]
    return [pairs[name][rng.integers(len(pairs[name]))] for name in chosen]


def largest_face(image: Photo, networks: FaceNetworks) -> AlignedFace | None:
    """The largest face that is found as `rpf enhance` finds faces, if any."""
    faces = find_faces(image, networks.detector)
    return AlignedFace.found(image, faces[0]) if faces else None


def reference(image: Photo, networks: FaceNetworks) -> AlignedFace | None:
    """The largest face that is found as `rpf enhance` finds those of references, if any."""
    faces = networks.detector.detect(image)
    return AlignedFace.found(image, faces[0]) if faces else None


def reduced(image: Photo, face_side: float, side: int) -> Photo:
    """The photo at a size where its face has `side` pixels; never enlarged."""
    factor = min(1.0, side / face_side)
    size = [max(1, round(length * factor)) for length in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BICUBIC))


def row(
    side: int, own: NDArray[np.float64], other: NDArray[np.float64], found: float | None, limit: float
) -> list[str]:
    """One line of the table, from the cosines of the pairs of one person and of two; a dash for what there is not."""
    cells = [str(side), "-" if found is None else f"{found:.1%}"]
    for rate in (0.01, 0.001):
        if len(other):
            threshold = np.quantile(other, 1 - rate)
            cells += [share(own > threshold), f"{threshold:.3f}"]
        else:
            cells += ["-", "-"]
    return [*cells, share(own < limit), share(other < limit)]


def share(true: NDArray[np.bool_]) -> str:
    """The share of true ones in percent, or a dash."""
    return f"{true.mean():.1%}" if len(true) else "-"


def main(args: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a prepared folder of photos of known people")
    source.add_argument("--folders", help="a folder with a folder of photos for each person")
    parser.add_argument(
        "--face-models", default="auto", help="insightface or dlib; left out as in `rpf enhance`"
    )
    parser.add_argument("--pack", help="insightface pack; left out as in `rpf enhance`")
    parser.add_argument("--people", type=int, default=200, help="drawn from the prepared folder")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(args)
    networks = FaceNetworks(known.pack, models=known.face_models)
    limit = limits_of(networks).other
    # of every photo the image, its person and its own name; probes are reduced, the gallery is not
    gallery: list[tuple[Photo, str, str]]
    if known.data:
        prepared = PreparedPhotos(known.data)
        pairs = drawn_pairs(prepared, known.people, known.seed)
        probes, gallery = (
            [(prepared.photo(i).image, prepared.identities[i], prepared.ids[i]) for i in column]
            for column in zip(*pairs, strict=True)
        )
    else:
        files = list_photos(known.folders, Path(known.folders) / "none")
        probes = gallery = [(read_photo(path), path.parent.name, file) for file, path in files.items()]
    references = [reference(image, networks) for image, _, _ in gallery]
    full = [(face, *entry[1:]) for face, entry in zip(references, gallery, strict=True) if face is not None]
    against = np.stack([networks.features(face).double().numpy() for face, _, _ in full])
    people, names = (np.array(column) for column in list(zip(*full, strict=True))[1:])
    # of full size, so that tiles of its enlargement need not be searched
    own_sides = [face.side if (face := reference(image, networks)) else 0.0 for image, _, _ in probes]
    pack = f"{networks.models.kind}'s {networks.detector.pack} ({networks.recogniser.file})"
    print(f"{datetime.date.today()}, {pack}, {len(set(people))} people, seed {known.seed}\n")
    print("| " + " | ".join(COLUMNS).format(limit) + " |\n|" + "---:|" * len(COLUMNS), flush=True)
    for side in known.sides:
        own, other, found, tried = [np.zeros(0)], [np.zeros(0)], 0, 0
        for (image, person, name), own_side in zip(probes, own_sides, strict=True):
            if own_side < side:
                continue  # it cannot be reduced to that side
            tried += 1
            face = largest_face(reduced(image, own_side, side), networks)
            if face is not None:
                found += 1
                cosines = against @ networks.features(face).double().numpy()
                own.append(cosines[(people == person) & (names != name)])
                other.append(cosines[people != person])
        cells = row(side, np.concatenate(own), np.concatenate(other), found / tried if tried else None, limit)
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
