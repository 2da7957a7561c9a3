"""Plugs Diverse-ViT, each of its levels alone, and its mixing augmentation into image classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import model_validator

from atlas.harness.registry import method, paper
from atlas.harness.run import Run
from atlas.settings import Settings

if TYPE_CHECKING:
    from atlas.methods.diverse_vit.ingredient import DiverseIngredient

PAPER = paper(
    "diverse-vit",
    title="The Principle of Diversity: Training Stronger Vision Transformers Calls for Reducing All Levels of Redundancy",
    citation="T. Chen, Z. Zhang, Y. Cheng, A. Awadallah, Z. Wang, CVPR 2022",
    url="https://arxiv.org/abs/2203.06345",
)
TASK = "image-classification"
NAMES = ("patch-mixup", "diverse-vit", "diverse-mixing", "diverse-embedding", "diverse-attention", "diverse-weight")
Coefficient = Annotated[float, Ge(0)]


class MixSettings(Settings):
    """MixUp or CutMix of each batch with its mirror; labels are smoothed as the protocol says."""

    mixup_alpha: Annotated[float, Gt(0)] = 0.8
    cutmix_alpha: Annotated[float, Gt(0)] = 1.0
    switch_prob: Annotated[float, Ge(0), Le(1)] = 0.5
    prob: Annotated[float, Ge(0), Le(1)] = 1.0


class MixingSettings(MixSettings):
    """``mix_weight`` is the weight of each patch token beside the class token in the base loss."""

    mix_weight: Coefficient = 1.0


class EmbeddingSettings(MixingSettings):
    """The embedding level: mixing, similarity within the last layer, contrast with the first."""

    emb_cos: Coefficient = 0.5
    emb_contrast: Coefficient = 0.5
    emb_cos_abs: bool = False
    detach_first: bool = False


class AttentionSettings(MixSettings):
    """The attention level: similarity of the heads of one block."""

    attn_cos: Coefficient = 1e-4
    attn_block: Annotated[int, Ge(0)] = 0


class WeightSettings(MixSettings):
    """The weight level: conditioning of the query, key and value projections of all blocks."""

    weight_orth: Coefficient = 5e-4
    orth_steps: Annotated[int, Ge(1)] = 1
    orth_exact: bool = False


class DiverseSettings(EmbeddingSettings, AttentionSettings, WeightSettings):
    """All three levels, with the coefficients of the released scripts for DeiT-S at 12 and 24 layers.

    With ``mix`` false the batches are the protocol's own; they have no patch labels, so ``mix_weight`` must be 0.
    """

    mix: bool = True

    @model_validator(mode="after")
    def _labelled(self) -> DiverseSettings:
        if not self.mix and self.mix_weight:
            raise ValueError("mix_weight needs the patch labels of mixed batches: set it to 0, or mix to true")
        return self


def _options(name: str) -> dict[str, Any]:
    """What all methods of this paper share; each owns the batch and the base loss, so no two can stand in one recipe."""
    return {"paper": PAPER, "task": TASK, "phase": "training", "conflicts": tuple(other for other in NAMES if other != name)}


def _ingredient(run: Run, settings: MixSettings) -> DiverseIngredient:
    from atlas.methods.diverse_vit.ingredient import DiverseIngredient

    return DiverseIngredient(settings, run.seed)


@method(
    "patch-mixup",
    title="DeiT, mixed batches",
    summary="The plain backbone on batches mixed as Diverse-ViT mixes them, without any of its losses.",
    role="baseline",
    settings=MixSettings,
    **_options("patch-mixup"),
)
def patch_mixup(run: Run, settings: MixSettings) -> DiverseIngredient:
    """The essential baseline: the augmentation alone."""
    return _ingredient(run, settings)


@method(
    "diverse-vit",
    title="Diverse-ViT",
    summary="Loss terms against redundancy of patch embeddings, attention maps and weights.",
    settings=DiverseSettings,
    **_options("diverse-vit"),
)
def diverse_vit(run: Run, settings: DiverseSettings) -> DiverseIngredient:
    """All three levels by default; a coefficient of 0 leaves a term out."""
    return _ingredient(run, settings)


@method(
    "diverse-mixing",
    title="Diverse-ViT, mixing only",
    summary="Every patch token predicts its own mixed label; no other term.",
    role="ablation",
    settings=MixingSettings,
    **_options("diverse-mixing"),
)
def diverse_mixing(run: Run, settings: MixingSettings) -> DiverseIngredient:
    """Token labelling by itself, which is a strong form of supervision."""
    return _ingredient(run, settings)


@method(
    "diverse-embedding",
    title="Diverse-ViT, embedding level",
    summary="The three terms on patch embeddings; with detach_first the terms of DiversePatch (Gong et al., arXiv 2104.12753).",
    role="ablation",
    settings=EmbeddingSettings,
    **_options("diverse-embedding"),
)
def diverse_embedding(run: Run, settings: EmbeddingSettings) -> DiverseIngredient:
    """Mixing, cosine within the last layer, contrast with the first."""
    return _ingredient(run, settings)


@method(
    "diverse-attention",
    title="Diverse-ViT, attention level",
    summary="The term on the attention maps of one block alone.",
    role="ablation",
    settings=AttentionSettings,
    **_options("diverse-attention"),
)
def diverse_attention(run: Run, settings: AttentionSettings) -> DiverseIngredient:
    """Cosine between heads."""
    return _ingredient(run, settings)


@method(
    "diverse-weight",
    title="Diverse-ViT, weight level",
    summary="The term on the query, key and value weights alone.",
    role="ablation",
    settings=WeightSettings,
    **_options("diverse-weight"),
)
def diverse_weight(run: Run, settings: WeightSettings) -> DiverseIngredient:
    """Condition orthogonality."""
    return _ingredient(run, settings)
