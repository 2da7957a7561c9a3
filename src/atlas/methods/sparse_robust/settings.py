"""What can be chosen in Robust Bird, Flying Bird, Flying Bird+ and the masks that they are compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge

from atlas.settings import Count, Fraction, Natural, Settings, Share

Scheme = Literal["uniform", "erk", "igq"]
"""How a density is shared out over layers; see :func:`.masks.layer_densities`."""
Criterion = Literal["magnitude", "snip", "grasp", "synflow"]
"""By which score weights stay; see :func:`.scores.saliency`."""
Scope = Literal["global", "layer"]
"""Whether one threshold holds for all layers, or each has its own."""
Growth = Literal["gradient", "random"]
"""Where weights grow: at the largest gradients, or anywhere."""


class DensitySettings(Settings):
    """``density`` is the share of the weights that exist."""

    density: Share = 0.2


class SparseSettings(DensitySettings):
    """``scheme`` shares the density out over layers."""

    scheme: Scheme = "igq"


class ScoreSettings(DensitySettings):
    """``batches`` of clean training images to score on; ``rounds`` of SynFlow, as in its paper; ``scope`` of the threshold."""

    scope: Scope = "global"
    batches: Natural = 10
    rounds: Natural = 100


class EarlyBirdSettings(Settings):
    """Masks of the last ``queue`` epochs have settled when they differ by at most ``threshold``, a share of their entries."""

    threshold: Fraction = 0.08
    queue: Annotated[int, Ge(2)] = 5


class RobustBirdSettings(DensitySettings, EarlyBirdSettings):
    """Stage 1 trains as ``stage`` says until the masks have settled, or for ``max_epochs``.

    ``stage_milestones`` are the decays of stage 1 and ``milestones`` those of adversarial training, where they differ from the
    protocol's: the authors use (50, 150) for both, and (100, 150) for every other row.
    """

    max_epochs: Natural = 200
    stage: Literal["standard", "fast", "pgd"] = "standard"
    stage_milestones: tuple[Natural, ...] | None = (50, 150)
    milestones: tuple[Natural, ...] | None = None


class DynamicSettings(SparseSettings):
    """The topology changes every ``interval`` steps in the first half of the epochs, then every ``late_interval``.

    Each time a share of the weights goes that falls from ``rate`` to ``rate_end`` over the training. ``average_from`` is the
    epoch (from 0) from which weights are averaged; the last network is then the average.
    """

    interval: Natural = 900
    late_interval: Natural = 1200
    rate: Fraction = 0.5
    rate_end: Fraction = 0.005
    growth: Growth = "gradient"
    average_from: Count | None = None


class AdaptiveSettings(Settings):
    """When and by how much Flying Bird+ changes the density.

    From ``start_epoch`` (from 0) on, in the paper that of the first decay of the learning rate, it looks at the latest
    ``window`` changes of the robust gap and of the validation loss, and acts where at least the share ``threshold`` of them are
    rises. It then prunes ``prune_extra`` and grows ``grow_extra`` more, relative to what is pruned and grown anyway.
    """

    start_epoch: Count = 100
    window: Natural = 4
    threshold: Fraction = 0.5
    prune_extra: Fraction = 0.4
    grow_extra: Fraction = 0.05


class PlusSettings(DynamicSettings, AdaptiveSettings):
    """Of Flying Bird+: both of Flying Bird and of its adaptive density."""
