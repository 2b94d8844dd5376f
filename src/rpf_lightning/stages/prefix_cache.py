"""x^(n) of every training sample on disk, and its flow: what the frozen blocks before block n make of it.

While block n is trained it does not change, and computing it anew costs as much as the blocks before block n: at
block 6 of the paper's network 638 GMAC in a warping step of about 1,400. It is rounded to 8 bit, the flow (where block
n starts from that of the block before) to half precision, also in the step that computes them, so that a step does not
depend on what was in the cache.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn

from rpf_lightning.data.pairs_datamodule import PairsDataModule
from rpf_lightning.data.preparation.prepared_folder import new_array
from rpf_lightning.files import locked
from rpf_lightning.model import RPFModel
from rpf_lightning.model.storage import weights_hash

FORMAT = 3


class PrefixCache:
    """Rows of 8 bit, with the flow beside them, in a memory-mapped file, filled as the samples are met.

    The file is made where it is missing; other caches in the folder are deleted.
    Each row has a checksum: it counts only when that fits, so that a kill or a power cut at any moment costs that row
    and no more. Processes fill their own rows.

    Args:
        folder: Folder of the caches; made if it is missing.
        block: n.
        side: Side of x^(n), S/2.
        rows: Number of samples, with their mirror images where these are shown.
        key: Hash of everything that x^(n) depends on.
        with_flow: Whether a row also holds the flow.

    Raises:
        OSError: If the disk is too full.
    """

    def __init__(
        self, folder: Path, block: int, side: int, rows: int, key: str, with_flow: bool = False
    ) -> None:
        flow = [("flow", "<f2", (2, side, side))] if with_flow else []
        self.dtype = np.dtype([("checksum", "<u4"), ("x", "u1", (3, side, side)), *flow])
        name = hashlib.sha256(f"{FORMAT} {rows} {self.dtype} {key}".encode()).hexdigest()[:16]
        self.path = folder / f"x{block}-{name}.npy"
        part = self.path.with_suffix(".part")
        with locked(folder / ".lock"):
            for old in folder.glob("x*"):
                if old != self.path:
                    old.unlink(missing_ok=True)  # of another block, data or weights
            if not self.path.is_file():
                size = rows * self.dtype.itemsize / 1e6
                rank_zero_info(f"x^(n) of {rows:,} samples: {size:,.1f} MB in {self.path}")
                try:
                    new_array(part, (rows,), self.dtype)
                    part.replace(self.path)
                finally:
                    part.unlink(missing_ok=True)
        self._rows: NDArray[Any] = np.load(self.path, mmap_mode="r+")

    def get(
        self,
        places: Sequence[int],
        compute: Callable[[], tuple[Tensor, Tensor | None]],
        device: torch.device,
    ) -> tuple[Tensor, Tensor | None]:
        """Read x^(n) and the flow of a batch, or compute and keep them.

        Args:
            places: Rows of the B samples.
            compute: Gives x^(n), (B, 3, S/2, S/2) in [0, 1], and the flow, (B, 2, S/2, S/2); called where a row is
                missing.
            device: Where the result goes.

        Returns:
            (B, 3, S/2, S/2) float32, rounded to 8 bit; the flow, rounded to half precision, or None.
        """
        rows = np.array(self._rows[list(places)])
        if any(row["checksum"] != _checksum(row) for row in rows):
            x, flow = compute()
            rows["x"] = (x.float() * 255).round().byte().cpu().numpy()
            if flow is not None:
                rows["flow"] = flow.half().cpu().numpy()
            for place, row in zip(places, rows, strict=True):
                row["checksum"] = _checksum(row)
                self._rows[place] = row

        def given(field: str) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(rows[field])).to(device, non_blocking=True).float()

        return given("x") / 255, given("flow") if "flow" in (self.dtype.names or ()) else None


def open_prefix_cache(
    folder: Path, model: RPFModel, block: int, data: object, precision: str
) -> PrefixCache | None:
    """Open the cache of a fit, or say why there is none.

    Args:
        folder: Folder of the caches.
        model: The model; its blocks before block n are part of the key.
        block: n.
        data: The fit's datamodule.
        precision: What the frozen blocks run in.
    """
    if not isinstance(data, PairsDataModule):
        rank_zero_info(
            "x^(n) is computed in every step: it is kept for the package's datamodules of pairs only"
        )
        return None
    if not hasattr(data.train_dataset, "fingerprint"):
        rank_zero_info(
            f"x^(n) is computed in every step: {type(data.train_dataset).__name__} has no fingerprint()"
        )
        return None
    if (key := data.training_key()) is None:
        what = "references are" if data.degradation == "bicubic" else f"the {data.degradation} LR is"
        rank_zero_info(f"x^(n) is computed in every step: {what} random")
        return None
    count = len(data.train_dataset)  # type: ignore[arg-type]
    frozen = weights_hash(nn.ModuleList(model.blocks[: block - 1]).state_dict())
    # the batch size may change the last bit of a sum, and so the rounding
    key = f"{key} {frozen} {model.config} {precision} {data.batch_size}"
    side = model.sides[block - 2]
    rows = 2 * count if data.flip else count
    try:
        return PrefixCache(folder, block, side, rows, key, with_flow=model.config.chains_flow)
    except OSError as error:
        rank_zero_warn(f"{folder}: {error}; x^(n) is not kept, but computed in every step")
        return None


def _checksum(row: Any) -> int:
    """Of what follows the row's own."""
    return zlib.crc32(row.tobytes()[4:]) | 1  # 0 is a row that was never written
