"""Plain vision transformers on ImageNet, whatever acts while they train, and their compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.formulas import OPERATIONS, TRAINING

from atlas.study import Run

IMAGENET = 1_281_167


def transformer(backbone: Any, classes: int) -> dict[str, float]:
    """Multiply-accumulates of a plain vision transformer, per image, by part."""
    side, width, depth = backbone.img_size // backbone.patch_size, backbone.embed_dim, backbone.depth
    patches = side**2
    tokens = patches + 1
    return {
        "patches": patches * width * getattr(backbone, "in_chans", 3) * backbone.patch_size**2,
        "linear": depth * tokens * (4 + 2 * getattr(backbone, "mlp_ratio", 4)) * width**2,
        "product": depth * tokens**2 * width,  # queries with keys; attention with values takes as much
        "head": width * classes,
    }


def forward(parts: Mapping[str, float]) -> float:
    """A forward pass."""
    return parts["patches"] + parts["linear"] + 2 * parts["product"] + parts["head"]


def training(parts: Mapping[str, float]) -> float:
    """A training step; pixels need no gradient, and fused attention computes queries with keys once more going back."""
    return 2 * parts["patches"] + TRAINING * (parts["linear"] + parts["head"]) + 7 * parts["product"]


def image_steps(run: Run, epochs: float) -> float:
    """Training steps of some epochs of ImageNet; the last, incomplete batch of an epoch is left out."""
    protocol = run.protocol_model()
    kept = 1 - protocol.data.validation_fraction
    return epochs * (kept * IMAGENET // protocol.batch_size)


def images_trained(run: Run, epochs: float) -> float:
    """Images that go through the network in training."""
    return image_steps(run, epochs) * run.protocol_model().batch_size


PATCH_LOSS = {"diverse-vit", "diverse-mixing", "diverse-embedding"}
MAPS = {"diverse-vit", "diverse-attention"}


def diversity(parts: Mapping[str, float], backbone: Any, names: set[str]) -> float:
    """What Diverse-ViT's terms compute per image: the classifier on every patch, and the attention maps of one block."""
    patches = (backbone.img_size // backbone.patch_size) ** 2
    classified = TRAINING * patches * parts["head"] if names & PATCH_LOSS else 0
    return classified + (TRAINING * parts["product"] / backbone.depth if names & MAPS else 0)


def dense_vit(run: Run) -> float:
    """A vision transformer with whatever ingredients act while it trains."""
    protocol = run.protocol_model()
    parts = transformer(protocol.backbone, 1000)
    each = training(parts) + diversity(parts, protocol.backbone, set(run.recipe))
    return OPERATIONS * images_trained(run, protocol.epochs) * each


def whole_blocks(parts: Mapping[str, float], depth: int, budget: float) -> float:
    """Share of the operations that is left when as many whole blocks stay as the budget allows."""
    blocks, total = parts["linear"] + 2 * parts["product"], forward(parts)
    shares = [(total - blocks + blocks * count / depth) / total for count in range(1, depth + 1)]
    return max(share for share in shares if share <= budget)


def compressed(run: Run) -> float:
    """UVC and its baselines: epochs of the whole model, then epochs of what the budget leaves; the teacher runs along."""
    parts = transformer(run.protocol_model().backbone, 1000)
    settings = run.settings_model(run.recipe[-1])
    before, after = settings.stages
    kept = getattr(settings, "budget", 1.0)
    if run.recipe[-1] in ("skip-only", "blind-skip"):
        kept = whole_blocks(parts, run.protocol_model().backbone.depth, kept)
    teacher = forward(parts)
    whole = images_trained(run, before) * (training(parts) + teacher)
    small = images_trained(run, after) * (kept * training(parts) + teacher)
    return OPERATIONS * (whole + small)


def sparse_from_start(run: Run) -> float:
    """S²ViTE: epochs of the whole model, masked, then of what is left; a teacher only where its part of the loss is not 0."""
    backbone = run.protocol_model().backbone
    parts = transformer(backbone, 1000)
    settings = run.settings_model("s2vite")
    kept = settings.budget * training(parts)
    if settings.neuron_share is not None:
        heads = int(settings.head_share * backbone.num_heads + 1e-9) / backbone.num_heads
        neurons = int(settings.neuron_share * 4 * backbone.embed_dim) / (4 * backbone.embed_dim)
        linear = parts["linear"] * (heads / 3 + 2 * neurons / 3)
        kept = training({**parts, "linear": linear, "product": heads * parts["product"]})
    teacher = forward(parts) if settings.alpha else 0.0
    before, after = (images_trained(run, epochs) for epochs in settings.stages)
    return OPERATIONS * (before * (training(parts) + teacher) + after * (kept + teacher))


def tokens_masked(run: Run) -> float:
    """DynamicViT: in training all tokens pass; attention with a mask is not fused, and computes nothing again going back."""
    backbone = run.protocol_model().backbone
    parts, depth, width = transformer(backbone, 1000), backbone.depth, backbone.embed_dim
    places = run.settings_model("dynamic-vit").places or [depth * quarter // 4 for quarter in (1, 2, 3)]
    saved = (depth - places[0]) / depth * parts["product"]
    predictor = width**2 * (1 + 1 / 2 + 1 / 8) + width / 2
    patches = (backbone.img_size // backbone.patch_size) ** 2
    each = training(parts) - saved + TRAINING * len(places) * patches * predictor + forward(parts)
    return OPERATIONS * images_trained(run, run.settings_model("dynamic-vit").epochs) * each


def timed(run: Run) -> float:
    """Forward passes of a dense model, of two that keep a share of its operations, and of one that keeps some whole blocks."""
    settings = run.settings_model("compression-latency")
    parts = transformer(settings, 1000)
    kept = settings.blocks / settings.depth
    shares = 1 + 2 * settings.budget + kept + (1 - kept) * (parts["patches"] + parts["head"]) / forward(parts)
    return OPERATIONS * (settings.warmup + settings.rounds) * settings.batch * shares * forward(parts)
