"""AttnScale, FeatScale and their controls as ingredients of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from atlas.methods.anti_oversmoothing import scale_parameters
from atlas.tasks.image_classification.ingredients import Ingredient

if TYPE_CHECKING:
    from atlas.harness.study import Run
    from atlas.tasks.image_classification.training import Training


class Rewrite(Ingredient):
    """Applies one rewrite of the model; its scales learn ``lr_multiplier`` times as fast as the other weights."""

    def __init__(self, apply: Callable[[nn.Module], nn.Module], lr_multiplier: float = 1.0) -> None:
        self.apply = apply
        self.factor = lr_multiplier
        self.scales: set[str] = set()

    def rewrite(self, model: nn.Module, run: Run) -> nn.Module:
        """Rewrite the model, and remember which parameters are new."""
        before = {name for name, _ in model.named_parameters()}
        model = self.apply(model)
        self.scales = {name for name, _ in model.named_parameters()} - before
        return model

    def lr_multiplier(self, parameter: str) -> float:
        """The factor, for the parameters that this rewrite added."""
        return self.factor if parameter in self.scales else 1.0

    def watched(self, training: Training) -> Mapping[str, float]:
        """Range of the scales over all layers."""
        scales = [value for name, value in scale_parameters(training.model).items() if name in self.scales]
        if not scales:
            return {}
        values = torch.cat([scale.detach().flatten() for scale in scales])
        return {"scale_min": float(values.min()), "scale_mean": float(values.mean()), "scale_max": float(values.max())}
