"""Rows of image classification: Diverse-ViT, each of its levels alone, and its mixing of batches without any of them."""

from __future__ import annotations

from functools import partial

from atlas.harness.registry import method, paper
from atlas.methods.diverse_vit.settings import PRESETS, DiverseSettings

PAPER = paper(
    "diverse-vit",
    title="The Principle of Diversity: Training Stronger Vision Transformers Calls for Reducing All Levels of Redundancy",
    citation="T. Chen, Z. Zhang, Y. Cheng, A. Awadallah, Z. Wang, CVPR 2022",
    url="https://arxiv.org/abs/2203.06345",
)
# Each row owns the batch and the base loss, so no two of them can stand in one recipe.
row = partial(
    method,
    paper=PAPER,
    task="image-classification",
    settings=DiverseSettings,
    plugin="plugin:DiverseTraining",
    phase="training",
    traits=("own-batches",),
    conflicts=("own-batches",),
    stacks=True,
)
ablation = partial(row, role="ablation")

row(
    "patch-mixup",
    title="DeiT, mixed batches",
    summary="The plain backbone on batches mixed as Diverse-ViT mixes them, without any of its losses.",
    role="baseline",
    preset=PRESETS["none"],
)
row(
    "diverse-vit",
    title="Diverse-ViT",
    summary="Loss terms against redundancy of patch embeddings, attention maps and weights.",
)
ablation(
    "diverse-mixing",
    title="Diverse-ViT, mixing only",
    summary="Every patch token predicts its own mixed label; no other term.",
    preset=PRESETS["mixing"],
)
ablation(
    "diverse-embedding",
    title="Diverse-ViT, embedding level",
    summary="The three terms on patch embeddings; with detach_first the terms of DiversePatch (Gong et al., arXiv 2104.12753).",
    preset=PRESETS["embedding"],
)
ablation(
    "diverse-attention",
    title="Diverse-ViT, attention level",
    summary="The term on the attention maps of one block alone.",
    preset=PRESETS["attention"],
)
ablation(
    "diverse-weight",
    title="Diverse-ViT, weight level",
    summary="The term on the query, key and value weights alone.",
    preset=PRESETS["weight"],
)
method(
    "reattention",
    paper=PAPER,
    task="image-classification",
    title="DeepViT",
    summary="Heads exchange their attention maps by a learned matrix and a batch norm: re-attention (Zhou et al., 2021).",
    role="baseline",
    plugin="baselines:ReAttention",
    phase="model",
    conflicts=("timm-blocks",),
)
