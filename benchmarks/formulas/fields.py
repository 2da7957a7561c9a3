"""Radiance fields: samples along rays, and images that a frozen encoder looks at."""

from __future__ import annotations

import math

from benchmarks.formulas import OPERATIONS, TRAINING
from benchmarks.formulas.transformers import forward, transformer

from atlas.study import Run

ENCODER = {"img_size": 224, "patch_size": 16, "in_chans": 3, "embed_dim": 384, "depth": 12, "mlp_ratio": 4}


def radiance_field() -> tuple[float, float]:
    """Multiply-accumulates of NeRF's network at one sample, and those of its first layer, which asks for no gradient."""
    entry, view, width = 3 * (2 * 10 + 1), 3 * (2 * 4 + 1), 256
    first = entry * width
    hidden = first + 6 * width**2 + (width + entry) * width
    return hidden + width + width**2 + (width + view) * width // 2 + 3 * width // 2, first


def rays(run: Run) -> tuple[float, float]:
    """Rays of all steps, and passes of the frozen encoder: one forward, and one back to the image, each as one pass."""
    protocol, method = run.protocol_model(), run.recipe[0]
    budget, patch = protocol.rays, math.prod(protocol.rays.patch)
    total = encoded = 0.0
    for index, stage in enumerate(protocol.stages):
        own = budget.reference + budget.reference_patch * patch
        if method in ("sinnerf", "sinnerf-geom"):
            own += budget.warped + patch
        total += stage.steps * own
        settings = run.settings_model(method)
        vit = getattr(settings, "vit", 0.0)
        if (vit[index] if isinstance(vit, tuple) else vit) > 0:
            encoded += stage.steps * (2 * 2 + 0.05)  # the patch at two levels; the reference's features, now and then
        if getattr(settings, "consistency", 0.0):
            looks = stage.steps / settings.consistency_every
            total += looks * patch
            encoded += looks * (2 * 2 + 1)  # the view at two levels, and the reference
    return total, encoded


def view_synthesis(run: Run) -> float:
    """Samples along all rays: a coarse level, and a fine one of both levels' samples."""
    protocol, method = run.protocol_model(), run.recipe[0]
    samples = 2 * protocol.sampler.coarse + protocol.sampler.fine
    macs, first = radiance_field()
    if method in ("all-views", "scene"):
        steps = protocol.teacher_steps if method == "scene" else sum(stage.steps for stage in protocol.stages)
        total, encoded = steps * (protocol.rays.reference + protocol.rays.warped), 0.0
    else:
        total, encoded = rays(run)
    encoder = forward(transformer(_Sizes(**ENCODER), 0))
    return OPERATIONS * (total * samples * (TRAINING * macs - first) + encoded * encoder)


class _Sizes:
    """Numbers by name."""

    def __init__(self, **values: float) -> None:
        vars(self).update(values)
