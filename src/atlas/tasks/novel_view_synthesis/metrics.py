"""How like a held-out view a rendering is: PSNR, SSIM, and LPIPS where its weights are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from atlas.tasks.novel_view_synthesis.scene import Array

CEILING = 100.0
"""PSNR of equal images, in dB."""
ALEXNET = "alexnet-owt-7be5be79.pth"


def psnr(image: Array, truth: Array, mask: Array | None = None) -> float:
    """Peak signal-to-noise ratio in dB, peak 1, the image clipped to [0, 1]; 100 for equal images, nan for an empty mask.

    Parameters
    ----------
    image, truth : array
        (height, width, 3).
    mask : array, optional
        (height, width) pixels to compare.
    """
    squared = (np.clip(np.asarray(image, np.float64), 0, 1) - truth) ** 2
    if mask is not None:
        if not mask.any():
            return math.nan
        squared = squared[mask]
    error = float(squared.mean())
    return CEILING if error == 0 else min(CEILING, -10 * math.log10(error))


def ssim(image: Array, truth: Array) -> float:
    """SSIM (Wang et al., 2004): 11 × 11 Gaussian of σ 1.5, biased covariance, valid windows, mean over channels."""
    from skimage.metrics import structural_similarity

    clipped = np.clip(np.asarray(image, np.float64), 0, 1)
    truth = np.asarray(truth, np.float64)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return float(structural_similarity(clipped, truth, channel_axis=-1, **options))


def lpips_weights() -> Path:
    """Where the AlexNet of LPIPS is looked for; nothing is downloaded while evaluating."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET


def lpips(image: Array, truth: Array) -> float:
    """Learned perceptual distance (Zhang et al., CVPR 2018, AlexNet); nan where its weights or torchmetrics are missing."""
    if not lpips_weights().is_file():
        return math.nan
    try:
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    except ImportError:
        return math.nan
    import torch

    pair = [torch.from_numpy(np.clip(picture, 0, 1).astype(np.float32)).permute(2, 0, 1)[None] for picture in (image, truth)]
    return float(learned_perceptual_image_patch_similarity(pair[0], pair[1], net_type="alex", normalize=True))


def depth_error(depth: Array, truth: Array | None) -> float:
    """Mean absolute error of the z-depth where the true one exists, in scene units; nan where there is no truth."""
    if truth is None or not (truth > 0).any():
        return math.nan
    return float(np.abs(depth - truth)[truth > 0].mean())
