"""Backbones and parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atlas.harness.seeds import derive_seed
from atlas.nn.precision import weight_type
from atlas.tasks.image_classification.ingredients import Ingredients
from atlas.tasks.image_classification.protocol import Backbone

if TYPE_CHECKING:
    from atlas.harness.run import Run


def build_backbone(settings: Backbone, classes: int, seed: int) -> nn.Module:
    """Return a timm VisionTransformer, initialised by ``seed`` alone: rows of one seed share their initial weights."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "init"))
        return VisionTransformer(
            img_size=settings.img_size,
            patch_size=settings.patch_size,
            in_chans=settings.in_chans,
            num_classes=classes,
            embed_dim=settings.embed_dim,
            depth=settings.depth,
            num_heads=settings.num_heads,
            mlp_ratio=settings.mlp_ratio,
            global_pool=settings.global_pool,
            class_token=settings.global_pool == "token",
            weight_init=settings.weight_init,
            drop_rate=settings.drop_rate,
            proj_drop_rate=settings.drop_rate,
            drop_path_rate=settings.drop_path_rate,
        )


def plain_backbone(run: Run, ingredients: Ingredients, classes: int) -> nn.Module:
    """Return the recipe's backbone, by default the protocol's, at its initialisation and as no ingredient has changed it."""
    own = ingredients.backbone(run, classes)
    return own if own is not None else build_backbone(run.protocol_model().backbone, classes, run.seed)


def build_model(run: Run, ingredients: Ingredients, classes: int) -> nn.Module:
    """Return the recipe's model at its initialisation."""
    backbone = plain_backbone(run, ingredients, classes)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(run.seed, "rewrite"))
        return ingredients.rewrite(backbone, run).to(weight_type(run.protocol_model().precision))


def parameter_groups(
    model: Any, learning_rate: float, weight_decay: float, lr_multiplier: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Group parameters by weight decay and learning rate.

    Vectors and what the model names in ``no_weight_decay`` (position embedding, class token) do not decay, as in timm.
    """
    without_decay = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in without_decay else weight_decay
        factor = lr_multiplier(name)
        group = groups.setdefault(
            (decay, factor), {"params": [], "lr": learning_rate * factor, "lr_scale": factor, "weight_decay": decay}
        )
        group["params"].append(parameter)
    return list(groups.values())
