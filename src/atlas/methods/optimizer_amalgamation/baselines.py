"""Learned optimizers that the paper compares with, meta-trained plainly: the sum of losses, no teachers, no curriculum."""

from __future__ import annotations

from atlas.l2o import L2ODM, Policy
from atlas.methods.optimizer_amalgamation.scale import L2OScale
from atlas.tasks.learned_optimization.competitors import Learned


class PlainL2ODM(Learned):
    """L2O-DM of Andrychowicz et al., NeurIPS 2016."""

    def fresh(self) -> Policy:
        """An untrained L2O-DM of the settings' widths."""
        return L2ODM(self.settings.hidden, lr=self.settings.scale, preprocess=self.settings.preprocess)


class PlainL2OScale(Learned):
    """L2O-Scale of Wichrowska et al., ICML 2017."""

    def fresh(self) -> Policy:
        """An untrained L2O-Scale of the settings' widths."""
        return L2OScale(self.settings.hidden, lr=self.settings.scale)
