"""Vision transformers of other kinds on ImageNet: CaiT, Swin, T2T-ViT, and a plain one whose heads exchange their maps."""

from __future__ import annotations

from typing import Any

from benchmarks.formulas import OPERATIONS, TRAINING
from benchmarks.formulas.transformers import forward, images_trained, training, transformer

from atlas.study import Run

CLASSES = 1000
FUSED, BY_HAND = 7, 6
"""Products of queries with keys that a training step takes, those with values counted as such: one kernel computes the maps once
more going back; where the maps themselves are used, they are kept."""


def talking_heads(run: Run) -> float:
    """CaiT: blocks whose heads exchange maps before and after the softmax, then layers in which only the class token asks."""
    protocol, backbone = run.protocol_model(), run.protocol_model().backbone
    width, tokens = backbone.embed_dim, (backbone.img_size // backbone.patch_size) ** 2
    exchange = 2 * tokens**2 * backbone.num_heads**2
    mlp = 2 * backbone.mlp_ratio * width**2
    block = TRAINING * (tokens * (4 * width**2 + mlp) + exchange) + BY_HAND * tokens**2 * width
    asked = TRAINING * (2 * (tokens + 1) * width**2 + 2 * width**2 + mlp) + FUSED * (tokens + 1) * width
    layers = backbone.depth * block + run.settings_model("cait").class_layers * asked
    patches = 2 * tokens * width * 3 * backbone.patch_size**2
    return OPERATIONS * images_trained(run, protocol.epochs) * (patches + layers + TRAINING * width * CLASSES)


def windows(run: Run) -> float:
    """Swin: attention in windows with a bias that learns, so by hand; four tokens merge to one of twice the width."""
    protocol, backbone = run.protocol_model(), run.protocol_model().backbone
    settings = run.settings_model("swin")
    width, side = backbone.embed_dim, backbone.img_size // backbone.patch_size
    total = 2.0 * side**2 * width * 3 * backbone.patch_size**2
    for stage, depth in enumerate(settings.depths):
        if stage:
            side, width = side // 2, 2 * width
            total += TRAINING * side**2 * 2 * width * width
        linear = side**2 * (4 + 2 * backbone.mlp_ratio) * width**2
        total += depth * (TRAINING * linear + BY_HAND * side**2 * settings.window**2 * width)
    return OPERATIONS * images_trained(run, protocol.epochs) * (total + TRAINING * width * CLASSES)


def mixed_maps(run: Run) -> float:
    """DeepViT's re-attention: maps by hand, and each block's heads mixed once."""
    protocol, backbone = run.protocol_model(), run.protocol_model().backbone
    parts = transformer(backbone, CLASSES)
    tokens = (backbone.img_size // backbone.patch_size) ** 2 + 1
    mixed = TRAINING * backbone.depth * tokens**2 * backbone.num_heads**2
    each = training(parts) + (BY_HAND - FUSED) * parts["product"] + mixed
    return OPERATIONS * images_trained(run, protocol.epochs) * each


SIDES, WINDOWS = (56, 28), (49, 9, 9)
"""Tokens on a side after the first and the second cut of 224 pixels, and pixels or tokens that each of three cuts gathers."""
TOKEN = 64
"""Channels of a token, of which a linear attention takes half as many random features."""


def cut_tokens(backbone: Any) -> tuple[float, float]:
    """T2T-ViT before its blocks: multiply-accumulates of an image, there, and there and back.

    Random features are fixed: their two products have no gradient of a weight.
    """
    there = both = 0.0
    for side, gathered in zip(SIDES, (3 * WINDOWS[0], TOKEN * WINDOWS[1]), strict=True):
        learned = gathered * 3 * TOKEN + 3 * TOKEN**2
        features, products = 2 * (TOKEN // 2) * TOKEN, 2 * (TOKEN // 2) * TOKEN
        there += side**2 * (learned + features + products)
        both += side**2 * (TRAINING * (learned + products) + 2 * features)
    patches = (backbone.img_size // backbone.patch_size) ** 2
    entry = patches * TOKEN * WINDOWS[2] * backbone.embed_dim
    return there + entry, both + TRAINING * entry


def tokens_to_tokens(run: Run) -> float:
    """T2T-ViT, or its compression: epochs of the whole model, then of what the budget leaves of it; the teacher runs along."""
    backbone = run.protocol_model().backbone
    parts = {**transformer(backbone, CLASSES), "patches": 0.0}
    there, both = cut_tokens(backbone)
    whole, once = training(parts) + both, forward(parts) + there
    if run.recipe == ("t2t-vit",):
        return OPERATIONS * images_trained(run, run.protocol_model().epochs) * whole
    settings = run.settings_model(run.recipe[-1])
    before, after = settings.stages
    small = whole - (1 - getattr(settings, "budget", 1.0)) * once / forward(parts) * training(parts)
    teacher = images_trained(run, before + after) * once
    return OPERATIONS * (images_trained(run, before) * whole + images_trained(run, after) * small + teacher)
