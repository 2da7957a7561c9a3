"""The symbolic optimizer in recipes of image classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from atlas.errors import UserError
from atlas.methods.symbolic_l2o.entry import OptimizerSettings
from atlas.methods.symbolic_l2o.optimizer import SymbolicOptimizer
from atlas.tasks.image_classification.ingredients import Ingredient


class SymbolicTraining(Ingredient):
    """Puts an equation in the place of AdamW; the loop's schedule acts on its scale."""

    def __init__(self, settings: OptimizerSettings, root: Path) -> None:
        self.settings, self.root = settings, root

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
        """The equation, on the loop's parameter groups."""
        settings = self.settings
        rule: str | Path = self.root / settings.file if settings.file else settings.rule
        try:
            return SymbolicOptimizer(
                groups,
                rule,
                features=settings.features,
                betas=settings.betas,
                lags=settings.lags,
                clamp=settings.clamp,
            )
        except (ValueError, OSError) as error:
            raise UserError(f"symbolic-optimizer: {error}") from None
