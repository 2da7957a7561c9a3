"""Rows of image classification: As-ViT's search → growth → training, each a job, the ranking study, and their baselines."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import REPORTED, Metric, method, paper
from atlas.methods.as_vit.settings import (
    PROXIES,
    REHEARSED,
    DesignCostSettings,
    DetectorDesignSettings,
    DetectorSettings,
    GrowthSettings,
    ModelSettings,
    RankingSettings,
    RetokenizeSettings,
    SearchSettings,
)
from atlas.settings import Settings
from atlas.tasks.image_classification.entry import METRICS

PAPER = paper(
    "as-vit",
    title="Auto-scaling Vision Transformers without Training",
    citation="W. Chen, W. Huang, X. Du, X. Song, Z. Wang, D. Zhou, ICLR 2022",
    url="https://arxiv.org/abs/2202.11921",
)
row = partial(method, paper=PAPER, task="image-classification")
SMALL_MEASURES = {"repeats": 1, "points": 3, "images": 2}

# stages

row(
    "as-vit-search",
    title="As-ViT search",
    summary="Searches a topology by two measures of untrained networks, with REINFORCE and with random search.",
    role="stage",
    settings=SearchSettings,
    metrics=(
        Metric("merge_product", "K₂K₃K₄ found", "neither", ".0f"),
        Metric("random_merge_product", "K₂K₃K₄ by random search", "neither", ".0f"),
        Metric("length", "length of the found", "higher", ".3g"),
        Metric("random_length", "length by random search", "higher", ".3g"),
        Metric("merges_length", "length of the largest merges", "higher", ".3g"),
        Metric("ntk", "κ of the found", "lower", ".0f"),
        Metric("random_ntk", "κ by random search", "lower", ".0f"),
        Metric("merges_ntk", "κ of the largest merges", "lower", ".0f"),
        Metric("search_seconds", "search, s", "lower", ".0f", measured=True),
    ),
    smallest={**SMALL_MEASURES, "steps": 3, "check_repeats": 1},
    rehearsal={"repeats": 1, "check_repeats": 1},
    amounts="stages:search_amounts",
    train="stages:search_topology",
    evaluate=REPORTED,
)
row(
    "as-vit-growth",
    title="As-ViT growth",
    summary="Grows the searched topology into a family, and other scalings of the same size beside it.",
    role="stage",
    settings=GrowthSettings,
    needs={"search": "as-vit-search"},
    metrics=(
        Metric("widest_share", "steps that took the widest", "neither", ".0%"),
        Metric("growth_steps", "steps", "neither", ".0f"),
        Metric("parameters", "parameters", "neither", ",.0f", cost=False),
        Metric("macs", "MACs / image", "neither", ".3g", cost=False),
        Metric("total_width", "total width", "neither", ".0f"),
        Metric("random_parameters_ratio", "random scaling's parameters ÷ ours", "neither", ".3f", cost=False),
        Metric("growth_seconds", "growth, s", "lower", ".0f", measured=True),
    ),
    smallest={**SMALL_MEASURES, "max_steps": 2},
    rehearsal={"repeats": 1},
    amounts="stages:growth_amounts",
    train="stages:grow_family",
    evaluate=REPORTED,
)
row(
    "as-vit-ranking",
    title="random topologies",
    summary="Trains topologies drawn at random and correlates measures of the untrained networks with their accuracy.",
    role="baseline",
    plugin="baselines:RandomTopologies",
    settings=RankingSettings,
    metrics=(
        Metric("tau_length", "τ length", "higher", ".2f"),
        Metric("tau_length_low", "τ length, lower bound", "higher", ".2f", table=False),
        Metric("tau_length_high", "τ length, upper bound", "higher", ".2f", table=False),
        *(Metric(f"tau_{name}", f"τ {label}", "higher", ".2f") for name, label in PROXIES.items() if name != "length"),
        Metric("tau_over_ntk", "τ length − τ −κ", "higher", ".2f", table=False),
        Metric("tau_over_ntk_low", "its lower bound", "higher", ".2f", table=False),
        Metric("tau_over_merge_product", "τ length − τ K₂K₃K₄", "higher", ".2f", table=False),
        Metric("tau_over_merge_product_low", "its lower bound", "higher", ".2f", table=False),
        Metric("law_r2", "R² of length on K₂K₃K₄", "higher", ".3f"),
        Metric("top1_mean", "top-1, mean topology", "higher", ".1%"),
        Metric("top1_sd", "its deviation", "neither", ".1%"),
        Metric("top1_best", "top-1, best by validation", "higher", ".1%"),
    ),
    smallest={**SMALL_MEASURES, "topologies": 4, "proxy_images": 4, "draws": 20, "law_topologies": 4, "law_size": 32},
    rehearsal={"repeats": 1, "images": 2, "proxy_images": 2, "topologies": REHEARSED, "law_topologies": 3, "draws": 20},
    amounts="baselines:amounts",
    train="baselines:rank_topologies",
    evaluate="baselines:judge_ranking",
    ranks=True,
)

row(
    "as-vit-design-cost",
    title="design of As-ViT",
    summary="What the published search and growth cost, counted, beside one epoch of every topology that the search tries.",
    role="baseline",
    settings=DesignCostSettings,
    metrics=(
        Metric("design_hours", "design / hours of a card", "lower", ".2f"),
        Metric("design_flops", "design FLOPs", "lower", ".3g"),
        Metric("search_flops", "of these search", "neither", ".3g"),
        Metric("growth_flops", "of these growth", "neither", ".3g"),
        Metric("growth_candidates", "candidates of growth", "neither", ".0f"),
        Metric("training_hours", "an epoch of each topology / hours", "neither", ".0f"),
        Metric("training_flops", "an epoch of each topology, FLOPs", "neither", ".3g"),
        Metric("flops_ratio", "design ÷ an epoch of each", "lower", ".2g"),
    ),
    smallest={"pixels": 32, "points": 3, "images": 2, "target": 2_500_000},
    rehearsal={"points": 3, "images": 2},
    train="stages:design_cost",
    evaluate=REPORTED,
)

# trained networks: what the search found, the same topology scaled by growth, and the published models

network = partial(
    row,
    settings=ModelSettings,
    conflicts=("timm-blocks",),
    metrics=(
        *(metric for metric in METRICS if metric.name in {"top1", "nll", "ece", "parameters", "forward_flops", "train_flops"}),
        Metric("macs", "MACs / image", "lower", ".3g"),
    ),
    evaluate="plugin:evaluate",
    ranks=True,
)


def searched(name: str, title: str, summary: str, key: str, role: str = "baseline") -> None:
    """Add a row that trains a topology which the search left under ``key``."""
    needs = {"search": "as-vit-search"}
    network(name, title=title, summary=summary, role=role, needs=needs, plugin="plugin:Searched", options={"key": key})


def grown(name: str, title: str, summary: str, key: str, role: str = "baseline") -> None:
    """Add a row that trains the last network of a scaling which growth left under ``key``."""
    needs = {"search": "as-vit-search", "growth": "as-vit-growth"}
    network(name, title=title, summary=summary, role=role, needs=needs, plugin="plugin:Grown", options={"key": key})


searched("as-vit-seed", "As-ViT seed", "The topology that REINFORCE found, not scaled.", "topology", "method")
searched("random-topology", "random topology", "A topology drawn uniformly, at the same width and depth.", "random")
searched("random-search", "random search", "The best of as many random trials by the same measures.", "random_search")
searched("merge-product", "largest merges", "K₂ = K₃ = K₄ at their largest, the rest median: no search.", "largest_merges")
grown("as-vit", "As-ViT", "The topology found by search, scaled by growth.", "rank", "method")
grown("random-scaling", "random scaling", "The same topology and size, each step of growth random.", "random")
grown("max-width-scaling", "widest growth", "The same topology and size, always the widest step.", "max-width")
grown("uniform-scaling", "uniform scaling", "The same topology and size, equal depths.", "uniform")
grown("swin-like", "Swin-like", "A manual design of that size: merges of 2, expansion 4, depth in stage 3.", "swin")

published = partial(network, settings=Settings, plugin="plugin:Published")
INFERRED = "The published {} model; its depths are inferred from its size."
published("as-vit-small", title="As-ViT-Small", summary=INFERRED.format("Small"), options={"name": "as-vit-small"})
published("as-vit-base", title="As-ViT-Base", summary=INFERRED.format("Base"), options={"name": "as-vit-base"})
published("as-vit-large", title="As-ViT-Large", summary="The published Large model.", options={"name": "as-vit-large"})

row(
    "retokenize",
    title="re-tokenisation",
    summary="Trains with few coarse tokens first and finer ones later, by stride and dilation of the stem alone.",
    plugin="plugin:Retokenize",
    settings=RetokenizeSettings,
    phase="training",
    conflicts=("timm-blocks",),
    amounts="plugin:retokenized_amounts",
)

# the body of a detector

detector = partial(method, paper=PAPER, task="object-detection", settings=DetectorSettings)
detector(
    "as-vit-detector-design",
    title="As-ViT design",
    summary="Searches and grows a topology on the detector's own pictures, by measures of untrained networks.",
    role="stage",
    settings=DetectorDesignSettings,
    metrics=(
        Metric("merge_product", "K₂K₃K₄ found", "neither", ".0f"),
        Metric("length", "length of the found", "higher", ".3g"),
        Metric("random_length", "length by random search", "higher", ".3g"),
        Metric("widest_share", "steps that took the widest", "neither", ".0%"),
        Metric("growth_steps", "steps", "neither", ".0f"),
        Metric("parameters", "parameters", "neither", ",.0f", cost=False),
        Metric("macs", "MACs / image", "neither", ".3g", cost=False),
        Metric("search_seconds", "search, s", "lower", ".0f", measured=True),
        Metric("growth_seconds", "growth, s", "lower", ".0f", measured=True),
    ),
    smallest={
        "search": {**SMALL_MEASURES, "steps": 3, "check_repeats": 1, "width": 8},
        "growth": {**SMALL_MEASURES, "max_steps": 2, "width_scale": 1},
    },
    rehearsal={"search": {"repeats": 1, "check_repeats": 1}, "growth": {"repeats": 1}},
    amounts="stages:design_amounts",
    train="stages:design_detector",
    evaluate=REPORTED,
)
grown_detector = partial(detector, settings=Settings, needs={"design": "as-vit-detector-design"})
grown_detector(
    "as-vit-grown-detector",
    title="As-ViT, grown",
    summary="The network that search and growth found on the detector's pictures, under a feature pyramid.",
    plugin="plugin:GrownDetectorBody",
)
grown_detector(
    "random-grown-detector",
    title="random topology",
    summary="A topology drawn uniformly, at the grown depths and as many parameters, under the same pyramid.",
    role="baseline",
    plugin="plugin:RandomGrownDetectorBody",
)
TINY = {"architecture": "4,2,2,1|2,2,2,1|2,1,2,1|2,1,2,1|16,8", "reference": 64}
UNWEIGHTED = {"weights": ""}
detector(
    "as-vit-detector",
    title="As-ViT",
    summary="A network of As-ViT, by default the published Large, under a feature pyramid over its four stages.",
    plugin="plugin:DetectorBody",
    smallest=TINY,
    rehearsal=UNWEIGHTED,
)
detector(
    "random-topology-detector",
    title="random topology",
    summary="A topology drawn uniformly, at the same depths and as many parameters, under the same pyramid.",
    role="baseline",
    plugin="plugin:RandomDetectorBody",
    smallest=TINY,
    rehearsal=UNWEIGHTED,
)
