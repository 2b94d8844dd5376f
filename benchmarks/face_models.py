"""How small may a face be for dlib's detector, beside insightface's? The table of benchmarks/RESULTS.md.

    python benchmarks/face_models.py people --photos 32     # a folder with a folder for each person, one face a photo

Photos are reduced until their largest face has each side, and searched as `rpf enhance` searches them; insightface's
detector in the photo of full size says where the face is. For each side and detector are printed:

- found: the share of photos in which a face lies around the middle of the true five points;
- others: finds elsewhere, in all photos together (a few may be faces);
- distance: of the five points to those of insightface in the full photo, mean, in percent of the side of the aligned
  square;
- s: seconds a search. The last rows are the photos as they are.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from identity_roc import reduced

from rpf_lightning.data.image_files import read_photo
from rpf_lightning.data.pairs_datamodule import evenly
from rpf_lightning.data.preparation.sources import list_photos
from rpf_lightning.enhancing.aligned_faces import AlignedFace, find_faces
from rpf_lightning.faces.face_models import face_models

SIDES = (16, 24, 32, 64)


def main(args: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders")
    parser.add_argument("--photos", type=int, default=32, help="evenly spread")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    known = parser.parse_args(args)
    files = list_photos(known.folders, Path(known.folders) / "none")
    photos = [read_photo(path) for path in evenly(list(files.values()), known.photos)]
    detectors = {kind: face_models(kind).detector for kind in ("insightface", "dlib")}
    finds = [(photo, detectors["insightface"].detect(photo)) for photo in photos]
    truth = [(photo, AlignedFace.found(photo, faces[0])) for photo, faces in finds if faces]
    print(f"{datetime.date.today()}, {len(truth)} photos\n")
    print("| side | detector | found | others | distance | s |\n|---:|---|---:|---:|---:|---:|")
    for side in (*known.sides, None):
        tried = [(photo, face) for photo, face in truth if side is None or face.side >= side]
        small = [photo if side is None else reduced(photo, face.side, side) for photo, face in tried]
        for kind, detector in detectors.items():
            start = time.perf_counter()
            found = [find_faces(photo, detector) for photo in small]
            seconds = (time.perf_counter() - start) / max(1, len(small))
            others, distances = 0, []
            for (photo, true), here, faces in zip(tried, small, found, strict=True):
                assert true.points is not None
                ratio = np.divide(here.shape[1::-1], photo.shape[1::-1])
                points = true.points * ratio
                middle = points.mean(0)
                hits = [
                    face for face in faces if (face.box[:2] < middle).all() and (middle < face.box[2:]).all()
                ]
                others += len(faces) - len(hits)
                if hits:
                    away = np.hypot(*(hits[0].points - points).T).mean()
                    distances.append(100 * away / (true.side * ratio[0]))
            share = f"{len(distances) / len(tried):.0%}" if tried else "-"
            distance = f"{np.mean(distances):.1f} %" if distances else "-"
            cells = [side or "as it is", kind, share, others, distance, f"{seconds:.2f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
