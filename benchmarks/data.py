"""How fast training data come: the level cache against photos, drawn references, the thin-plate warp, the pairing.

    python benchmarks/data.py PREPARED     # a folder that `rpf prepare` has written, photos of 512 or 1024 pixels

Every table compares within one run on one machine. Files are read before the clock starts, so that all of them are in
the page cache: a disk makes the reading of full-size photos slower still.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import measure
import numpy as np
import torch
from lightning import Trainer
from PIL import Image
from scipy.interpolate import RBFInterpolator
from torch.utils.data import DataLoader, Dataset

from rpf_lightning.data.batches import ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset, collate
from rpf_lightning.data.drawn_references import ReferenceOptions, References
from rpf_lightning.data.level_cache import CachedPairs, LevelCache
from rpf_lightning.data.pairing import Pair, near_duplicates, nearest_references
from rpf_lightning.data.prepared_photos import PreparedPhotos
from rpf_lightning.data.thin_plate import SMOOTHING, tps_flow, warp
from rpf_lightning.model import RPFConfig
from rpf_lightning.stages import WarpingStage

LR, BATCH = 16, 8
RECIPE = ReferenceOptions(
    references="all", max_references=3, several_fraction=0.3, wrong_fraction=0.1, absent_fraction=0.05,
    self_fraction=0.1, colour_jitter=0.1, similarity_jitter=0.05,
)  # fmt: skip


class PillowPairs(Dataset[dict[str, torch.Tensor]]):
    """What a plain loader does: both photos and masks at full size, resized by Pillow. It warps nothing.

    Args:
        photos: The photos.
        pairs: Their pairs.
        side: Side of the level.
    """

    def __init__(self, photos: PreparedPhotos, pairs: Sequence[Pair], side: int) -> None:
        self.photos, self.pairs, self.side = photos, pairs, side

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        gt, reference = (self.photos.photo(i) for i in self.pairs[index][:2])
        masked = reference.image * reference.mask[..., None]
        small = {"gt": gt.image, "reference": masked}
        tensors = {
            name: _resized(image, self.side, Image.Resampling.BICUBIC) for name, image in small.items()
        }
        for name, mask in (("gt_mask", gt.mask), ("reference_mask", reference.mask)):
            tensors[name] = _resized(mask * 255, self.side, Image.Resampling.NEAREST)
        tensors["lr"] = _resized(gt.image, LR, Image.Resampling.BICUBIC)
        return tensors


def _resized(image: np.ndarray, side: int, how: Image.Resampling) -> torch.Tensor:
    pixels = np.asarray(Image.fromarray(image).resize((side, side), how))
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def rate(loader: DataLoader, at_least: float) -> float:
    """Samples per second of a loader, over at least so many seconds, after one batch."""
    count, start = 0, None
    while start is None or time.perf_counter() - start < at_least:
        for _ in loader:
            if start is None:
                start = time.perf_counter()
            else:
                count += BATCH
            if time.perf_counter() - start >= at_least:
                break
    return count / (time.perf_counter() - start)


def step_rate(batch: ReferenceBatch, side: int) -> float:
    """Samples per second of the fastest training step at a level: the warping stage's, which has no critic."""
    with tempfile.TemporaryDirectory() as folder:
        scale = side // LR
        network = RPFConfig(LR, scale, channels=32, width=1 / 16)
        stage = WarpingStage(folder, block=scale.bit_length() - 1, network=network)
        steps: list[float] = []
        stage.on_train_batch_start = lambda *_: steps.append(time.perf_counter())  # type: ignore[method-assign]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trainer = Trainer(
            max_epochs=1, accelerator=device, devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(stage, DataLoader([batch] * 12, batch_size=None))
    return len(batch.id) / statistics.median(np.diff(steps[2:]))


