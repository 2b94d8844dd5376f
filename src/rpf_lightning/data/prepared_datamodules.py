"""LightningDataModules of prepared photos: reference pairs, CelebA-HQ, and faces without references."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from rpf_lightning.data.dataset import FacesDataset, PairsDataset, ReferenceDataset
from rpf_lightning.data.level_cache import CachedPairs, LevelCache
from rpf_lightning.data.pairing import Pair
from rpf_lightning.data.pairs_datamodule import LevelDataModule, PairsDataModule, SplitPairs, evenly
from rpf_lightning.data.preparation import Options, check_celeba_hq, prepare_celeba_hq
from rpf_lightning.data.preparation.options import MaskModel
from rpf_lightning.data.preparation.prepared_folder import SUMMARY, read_summary
from rpf_lightning.data.prepared_photos import PARTS, Parts, PreparedPhotos
from rpf_lightning.errors import CLOSED
from rpf_lightning.files import locked


@lru_cache(maxsize=2)
def _opened(root: str, images: str | None, sha256: str) -> PreparedPhotos:
    """Open a folder once: a curriculum builds a datamodule for each of its fits, and the photos stay the same."""
    return PreparedPhotos(root, images)


class PreparedDataModule(LevelDataModule):
    """What reads a prepared folder, through a `LevelCache` up to `cache_side` and from the photos above it.

    Args:
        root: Folder that `rpf prepare` has written.
        split: Beginning of the names of the pairs' files: "" for `pairs_train` and `pairs_val` or for `pairs_all`,
            "paper" or "disjoint" for CelebA-HQ's.
        images: Where the photos lie now; None: where they were when the folder was prepared.
        cache_side: Largest side that is cached; 0 switches the cache off.
        cache_dir: Where the cache lies; None: `cache/` in `root`.
        kwargs: Arguments of `LevelDataModule`, and of `PairsDataModule` where it gives pairs.
    """

    def __init__(
        self,
        root: str,
        split: str = "",
        images: str | None = None,
        cache_side: int = 256,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.split, self.images = root, split, images
        self.cache_side, self.cache_dir = cache_side, cache_dir

    @abstractmethod
    def _cached(self) -> dict[str, Any]:
        """Which photos of training and validation are cached, and how: arguments of `LevelCache`."""

    def cache(self) -> LevelCache | None:
        """Return the cache that serves this level, built or not; None where none does."""
        sides = self._cached_sides()
        if not sides:
            return None
        lr_size, size = self._side_of("lr_size"), self._side_of("size")
        return LevelCache(
            self.prepared(), lr_size=lr_size, size=size, sides=sides, folder=self.cache_dir, **self._cached()
        )

    def prepare_data(self) -> None:
        """Make the cache, in one process; says how much space it takes, or that its folder cannot be written."""
        if (cache := self.cache()) is None:
            return
        try:
            cache.build(self.num_workers, rank_zero_info)
        except OSError as error:
            if error.errno not in CLOSED:
                raise
            rank_zero_warn(
                f"{error}: no cache of levels is made; cache_dir can name a folder that can be written"
            )

    def built_cache(self) -> LevelCache | None:
        """Return the cache if it is there; where it should be and is not, warn that photos are decoded."""
        cache = self.cache()
        if cache is None or cache.path.is_dir():
            return cache
        rank_zero_warn(
            f"{cache.path}: the cache of levels is not there (prepare_data makes it); photos are decoded in every step"
        )
        return None

    def prepared(self) -> PreparedPhotos:
        """Return the photos."""
        return _opened(self.root, self.images, read_summary(Path(self.root))["sha256"])

    def parts(self) -> Parts:
        """Return who is in which part."""
        return Parts(self.prepared(), self.split, self.val_fraction, self.seed)

    def _cached_sides(self) -> list[int]:
        """Sides of the cache; empty where this level is not cached.

        All levels are cached at once: reading the photos costs more than all the rest.
        """
        level, sides = self._level(), []
        side = 2 * level["lr_size"]
        while side <= min(self.cache_side, level["size"]):
            sides.append(side)
            side *= 2
        if level["side"] not in sides:
            return []
        source = self._source_side()
        return sides if source is None else sorted({*sides, source})


class ReferencePairsDataModule(PreparedDataModule, PairsDataModule):
    """Reference pairs of a folder that `rpf prepare` has written; arguments as in `PreparedDataModule`.

    Raises:
        FileNotFoundError: When it is used, if `root` is no prepared folder or has no such split.
    """

    def find_pairs(self) -> SplitPairs:
        """Return the pairs of the files."""
        parts, photos = self.parts(), self.prepared()
        pairs = parts.pairs
        people = {photos.identities[pair.gt] for pair in pairs["val"]}
        others = [place for place, name in enumerate(photos.identities) if name in people]
        return SplitPairs(
            photos, pairs["train"], pairs["val"], pairs["test"], others, photos.near_duplicates()
        )

    def _cached(self) -> dict[str, Any]:
        found = self.split_pairs()
        # the test part is read once
        indices = {index for pair in (*found.train, *found.val) for index in pair[:2]}
        if self.drawing.random:
            indices |= set(found.trained)
        return {"indices": sorted(indices), "mask_reference": self.mask_reference}

    def _dataset(self, pairs: Sequence[Pair], level: Mapping[str, Any], **kwargs: Any) -> ReferenceDataset:
        cache = self.built_cache()
        if cache is not None and all(index in cache.row_of for pair in pairs for index in pair[:2]):
            return CachedPairs(
                cache, pairs, level["side"], self._source_side(), flow_rest=self.flow_rest, **kwargs
            )
        return self._from_photos(pairs, level, **kwargs)


class CelebAHQDataModule(ReferencePairsDataModule):
    """CelebA-HQ from the raw release: `prepare_data` pairs it where that was not done.

    Args:
        root: Folder of the release; the prepared files go there as well, unless `prepared` says otherwise.
        mapping: `CelebA-HQ-to-CelebA-mapping.txt`.
        identities: `identity_CelebA.txt`.
        split: "paper" or "disjoint"; the latter shares no person between its parts and needs `partition`.
        partition: `list_eval_partition.txt`.
        images: Folder with the photos; None: `CelebA-HQ-img` or `images` in `root`, or `root` itself.
        prepared: Prepared folder; None is `root`.
        landmarks: See `Options`, like all up to `pack`.
        labels: Folder of parsing maps.
        label_scheme: Order of their values.
        landmark_model: For photos without landmarks.
        mask_model: For photos without a parsing map.
        pack: insightface pack of the embeddings.
        embeddings: Whether to compute embeddings.
        cache_side: See `PreparedDataModule`.
        cache_dir: See `PreparedDataModule`.
        kwargs: Arguments of `PairsDataModule` and `LevelDataModule`.

    Raises:
        ValueError: If `split` is another, or is "disjoint" without `partition`.
    """

    def __init__(
        self,
        root: str,
        mapping: str,
        identities: str,
        split: Literal["paper", "disjoint"] = "paper",
        partition: str | None = None,
        images: str | None = None,
        prepared: str | None = None,
        landmarks: str | None = None,
        labels: str | None = None,
        label_scheme: str | None = None,
        landmark_model: str = "face-alignment",
        mask_model: MaskModel = "bisenet",
        pack: str | None = None,
        embeddings: bool | None = False,
        cache_side: int = 256,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in ("paper", "disjoint"):
            raise ValueError(f"split: expected paper or disjoint, got {split!r}")
        if split == "disjoint" and partition is None:
            raise ValueError("split: disjoint needs partition, CelebA's list_eval_partition.txt")
        super().__init__(prepared or root, split, images or _images_in(root), cache_side, cache_dir, **kwargs)
        self.mapping, self.identities, self.partition = mapping, identities, partition
        self.options = Options(
            landmarks=landmarks, labels=labels, label_scheme=label_scheme, landmark_model=landmark_model,
            mask_model=mask_model, pack=pack, embeddings=embeddings, align="never", devices=1,
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Prepare the folder where `prepare.json` is missing, in one process, and make the cache."""
        summary = Path(self.root) / SUMMARY
        if not summary.is_file():
            with locked(Path(self.root) / ".prepare.lock"):  # nodes may share the disk
                if not summary.is_file():
                    prepare_celeba_hq(
                        self.images or self.root, self.mapping, self.identities, self.root,
                        partition=self.partition, options=self.options, say=rank_zero_info,
                    )  # fmt: skip
        check_celeba_hq(
            self.root, mapping=self.mapping, identities=self.identities, partition=self.partition,
            landmarks=self.options.landmarks,
        )  # fmt: skip
        super().prepare_data()


