"""ArcFace as a frozen, differentiable torch module, converted from an insightface model pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rpf_lightning.faces.weights import DEFAULT_PACK, insightface_pack, whole
from rpf_lightning.model.resize import full_precision, resample_matrix

if TYPE_CHECKING:
    import onnx

SIDE = 112
# Where insightface's five-point template of 112 pixels lies in an FFHQ/CelebA-HQ-aligned image, as fractions.
BOX_X = (0.1265, 0.8754)
BOX_Y = (0.1195, 0.8684)


def crop_face(image: Tensor) -> Tensor:
    """Cut ArcFace's box out of aligned faces, antialiased and differentiable, without a detector.

    Args:
        image: (B, 3, S, S), FFHQ/CelebA-HQ-aligned.

    Returns:
        (B, 3, 112, 112) in fp32.
    """
    side = image.shape[-1]
    with full_precision(image.device):
        rows = resample_matrix(side, SIDE, *BOX_Y).float().to(image.device)
        columns = resample_matrix(side, SIDE, *BOX_X).float().to(image.device)
        return rows @ image.float() @ columns.T


class ArcFace(nn.Module):
    """Raw ArcFace features of aligned faces; gradients flow to the image, the weights stay frozen.

    Args:
        pack: Name of an insightface pack; None as in `insightface_pack`. Licence of insightface's models:
            non-commercial research.

    Raises:
        FileNotFoundError: If the pack, or a recognition network in it, is missing.
    """

    def __init__(self, pack: str | None = None) -> None:
        super().__init__()
        from onnx2torch import convert  # imported here: it is slow to import

        directory = insightface_pack(pack)
        self.pack = directory.name
        file, network = _recognition_network(directory)
        self.normalise = not _normalises_inside(network)
        with whole(file):
            self.network = convert(network).eval().requires_grad_(False)
        self.file = file.name

    def train(self, mode: bool = True) -> ArcFace:
        """Stay in eval mode: batch norm must use its stored statistics."""
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """Compute features.

        Args:
            image: (B, 3, S, S), RGB in [0, 1], aligned as FFHQ and CelebA-HQ are.

        Returns:
            (B, D) raw features, not of unit length.
        """
        return self.features(crop_face(image))

    def features(self, face: Tensor) -> Tensor:
        """Compute features of faces that `crop_face` has cut out.

        Args:
            face: (B, 3, 112, 112), RGB in [0, 1].

        Returns:
            (B, D) raw features, not of unit length.
        """
        with full_precision(face.device):
            face = face.float() * 255
            if self.normalise:
                face = (face - 127.5) / 127.5
            return self.network(face).flatten(1)


def _recognition_network(directory: Path) -> tuple[Path, onnx.ModelProto]:
    import onnx

    for file in sorted(directory.glob("*.onnx")):
        with whole(file):
            network = onnx.load(file)
            dimensions = network.graph.input[0].type.tensor_type.shape.dim
        if [d.dim_value for d in dimensions][1:] == [3, SIDE, SIDE] and len(network.graph.output) == 1:
            return file, network
    raise FileNotFoundError(
        f"{directory} holds no ONNX file that takes (B, 3, {SIDE}, {SIDE}); take another pack, such as {DEFAULT_PACK}"
    )


def _normalises_inside(network: onnx.ModelProto) -> bool:
    # insightface's convention: the graph begins with its own subtraction and multiplication, or it does not
    first = {node.op_type for node in network.graph.node[:8]}
    return {"Sub", "Mul"} <= first