def loading(photos: PreparedPhotos, pairs: list[Pair], side: int, at_least: float) -> list[str]:
    """Measure one level: plain reading, our samples from photos, the cache, the training step."""
    size = max(side, photos.photo(0).image.shape[0])
    indices = sorted({index for pair in pairs for index in pair[:2]})
    for index in indices:  # into the page cache
        photos.photo(index)
    level = {"lr_size": LR, "size": size}
    with tempfile.TemporaryDirectory() as folder:
        cache = LevelCache(photos, indices, sides=[side], folder=folder, **level)
        spent = measure.seconds(lambda: cache.build(say=lambda line: None))
        datasets: dict[str, tuple[Dataset, Callable | None]] = {
            "photos read and resized by Pillow, no warp": (PillowPairs(photos, pairs, side), None),
            "`PairsDataset`: photos, r_warp": (
                PairsDataset(photos, pairs, side=side, warped=True, **level),
                collate,
            ),
            "`CachedPairs`: the level cache": (CachedPairs(cache, pairs, side), collate),
            "`CachedPairs`, r_warp": (CachedPairs(cache, pairs, side, warped=True), collate),
        }
        rates = {
            name: rate(DataLoader(data, BATCH, shuffle=True, drop_last=True, collate_fn=how), at_least)
            for name, (data, how) in datasets.items()
        }
        batch = collate([CachedPairs(cache, pairs, side, warped=True)[i] for i in range(BATCH)])
    plain, *_, ours = rates.values()
    rows = [
        [name, f"{value:.{0 if value >= 10 else 1}f}", f"{value / plain:.1f}"]
        for name, value in rates.items()
    ]
    step = step_rate(batch, side)
    rows.append(["warping step, 32 channels, batch 8", f"{step:.2g}", f"loader / step {ours / step:.1f}"])
    return [
        f"S = {side}, photos of {size} pixels, {len(pairs)} pairs, no workers. The cache takes "
        f"{cache.gigabytes / len(indices) * 1e3:.2f} MB and {1e3 * spent / len(indices):.0f} ms a photo to make.",
        "",
        measure.markdown(["", "samples per second", "to Pillow"], rows),
    ]


