"""What can be chosen in UVC, in the baselines of compression, and in the measurement of latency."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Lt
from pydantic import model_validator

from atlas.settings import Count, Fraction, Natural, NonNegative, Positive, Settings, Share

Norm = Literal["batch", "elements"]
ValueLayout = Literal["padded", "uniform"]
ControllerPreset = Literal["normalised", "reference"]
Gate = Literal["gumbel_soft", "gumbel_hard", "softl0"]
WeightCriterion = Literal["magnitude", "taylor", "gradual"]
BlockOrder = Literal["spaced", "first"]

PLANS = {"uvc": "blocks, heads and neurons", "ragged": "dims and neurons", "skip": "blocks alone"}
"""Plans whose latency is measured, and what they remove."""


class DistillSettings(Settings):
    """What every row of this paper shares: training from the dense model, which is also the teacher.

    ``epochs`` are those of the second stage; rows that decide without a search add the epochs that a search would take. The
    learning rate is 5e-5 · batch / 512 at the default batch of 1,024, as in the released log; cosine to ``min_learning_rate``.
    ``alpha`` weighs distillation against the labels, at ``temperature``; ``kd_norm`` "elements" is the released code's, which
    divides by the number of classes too. ``hard`` distillation teaches the teacher's class alone.
    """

    epochs: Natural = 120
    learning_rate: Positive = 1e-4
    min_learning_rate: NonNegative = 1e-5
    warmup_epochs: NonNegative = 5
    weight_decay: NonNegative = 0.05
    clip_norm: Positive | None = 1.0
    alpha: Fraction = 0.1
    temperature: Positive = 1.0
    kd_norm: Norm = "batch"
    hard: bool = False

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs before the export, and after it."""
        return 0, self.epochs


class BudgetSettings(DistillSettings):
    """``budget`` is the share of multiply-accumulates left. ``v_layout``: see ``atlas.methods.uvc.export``."""

    budget: Share = 0.5
    v_layout: ValueLayout = "padded"


class UVCSettings(BudgetSettings):
    """The search: epochs, of which the first pass one half through every gate; constants of the controller by ``preset``.

    ``pace`` speeds the controller up in searches of few steps: one step counts for so many. The presets suit searches of a few
    hundred steps and more.
    """

    search_epochs: Natural = 30
    search_warmup_epochs: Count = 5
    search_learning_rate: Positive = 1e-4
    preset: ControllerPreset = "normalised"
    gate: Gate = "gumbel_soft"
    pace: Positive = 1.0

    @model_validator(mode="after")
    def _some_search(self) -> Self:
        if self.search_warmup_epochs >= self.search_epochs:
            raise ValueError(
                f"search_warmup_epochs {self.search_warmup_epochs} leaves nothing of search_epochs {self.search_epochs}"
            )
        return self

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs of the search, and of the second stage."""
        return self.search_epochs, self.epochs


class CriterionSettings(DistillSettings):
    """What goes is decided by a criterion instead of a search.

    ``batches`` feed the criteria that look at gradients. Gradual pruning reaches its end in ``jumps`` over the first ``ramp`` of
    the epochs.
    """

    batches: Natural = 10
    jumps: Natural = 20
    ramp: Annotated[float, Gt(0), Lt(1)] = 0.4


class StructuredSettings(CriterionSettings, BudgetSettings):
    """``criterion``: one-shot magnitude, Taylor, gradual magnitude, or the S²ViTE-like saliency, one share for every layer."""

    criterion: Literal[WeightCriterion, "saliency"] = "magnitude"

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs of gradual pruning's ramp, at least one, and the rest; other criteria decide at once."""
        if self.criterion != "gradual":
            return super().stages
        ramp = max(1, round(self.ramp * self.epochs))
        return ramp, max(1, self.epochs - ramp)


class BlindSettings(BudgetSettings):
    """Whole blocks go, chosen without looking: evenly spaced ones stay, or the first ones.

    ``from_scratch`` trains the shallower model from the recipe's initial weights instead of the trained ones.
    """

    order: BlockOrder = "spaced"
    from_scratch: bool = False


class UnstructuredSettings(CriterionSettings):
    """Single weights go: the share ``sparsity`` of all linear and convolutional weights but the classifier's.

    Computation and latency stay as they were.
    """

    sparsity: Annotated[float, Ge(0), Lt(1)] = 0.5
    criterion: WeightCriterion = "magnitude"


class LatencySettings(Settings):
    """A ViT of random weights (DeiT-Tiny at 224 pixels by default), exported under several plans and timed beside the dense one.

    ``budget`` is that of the pruned plans; ``blocks`` stay in the plan that only skips. ``rounds`` are interleaved forward passes
    of ``batch`` images, after ``warmup`` ones.
    """

    img_size: Natural = 224
    patch_size: Natural = 16
    embed_dim: Natural = 192
    depth: Annotated[int, Ge(2)] = 12
    num_heads: Natural = 3
    budget: Share = 0.5
    blocks: Natural = 6
    batch: Natural = 4
    rounds: Annotated[int, Ge(2)] = 20
    warmup: Natural = 3

    @model_validator(mode="after")
    def _some_blocks_go(self) -> Self:
        if self.blocks >= self.depth:
            raise ValueError(f"blocks {self.blocks} must be less than depth {self.depth}")
        return self
