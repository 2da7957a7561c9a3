"""Rivals of Diverse-ViT as ingredients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from atlas.harness.seeds import derive_seed
from atlas.methods.diverse_vit.reattention import apply_reattention
from atlas.tasks.image_classification.ingredients import Ingredient

if TYPE_CHECKING:
    from atlas.harness.run import Run


class ReAttention(Ingredient):
    """DeepViT's mixing of attention maps, in every block."""

    def rewrite(self, model: nn.Module, run: Run) -> nn.Module:
        """Put it in; new weights follow from the run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(run.seed, "re-attention"))
            rewritten: nn.Module = apply_reattention(model)
        return rewritten
