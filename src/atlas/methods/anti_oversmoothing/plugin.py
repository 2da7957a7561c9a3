"""AttnScale, FeatScale and their controls as ingredients of a recipe."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atlas.methods.anti_oversmoothing import (
    apply_attnscale,
    apply_featscale,
    apply_head_gain,
    apply_layerscale,
    apply_output_gain,
    scale_parameters,
)
from atlas.tasks.image_classification.ingredients import Ingredient

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.training import Training


class Scaling(Ingredient):
    """Applies one rewrite of the model; its scales learn ``lr_multiplier`` times as fast as the other weights."""

    def __init__(self, run: Run, settings: Any) -> None:
        super().__init__(run, settings)
        self.scales: set[str] = set()

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Rewrite a transformer of timm in place, and return it."""

    def rewrite(self, model: nn.Module, run: Run) -> nn.Module:
        """Rewrite the model, and remember which parameters are new."""
        before = {name for name, _ in model.named_parameters()}
        model = self.apply(model)
        self.scales = {name for name, _ in model.named_parameters()} - before
        return model

    def lr_multiplier(self, parameter: str) -> float:
        """The factor, for the parameters that this rewrite added."""
        return self.settings.lr_multiplier if parameter in self.scales else 1.0

    def watched(self, training: Training) -> Mapping[str, float]:
        """Return smallest, mean and largest of the scales over all layers, for the curves."""
        scales = [value for name, value in scale_parameters(training.model).items() if name in self.scales]
        if not scales:
            return {}
        values = torch.cat([scale.detach().flatten() for scale in scales])
        return {"scale_min": float(values.min()), "scale_mean": float(values.mean()), "scale_max": float(values.max())}


class AttnScale(Scaling):
    """Â = J + (1 + ω)(A − J): one ω per head."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Give every head of the model its weight ω of the high frequencies."""
        return apply_attnscale(model)


class FeatScale(Scaling):
    """SA' = SA + gain · (s·DC[SA] + t·HC[SA]): two vectors per layer."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Give every layer of the model its weights s and t of the low and the high frequencies."""
        return apply_featscale(model, gain=float(self.settings.gain))


class HeadGain(Scaling):
    """O_h ← (1 + g_h)·O_h: AttnScale's parameters, blind to frequency."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Give every head of the model its gain, the control of AttnScale."""
        return apply_head_gain(model)


class OutputGain(Scaling):
    """SA' = (1 + t)·SA: FeatScale with s tied to t."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Give every layer of the model its gains per channel, the control of FeatScale."""
        return apply_output_gain(model)


class LayerScale(Scaling):
    """H. Touvron et al., *Going deeper with Image Transformers*, ICCV 2021, Eq. 4."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Give both residual branches of every block their scales."""
        return apply_layerscale(model, init=self.settings.init)
