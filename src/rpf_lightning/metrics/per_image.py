"""The metrics as torchmetrics classes: the mean over all images, however they came in batches and processes.

They share one vocabulary, so that each takes what it asks for::

    metrics = MetricCollection({"psnr": PSNR(), "psnr_face": PSNRFace(), "isc": ISC()}, prefix="val/")
    metrics.update(output=output, gt=gt, mask=mask, lr=lr, reference=reference)
    metrics.compute()  # {"val/isc": ..., "val/psnr": ..., "val/psnr_face": ...}

``output`` (B, 3, S, S) is clamped to [0, 1]; ``gt`` (B, 3, S, S), ``reference`` (B, 3, S, S) and ``lr``
(B, 3, L, L) lie in [0, 1]; ``mask`` (B, 1, S, S) is 1 on the face. `PerImageMetric.measure` gives the values of the
single images, as `rpf evaluate` needs them; they are those of the functions in `rpf_lightning.metrics`.

A metric of one's own is a `PerImageMetric` with `per_image`, an entry of ``metrics`` in
`rpf_lightning.evaluation.evaluate` or of a `MetricCollection`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import BoundArguments, signature
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rpf_lightning.faces.arcface import ArcFace
from rpf_lightning.metrics.face_networks import Identity, Seen, isc, landmark_distance
from rpf_lightning.metrics.image import detail_error, lr_consistency, psnr, psnr_face, ssim
from rpf_lightning.metrics.lpips_network import lpips, lpips_network
from rpf_lightning.model.resize import at_least_fp32, full_precision

if TYPE_CHECKING:
    from rpf_lightning.faces.landmarks import LandmarkModel


class PerImageMetric(Metric):
    """Mean of one value per image.

    Subclasses define `per_image`: from the output and what else of the vocabulary it names to (B,). Images without a
    value (NaN: no face in the mask, no face found) are left out and counted. An output that is not finite is no such
    image: it makes the mean NaN.

    A sampler that repeats photos to give all processes equally many repeats them here as well. `kwargs` of this and
    all others are arguments of `torchmetrics.Metric`.

    Attributes:
        label: Name in tables and figures; the class' where it is empty.
        unit: Behind the values.
        digits: Digits after the point.
        higher_is_better: Whether a higher value is the better one; None: none is better.
        total: Sum of the values, float64 (float32 on MPS, which has no other).
        count: Images with a value.
        missing: Images without one. Like `total` and `count` of this process; inside `with sync_context()` of all.
    """

    full_state_update = False
    is_differentiable = False
    label = ""
    unit = ""
    digits = 4
    higher_is_better: bool | None = None
    per_image: Callable[..., Tensor]
    total: Tensor
    count: Tensor
    missing: Tensor
    nan: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("missing", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # MetricCollection takes metrics whose states are equal after the first batch for one and the same, as two
        # are that found no face in it, and updates only one of them from then on. NaN equals nothing.
        self.add_state("nan", torch.full((), torch.nan), dist_reduce_fx="sum")

    def describe(self) -> dict[str, Any]:
        """Return how values are printed: JSON types."""
        label = self.label or type(self).__name__
        return {
            "label": label, "unit": self.unit, "digits": self.digits, "higher_is_better": self.higher_is_better,
        }  # fmt: skip

    def measure(self, *args: Any, **kwargs: Any) -> Tensor:
        """Values (B,) of a batch, computed without autocast in at least fp32.

        The arguments are those of `per_image`; what it does not name is left out.

        Raises:
            TypeError: If an argument is missing.
            ValueError: If it gives another number of values.
        """
        return self._measure(self._bound(args, kwargs))

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch; arguments as in `measure`."""
        bound = self._bound(args, kwargs)
        broken = ~bound.args[0].isfinite().flatten(1).all(1).to(self.device)
        values = self._measure(bound).to(self.device, self.total.dtype)
        counted = values.isfinite() | broken
        # not in place: states that were reset inside of inference mode could not be changed outside of it
        self.total = self.total + values.where(counted, 0).masked_fill(broken, torch.nan).sum()
        self.count = self.count + counted.sum()
        self.missing = self.missing + (~counted).sum()

    def compute(self) -> Tensor:
        """Mean over the images with a value; NaN without any."""
        return self.total / self.count

    def _bound(self, args: Sequence[Any], kwargs: dict[str, Any]) -> BoundArguments:
        known = signature(self.per_image)
        return known.bind(*args, **{name: kwargs[name] for name in kwargs if name in known.parameters})

    def _measure(self, bound: BoundArguments) -> Tensor:
        output = bound.args[0]
        with torch.no_grad(), full_precision(output.device):
            values = self.per_image(*map(_at_least_fp32, bound.args), **bound.kwargs)
        if values.shape != output.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}: expected {len(output)} values, one per image, got {tuple(values.shape)}"
            )
        return values

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the states to another device, but keep their precision."""
        super()._apply(fn, tuple(self._defaults))
        for name, default in self._defaults.items():
            assert isinstance(default, Tensor)
            dtype = default.dtype
            if dtype == torch.float64 and self.device.type == "mps":
                dtype = torch.float32
            self._defaults[name] = default.to(self.device, dtype)
            setattr(self, name, getattr(self, name).to(self.device, dtype))
        return self


class PSNR(PerImageMetric):
    """PSNR, see `psnr`; the mean of the images' values, not of their errors."""

    label, unit, digits, higher_is_better = "PSNR", "dB", 2, True
    per_image = staticmethod(psnr)


