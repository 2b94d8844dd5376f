"""Metrics of super-resolved faces, one value per image."""

from rpf_lightning.metrics.image import (
    detail_error,
    lr_consistency,
    mean_and_count,
    psnr,
    psnr_face,
    ssim,
)

__all__ = ["detail_error", "lr_consistency", "mean_and_count", "psnr", "psnr_face", "ssim"]