class FFHQDataModule(PreparedDataModule):
    """Prepared faces without references, for stage 1: FFHQ, or all photos of any prepared folder.

    Photos of unknown people count as well. Where the folder has pairs, the people of the validation and test
    pairs are left out of training; validation shows the GTs of the validation pairs. Arguments as in
    `PreparedDataModule`.
    """

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets for the level of the trainer's module.

        Raises:
            ValueError: if a side is neither an argument nor an attribute of the module.
        """
        photos, cache, source = self._photos(), self.built_cache(), self._source_side()
        made = PairsDataset(self.prepared(), [], **self._level(), source_side=source)
        read = None if cache is None else CachedPairs(cache, [], self._side_of("side"), source)

        def faces(indices: list[int]) -> FacesDataset:
            if read is not None and set(indices) <= set(read.cache.indices):
                return FacesDataset(read, indices)
            return FacesDataset(made, indices)

        self.train_dataset, self.val_dataset_, self.test_dataset = (faces(photos[part]) for part in PARTS)

    def _photos(self) -> dict[str, list[int]]:
        photos = self.parts().photos
        limits = {"train": self.limit_train, "val": self.limit_val, "test": self.limit_val}
        return {part: evenly(indices, limits[part]) for part, indices in photos.items()}

    def _cached(self) -> dict[str, Any]:
        photos = self._photos()
        return {"indices": sorted({*photos["train"], *photos["val"]}), "references": False}


def _images_in(root: str) -> str:
    """Find the photos of a CelebA-HQ release: its folders' usual names, or the folder itself."""
    for name in ("CelebA-HQ-img", "images"):
        if (Path(root) / name).is_dir():
            return str(Path(root) / name)
    return root
