"""Plugs Diverse-ViT and its mixing augmentation into image classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt

from atlas.harness.registry import Settings, method, paper
from atlas.harness.study import Run

if TYPE_CHECKING:
    from atlas.tasks.image_classification.ingredients import Ingredient

PAPER = paper(
    "diverse-vit",
    title="The Principle of Diversity: Training Stronger Vision Transformers Calls for Reducing All Levels of Redundancy",
    citation="T. Chen, Z. Zhang, Y. Cheng, A. Awadallah, Z. Wang, CVPR 2022",
    url="https://arxiv.org/abs/2203.06345",
)
TASK = "image-classification"
Coefficient = Annotated[float, Ge(0)]


class MixSettings(Settings):
    """MixUp or CutMix of each batch with its mirror."""

    mixup_alpha: Annotated[float, Gt(0)] = 0.8
    cutmix_alpha: Annotated[float, Gt(0)] = 1.0
    switch_prob: Annotated[float, Ge(0), Le(1)] = 0.5
    prob: Annotated[float, Ge(0), Le(1)] = 1.0
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1


class DiverseSettings(MixSettings):
    """Coefficients of the five terms, those of the released scripts for DeiT-S at 12 and 24 layers.

    With ``mix_weight`` 0 and ``mix`` false the batches are the protocol's own, and only the regularisers are added.
    """

    mix: bool = True
    mix_weight: Coefficient = 1.0
    emb_cos: Coefficient = 0.5
    emb_contrast: Coefficient = 0.5
    attn_cos: Coefficient = 1e-4
    weight_orth: Coefficient = 5e-4
    emb_cos_abs: bool = False
    detach_first: bool = False
    attn_block: Annotated[int, Ge(0)] = 0
    orth_steps: Annotated[int, Ge(1)] = 1
    orth_exact: bool = False


@method(
    "patch-mixup",
    paper=PAPER,
    task=TASK,
    title="DeiT, mixed batches",
    summary="The plain backbone on batches mixed as Diverse-ViT mixes them, without any of its losses.",
    role="baseline",
    settings=MixSettings,
    phase="training",
    conflicts=("diverse-vit",),
)
def patch_mixup(run: Run, settings: MixSettings) -> Ingredient:
    """The essential baseline: the augmentation alone."""
    from atlas.methods.diverse_vit.ingredient import DiverseIngredient

    silent = dict.fromkeys(("mix_weight", "emb_cos", "emb_contrast", "attn_cos", "weight_orth"), 0.0)
    return DiverseIngredient(DiverseSettings.model_validate({**settings.model_dump(), **silent}), run.seed)


@method(
    "diverse-vit",
    paper=PAPER,
    task=TASK,
    title="Diverse-ViT",
    summary="Loss terms against redundancy of patch embeddings, attention maps and weights.",
    settings=DiverseSettings,
    phase="training",
    conflicts=("patch-mixup",),
)
def diverse_vit(run: Run, settings: DiverseSettings) -> Ingredient:
    """All three levels by default; a coefficient of 0 leaves a term out."""
    from atlas.methods.diverse_vit.ingredient import DiverseIngredient

    return DiverseIngredient(settings, run.seed)
