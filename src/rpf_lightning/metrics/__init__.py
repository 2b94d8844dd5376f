"""Metrics of super-resolved faces.

The functions give one value per image; the torchmetrics classes average them over all images of a run, also over
several processes.

DISTS and FID are not here. torchmetrics has both, but they download networks on their own at first use: DISTS
torchvision's VGG16, FID an Inception network by way of a further package, torch-fidelity. This package fetches
weights of known SHA-256 only. FID also says little about the few hundred photos that a validation set holds.
"""

from rpf_lightning.metrics.face_networks import isc, landmark_distance
from rpf_lightning.metrics.flow import EndPointError, FlowCorrelation, end_point_error, flow_correlation
from rpf_lightning.metrics.image import detail_error, lr_consistency, psnr, psnr_face, ssim
from rpf_lightning.metrics.lpips_network import lpips, lpips_network
from rpf_lightning.metrics.per_image import (
    ISC,
    LPIPS,
    PSNR,
    SSIM,
    DetailError,
    LandmarkDistance,
    LRConsistency,
    NetworkMetric,
    PerImageMetric,
    PSNRFace,
    ReferenceISC,
)

__all__ = [
    "ISC",
    "LPIPS",
    "PSNR",
    "SSIM",
    "DetailError",
    "EndPointError",
    "FlowCorrelation",
    "LRConsistency",
    "LandmarkDistance",
    "NetworkMetric",
    "PSNRFace",
    "PerImageMetric",
    "ReferenceISC",
    "detail_error",
    "end_point_error",
    "flow_correlation",
    "isc",
    "landmark_distance",
    "lpips",
    "lpips_network",
    "lr_consistency",
    "psnr",
    "psnr_face",
    "ssim",
]
