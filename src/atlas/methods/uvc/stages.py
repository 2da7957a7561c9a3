"""Latency of exported models of random weights, beside the dense one and the formula."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch

from atlas.harness.registry import Amount, Amounts
from atlas.harness.seeds import derive_seed, pick_device
from atlas.methods.uvc.architecture import ViTShape
from atlas.methods.uvc.criteria import evenly_spaced_plan, one_shot_plan
from atlas.methods.uvc.exporting import export
from atlas.methods.uvc.plan import CompressionPlan
from atlas.methods.uvc.plugin import forward_seconds
from atlas.methods.uvc.repair import fit_to_budget
from atlas.methods.uvc.scores import UnitScores, unit_scores
from atlas.methods.uvc.settings import LatencySettings
from atlas.nn.work import work

if TYPE_CHECKING:
    from atlas.harness.run import Run


TIMING = "timing"
"""Kind of work: forward passes of all models, one after the other."""


def latency_amounts(run: Run) -> Amounts:
    """Rounds of timing, those of warm-up among them, and images in each."""
    settings: LatencySettings = run.settings_model("compression-latency")
    return {TIMING: Amount(1, (settings.warmup + settings.rounds) * settings.batch, settings.batch)}


def plans(shape: ViTShape, scores: UnitScores, settings: LatencySettings) -> dict[str, CompressionPlan]:
    """Return the plans that are timed, by name.

    ``uvc`` removes a quarter of the blocks and a head of every other block, as searches do, and fits neurons and dims to the
    budget; ``ragged`` keeps all blocks and ranks dims and neurons together; ``skip`` only skips blocks.
    """
    mixed = CompressionPlan.identity(shape)
    mixed.keep = evenly_spaced_plan(shape, 0.78).keep
    if shape.widest[0] > 1:
        mixed.dims[::2, 0] = False
    blocks = CompressionPlan.identity(shape)
    blocks.keep = (
        torch.zeros(shape.depth).index_fill_(0, torch.linspace(0, shape.depth - 1, settings.blocks).round().long(), 1.0) > 0
    )
    return {
        "uvc": fit_to_budget(mixed, shape, scores, settings.budget),
        "ragged": one_shot_plan(shape, scores, settings.budget),
        "skip": blocks,
    }


def measure_latency(run: Run) -> dict[str, float]:
    """Export a model of random weights under every plan, and time each export beside the dense model."""
    from timm.models.vision_transformer import VisionTransformer

    settings: LatencySettings = run.settings_model("compression-latency")
    device = pick_device(run.resources.device)
    torch.manual_seed(derive_seed(run.seed, "latency"))
    sizes = settings.model_dump(include={"img_size", "patch_size", "embed_dim", "depth", "num_heads"})
    dense = VisionTransformer(**sizes).to(device).eval()
    shape = ViTShape.from_timm(dense)
    chosen = plans(shape, unit_scores(dense, shape), settings)
    models = [dense, *(export(dense, plan, check=False).eval() for plan in chosen.values())]
    images = torch.randn(settings.batch, 3, settings.img_size, settings.img_size, device=device)
    with work(TIMING):
        reference, *others = forward_seconds(models, images, settings.rounds, settings.warmup)
    metrics: dict[str, float] = {}
    for (name, plan), seconds in zip(chosen.items(), others, strict=True):
        ratio = statistics.median(own / base for own, base in zip(seconds, reference, strict=True))
        left = plan.r_phys(shape)
        metrics |= {f"r_phys_{name}": left, f"latency_ratio_{name}": ratio, f"latency_excess_{name}": ratio - left}
    return metrics
