"""Rows of image classification: UVC, its ablations and its baselines, which act after training on a recipe's dense model."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import RECIPE_BEFORE, REPORTED, Metric, method, paper
from atlas.methods.uvc.settings import (
    PLANS,
    BlindSettings,
    BudgetSettings,
    DistillSettings,
    DynamicViTSettings,
    LatencySettings,
    S2ViTESettings,
    StructuredSettings,
    UnstructuredSettings,
    UVCSettings,
)

PAPER = paper(
    "uvc",
    title="Unified Visual Transformer Compression",
    citation="S. Yu, T. Chen, J. Shen, H. Yuan, J. Tan, S. Yang, J. Liu, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.08243",
)
METRICS = (
    Metric("acc_pre_ft", "top-1 before fine-tuning", "higher", ".1%"),
    Metric("r_phys", "MACs left", "lower", ".3f", cost=True),
    Metric("r_paper", "MACs left, paper's formula", "lower", ".3f", table=False),
    Metric("budget_error", "MACs left − budget", "neither", ".4f", table=False),
    Metric("budget_met", "budget met within 0.01", "higher", ".0f", table=False),
    Metric("macs", "MACs / image", "lower", ".3g", table=False),
    Metric("blocks_kept", "blocks kept", "neither", ".0f"),
    Metric("heads_kept", "heads kept", "neither", ".0f"),
    Metric("neurons_kept", "neurons kept", "neither", ".0f"),
    Metric("latency_ms_b1", "ms / image", "lower", ".2f", measured=True, table=False),
    Metric("latency_ms_b64", "ms / 64 images", "lower", ".2f", measured=True, table=False),
    Metric("latency_ratio_b1", "time ÷ dense, batch 1", "lower", ".2f", measured=True, table=False),
    Metric("latency_ratio_b64", "time ÷ dense, batch 64", "lower", ".2f", measured=True, table=False),
    Metric("search_seconds", "search, seconds", "lower", ".1f", measured=True, table=False),
)
SHORT = {"epochs": 2, "warmup_epochs": 0}
ONE_STEP = {"epochs": 1, "warmup_epochs": 0}

row = partial(method, paper=PAPER, task="image-classification")
compression = partial(
    row,
    phase="after",
    traits=("timm-blocks",),
    needs={"dense": RECIPE_BEFORE},
    extra_metrics=METRICS,
    amounts="plugin:amounts",
    smallest=SHORT,
    rehearsal=ONE_STEP,
)
search = partial(
    compression,
    plugin="plugin:Searched",
    settings=UVCSettings,
    smallest={**SHORT, "search_epochs": 3, "search_warmup_epochs": 1},
    rehearsal={**ONE_STEP, "search_epochs": 1, "search_warmup_epochs": 0},
)
baseline = partial(compression, role="baseline")

search(
    "uvc",
    title="UVC",
    summary="Heads, dims, neurons and blocks go together, learned with the weights under a budget.",
)
search(
    "prune-only",
    title="UVC, pruning only",
    summary="The same search without gates: every block stays.",
    role="ablation",
    options={"skip": False},
)
search(
    "skip-only",
    title="UVC, skipping only",
    summary="The same search with gates alone: blocks stay whole or go.",
    role="ablation",
    options={"prune": False},
)
baseline(
    "dense-kd",
    title="dense, distilled on",
    summary="The dense model trained for as long as the compressed ones, with the same teacher: the fair upper reference.",
    plugin="baselines:Dense",
    settings=DistillSettings,
)
baseline(
    "uniform-mag",
    title="uniform magnitude",
    summary="The same share of the smallest neurons and dims goes everywhere, at once.",
    plugin="baselines:Uniform",
    settings=BudgetSettings,
)
baseline(
    "structured",
    title="structured pruning",
    summary="Heads, dims and neurons go by one criterion: magnitude, Taylor, gradual magnitude, or saliency by layer.",
    plugin="baselines:Structured",
    settings=StructuredSettings,
    smallest={**SHORT, "batches": 1, "jumps": 1},
)
baseline(
    "blind-skip",
    title="blind skipping",
    summary="Evenly spaced or the first blocks stay; also as a shallower model trained from scratch.",
    plugin="baselines:Blind",
    settings=BlindSettings,
)
baseline(
    "unstructured",
    title="unstructured pruning",
    summary="Single weights go by magnitude, Taylor or gradual magnitude: sparsity, not computation.",
    plugin="baselines:Unstructured",
    settings=UnstructuredSettings,
    smallest={**SHORT, "batches": 1, "jumps": 1},
    extra_metrics=(*METRICS, Metric("weights_kept", "weights kept", "lower", ".2f", cost=True)),
)
baseline(
    "s2vite",
    title="S²ViTE",
    summary="Sparse from the start: heads and neurons go and come back by gradients while it trains (Chen et al., NeurIPS 2021).",
    plugin="baselines:S2ViTE",
    settings=S2ViTESettings,
    smallest={**SHORT, "interval": 1},
)
baseline(
    "dynamic-vit",
    title="DynamicViT",
    summary="Tokens are dropped on the way, picture by picture, by learned predictors (Rao et al., NeurIPS 2021).",
    plugin="baselines:DynamicViT",
    settings=DynamicViTSettings,
    smallest={**SHORT, "frozen_epochs": 1},
    rehearsal={**ONE_STEP, "frozen_epochs": 0},
    combines=False,
)
ratio = partial(Metric, better="lower", format=".2f", measured=True)
row(
    "compression-latency",
    title="latency of exported plans",
    summary="Measured time of exported models of random weights beside the dense one, against what the formula says.",
    settings=LatencySettings,
    metrics=(
        *(Metric(f"r_phys_{plan}", f"MACs left: {kind}", "neither", ".3f") for plan, kind in PLANS.items()),
        *(ratio(f"latency_ratio_{plan}", f"time ÷ dense: {kind}") for plan, kind in PLANS.items()),
        *(ratio(f"latency_excess_{plan}", f"time ÷ dense − MACs left: {kind}", table=False) for plan, kind in PLANS.items()),
    ),
    smallest={"img_size": 32, "embed_dim": 24, "depth": 3, "blocks": 1, "rounds": 2, "warmup": 1, "batch": 1},
    rehearsal={"rounds": 2, "warmup": 1},
    amounts="stages:latency_amounts",
    train="stages:measure_latency",
    evaluate=REPORTED,
)
