"""Photos in memory as the datasets take them, and pairs of a prepared folder."""

from pathlib import Path
from typing import Any

from rpf_lightning.data import ReferencePairsDataModule
from rpf_lightning.data.batches import Photo, ReferenceBatch
from rpf_lightning.data.dataset import PairsDataset
from rpf_lightning.data.pairing import Pair, grey_thumbnail, near_duplicates


class PhotoList:
    """A `PhotoSource` that counts how often its photos are read."""

    sha256 = "made up"

    def __init__(self, photos: list[Photo]) -> None:
        self.photos, self.reads = photos, 0
        self.ids = [photo.id for photo in photos]
        self.identities = [photo.identity for photo in photos]
        self.landmarks = [None if p.landmarks is None else p.landmarks / len(p.image) for p in photos]

    def __len__(self) -> int:
        return len(self.photos)

    def photo(self, index: int) -> Photo:
        self.reads += 1
        return self.photos[index]

    def near_duplicates(self) -> list[tuple[int, int]]:
        return near_duplicates(self.landmarks, [grey_thumbnail(photo.image) for photo in self.photos])


def make_sample(gt: Photo, reference: Photo, **kwargs: Any) -> ReferenceBatch:
    """The sample of one pair."""
    return PairsDataset(PhotoList([gt, reference]), [Pair(0, 1, 0.0)], **kwargs)[0]


def data(prepared: Path, **kwargs: Any) -> ReferencePairsDataModule:
    """Pairs of the folder, as a trainer would set them up."""
    given = {"lr_size": 8, "size": 64, "side": 16, "val_fraction": 0.34, "batch_size": 3, **kwargs}
    module = ReferencePairsDataModule(str(prepared), **given)
    module.prepare_data()
    module.setup("fit")
    return module
