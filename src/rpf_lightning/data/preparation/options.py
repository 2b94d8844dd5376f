"""How photos are annotated and paired; what all preparing commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rpf_lightning.faces.labels import label_names
from rpf_lightning.faces.landmarks import check_landmark_spec

MaskModel = Literal["bisenet", "hull", "template"]

# what the result does not depend on
RUNNING = ("batch_size", "num_workers", "accelerator", "devices", "num_nodes")


@dataclass(frozen=True)
class Options:
    """How photos are annotated and paired.

    Attributes:
        landmarks: CSV file `file,x0,y0,...,x67,y67` in pixels of the upright photo.
        labels: Folder of parsing maps `<name of the photo>.png`.
        label_scheme: Order of their values, "bisenet" or "celebamask-hq".
        landmark_model: See `rpf_lightning.faces.landmarks.landmark_model`, for photos that `landmarks` does not list.
        mask_model: "bisenet", "hull" (from the landmarks) or "template", for photos without a parsing map.
        align: "always", "never", or "auto": a folder where most photos are not square is no folder of aligned
            faces, and all its photos are aligned.
        side: Side of faces that are aligned here, in pixels.
        pack: insightface pack of the detector and the embeddings; None: buffalo_l or the only one.
        embeddings: Compute ArcFace embeddings; None: where a pack is found.
        references: References per GT.
        batch_size: Photos per step.
        num_workers: Processes that read photos; None: one per core, at most 8.
        accelerator: As Lightning's Trainer takes it, like the two below.
        devices: Number of devices.
        num_nodes: Number of machines.

    Raises:
        ValueError: If the values do not fit together.
    """

    landmarks: str | None = None
    labels: str | None = None
    label_scheme: str | None = None
    landmark_model: str = "face-alignment"
    mask_model: MaskModel = "bisenet"
    align: Literal["auto", "always", "never"] = "auto"
    side: int = 512
    pack: str | None = None
    embeddings: bool | None = None
    references: int = 1
    batch_size: int = 8
    num_workers: int | None = None
    accelerator: str = "auto"
    devices: str | int = "auto"
    num_nodes: int = 1

    def __post_init__(self) -> None:
        """Check what would fail only after hours."""
        if (self.labels is None) != (self.label_scheme is None):
            raise ValueError("labels and label_scheme go together: the order of the values is never guessed")
        if self.label_scheme is not None:
            label_names(self.label_scheme)
        if self.mask_model not in ("bisenet", "hull", "template"):
            raise ValueError(f"mask_model: expected bisenet, hull or template, got {self.mask_model!r}")
        if self.align not in ("auto", "always", "never"):
            raise ValueError(f"align: expected auto, always or never, got {self.align!r}")
        try:
            check_landmark_spec(self.landmark_model)
        except ValueError as error:
            raise ValueError(f"landmark_model: {error}") from error
        for name in ("references", "batch_size", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def deciding(self) -> dict[str, Any]:
        """Return the options that the result depends on."""
        return {name: value for name, value in asdict(self).items() if name not in RUNNING}
