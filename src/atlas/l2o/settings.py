"""What can be chosen in meta-training, in the search for a step size, and in hand-made optimizers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Lt, MinLen
from pydantic import model_validator

from atlas.settings import Natural, NonNegative, Positive, Settings

Decay = Annotated[float, Ge(0), Lt(1)]
"""Decay rate of an exponential mean: the share of the old value that is kept at a step."""
Widths = Annotated[tuple[Natural, ...], MinLen(1)]
"""Widths of recurrent cells, one after the other."""
Objective = Literal["sum", "log"]
Boundary = Literal["post", "pre", "none"]
Criterion = Literal["best-val", "final"]


class MetaConfig(Settings):
    """Plain meta-training; the defaults are those of *Symbolic Learning to Optimize* at full size.

    ``windows`` meta-steps are made, on windows of ``unroll`` updates each; after ``depth`` windows on one draw of optimizees new
    ones start, ``instances`` of them side by side. The meta-optimizer is Adam, or SGD with ``momentum``, with step size ``lr``.
    ``objective``, ``boundary`` and ``second_order`` are explained at :func:`atlas.l2o.unroll`. Coordinates are scaled by
    exp U(−``spread``, ``spread``), drawn anew with the optimizees; 0 leaves them as they are.
    """

    windows: Natural = 2000
    unroll: Natural = 20
    depth: Natural = 10
    instances: Natural = 1
    lr: Positive = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Decay = 0.9
    objective: Objective = "sum"
    boundary: Boundary = "post"
    second_order: bool = False
    spread: NonNegative = 0.0

    @model_validator(mode="after")
    def _boundary_belongs_to_the_sum(self) -> Self:
        if self.objective == "log" and self.boundary != "none":
            raise ValueError(f"the boundary {self.boundary} belongs to the objective sum; use none")
        return self


class Tuning(Settings):
    """How step sizes of hand-made optimizers are found on the meta-training problem: the whole ``grid`` times ``seeds`` starts.

    The default grid is {1, 2, 5} × 10ᵏ from 5e-4 to 1. ``criterion`` is ``best-val``, the smallest log validation loss within
    ``epochs``, or ``final``, the log loss of the training split after them.
    """

    grid: tuple[Positive, ...] = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
    epochs: Natural = 5
    seeds: Natural = 3
    criterion: Criterion = "best-val"


class StepSizeSettings(Settings):
    """A hand-made optimizer: ``lr`` fixes its step size; without it, it is tuned on the meta-training problem."""

    lr: Positive | None = None


class MomentumSettings(StepSizeSettings):
    """``beta`` is the decay of the mean (or of the sum) of gradients."""

    beta: Decay = 0.9


class AdamSettings(StepSizeSettings):
    """``betas`` are the decays of both moments; ``eps`` stands outside the root."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: NonNegative = 1e-8


class RMSpropSettings(StepSizeSettings):
    """``rho`` is the decay of the mean square; ``eps`` stands inside the root."""

    rho: Decay = 0.9
    eps: NonNegative = 1e-10


class AdaGradSettings(StepSizeSettings):
    """``eps`` stands outside the root of the sum of squares."""

    eps: NonNegative = 1e-10