def drawing(
    photos: PreparedPhotos, pairs: list[Pair], cache_sides: Sequence[int], at_least: float
) -> list[str]:
    """Measure caches up to some sides, and samples from them: the nearest reference, and drawn and changed ones."""
    size, everyone = photos.photo(0).image.shape[0], photos.pairs("all")
    trained = sorted({index for pair in everyone for index in pair[:2]})
    indices = sorted({index for pair in pairs for index in pair[:2]})
    references = References(
        RECIPE, [pair[:2] for pair in pairs], indices, photos.identities, photos.near_duplicates(), 0
    )
    lines, rows = [], []
    for cache_side in sorted({min(side, size) for side in cache_sides}):
        sides = [2 * LR * 2**i for i in range((cache_side // LR).bit_length() - 1)]
        whole = LevelCache(photos, trained, lr_size=LR, size=size, sides=sides)
        with tempfile.TemporaryDirectory() as folder:
            cache = LevelCache(photos, indices, lr_size=LR, size=size, sides=sides, folder=folder)
            spent = measure.seconds(lambda cache=cache: cache.build(say=lambda line: None)) / len(indices)
            lines.append(
                f"`cache_side: {cache_side}`: {whole.gigabytes:.2f} GB for {len(trained):,} photos of {size} pixels, "
                f"{1e3 * spent:.0f} ms a photo to make."
            )
            for side in sides[1:]:
                fixed, drawn = (
                    CachedPairs(cache, pairs, side, references=given) for given in (None, references)
                )
                given = [1e3 * sample_seconds(data, at_least) for data in (fixed, drawn)]
                rows.append([cache_side, side, *(f"{value:.1f}" for value in given)])
    heading = ["cache_side", "S", "nearest, ms a sample", "drawn and changed, ms a sample"]
    return [
        *lines,
        "",
        f"{torch.get_num_threads()} thread(s), no workers, processor time:",
        "",
        measure.markdown(heading, rows),
    ]


def sample_seconds(dataset: CachedPairs, at_least: float) -> float:
    """Processor seconds per sample, over at least so many seconds, after eight samples."""
    count, start = -8, 0.0
    while count <= 0 or time.process_time() - start < at_least:
        if count == 0:
            start = time.process_time()
        dataset[count % len(dataset), count // len(dataset) + 1]
        count += 1
    return (time.process_time() - start) / count


def warping(photos: PreparedPhotos, pairs: list[Pair]) -> list[str]:
    """Measure the thin-plate warp at 512 and its distance from scipy's evaluation inside the face."""
    side, times, errors = 512, [], []
    image = torch.rand(1, 3, side, side)
    points = [(photos.landmarks[pair.gt], photos.landmarks[pair.reference]) for pair in pairs]
    flows = [tps_flow(gt, reference, side) for gt, reference in points]  # warm
    for gt, reference in points:
        start = time.perf_counter()
        flow = tps_flow(gt, reference, side)
        middle = time.perf_counter()
        warp(image, flow)
        times.append((middle - start, time.perf_counter() - middle, time.perf_counter() - start))
    centre = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(centre, centre), -1)
    for pair, (gt, reference), flow in zip(pairs, points, flows, strict=True):
        face = np.asarray(Image.fromarray(photos.photo(pair.gt).mask).resize((side, side), 0)).astype(bool)
        values = 2 * (reference - gt)
        spline = RBFInterpolator(2 * gt - 1, values, kernel="thin_plate_spline", smoothing=SMOOTHING)
        exact = spline(2 * grid[face] - 1) * side / 2
        errors.append(np.abs(flow.permute(1, 2, 0).numpy()[face] - exact).max())
    flow_ms, warp_ms, both_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return [
        f"{len(pairs)} pairs at {side} pixels: flow {flow_ms:.1f} ms, backward warping {warp_ms:.1f} ms, together "
        f"{both_ms:.1f} ms (medians). Largest distance from scipy's `RBFInterpolator` inside the face: median "
        f"{statistics.median(errors):.3f} px, worst {max(errors):.3f} px."
    ]


def pairing(photos: int, people: int) -> list[str]:
    """Measure the pairing and the search for near-duplicates of made-up people."""
    rng = np.random.default_rng(0)
    landmarks = list(rng.uniform(0.2, 0.8, (68, 2)) + rng.normal(0, 0.02, (photos, 68, 2)))
    identities = [str(i) for i in rng.integers(0, people, photos)]
    thumbnails = rng.integers(0, 256, (photos, 32, 32), np.uint8)
    twins = measure.seconds(lambda: near_duplicates(landmarks, thumbnails))
    pairs = measure.seconds(lambda: nearest_references(identities, landmarks))
    return [
        f"{photos:,} photos of {people:,} people: nearest references {pairs:.1f} s, near-duplicates among all photos "
        f"{twins:.1f} s."
    ]


def main(args: list[str] | None = None) -> None:
    """Print Markdown."""
    parser = measure.parser(__doc__)
    parser.add_argument("--split", default="all")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--photos", type=int, default=30_000, help="of the pairing")
    parts = ["loading", "drawing", "warping", "pairing"]
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--cache-sides", type=int, nargs="+", default=[256, 512], help="of drawing")
    parser.add_argument("--seconds", type=float, default=5.0, help="per loader")
    known = parser.parse_args(args)
    photos = PreparedPhotos(known.prepared)
    pairs = photos.pairs(known.split)[: known.pairs]
    print(measure.heading())
    if "loading" in known.only:
        for side in known.sides:
            print("", *loading(photos, pairs, side, known.seconds), sep="\n")
    if "drawing" in known.only:
        print("", *drawing(photos, pairs, known.cache_sides, known.seconds), sep="\n")
    if "warping" in known.only:
        print("", *warping(photos, pairs[:64]), sep="\n")
    if "pairing" in known.only:
        print("", *pairing(known.photos, known.photos // 5), sep="\n")


if __name__ == "__main__":
    main()