class PSNRFace(PerImageMetric):
    """PSNR inside the face, see `psnr_face`."""

    label, unit, digits, higher_is_better = "PSNR face", "dB", 2, True
    per_image = staticmethod(psnr_face)


class SSIM(PerImageMetric):
    """Structural similarity, see `ssim`."""

    label, higher_is_better = "SSIM", True
    per_image = staticmethod(ssim)


class LRConsistency(PerImageMetric):
    """PSNR of the reduced output against the LR, see `lr_consistency`."""

    label, unit, digits, higher_is_better = "LR consistency", "dB", 2, True
    per_image = staticmethod(lr_consistency)


class DetailError(PerImageMetric):
    """Mean absolute error of the details inside the face, see `detail_error`; the LR gives its side only."""

    label, digits, higher_is_better = "detail error", 5, False

    def per_image(self, output: Tensor, gt: Tensor, mask: Tensor, lr: Tensor) -> Tensor:
        """See `detail_error`."""
        return detail_error(output, gt, mask, lr.shape[-1])


class NetworkMetric(PerImageMetric):
    """A metric that asks a network.

    The network moves along with the metric, but it is none of its submodules: it is in no `state_dict`, no
    checkpoint and no `parameters()`. Two metrics may share one.

    Args:
        network: What is asked; a module is put into eval mode.
        kwargs: See `PerImageMetric`.
    """

    def __init__(self, network: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(network, nn.Module):
            network.eval()
        self._networks = (network,)  # torch takes no module out of a tuple for a submodule

    @property
    def network(self) -> Any:
        """What is asked."""
        return self._networks[0]

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the network as well."""
        if isinstance(self.network, nn.Module):
            self.network._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, exclude_state)


class LPIPS(NetworkMetric):
    """LPIPS, see `lpips`.

    Args:
        net: ``"alex"``, as everybody reports it, or ``"vgg"``.
        weights: A file of the network's weights; None searches. Errors are those of `lpips_network`.
        kwargs: See `PerImageMetric`.
    """

    label, higher_is_better = "LPIPS", False

    def __init__(
        self, net: Literal["alex", "vgg"] = "alex", weights: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(lpips_network(net, weights), **kwargs)

    def per_image(self, output: Tensor, gt: Tensor) -> Tensor:
        """See `lpips`."""
        return lpips(output, gt, self.network)


class ISC(NetworkMetric):
    """Identity similarity of output and GT (P IV-C), see `isc`.

    The paper names neither its ArcFace nor its crop: compare values of one network only.

    Args:
        identity: Gives features of faces; None takes `ArcFace`, whose models are for non-commercial research.
        kwargs: See `PerImageMetric`.

    Raises:
        FileNotFoundError: If it is None and no insightface pack is found.
    """

    label = "ISC"
    higher_is_better: bool | None = True

    def __init__(self, identity: Identity | None = None, **kwargs: Any) -> None:
        super().__init__(ArcFace() if identity is None else identity, **kwargs)

    def per_image(self, output: Tensor, gt: Tensor, seen: Seen | None = None) -> Tensor:
        """See `isc`."""
        return isc(output, gt, self.network, seen)


class ReferenceISC(ISC):
    """Identity similarity of output and reference, see `isc`: how much of the reference's person is there.

    Data sets give the reference masked. Of another person's reference it says what the output copies from it. Methods
    see different references, so no value is the better one. The `identity` of `ISC` may be that one's ``network``.
    """

    label, higher_is_better = "ISC to the reference", None

    def per_image(self, output: Tensor, reference: Tensor, seen: Seen | None = None) -> Tensor:
        """See `isc`."""
        return isc(output, reference, self.network, seen)


class LandmarkDistance(NetworkMetric):
    """Mean distance of the 68 landmarks in percent of the side, see `landmark_distance`.

    It stands beside ISC and LPIPS, which a copy of the reference does well on. Read it with `missing`, the images
    where no face was found.

    Args:
        model: Such as `rpf_lightning.faces.landmarks.landmark_model` gives.
        kwargs: Arguments of `torchmetrics.Metric`.
    """

    label, unit, digits, higher_is_better = "landmark distance", "%", 2, False

    def __init__(self, model: LandmarkModel, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)

    def per_image(self, output: Tensor, gt: Tensor, seen: Seen | None = None) -> Tensor:
        """See `landmark_distance`."""
        return landmark_distance(output, gt, self.network, seen)


def _at_least_fp32(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return at_least_fp32(argument)
    return argument
