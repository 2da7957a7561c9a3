"""What can be chosen in UVC, in the baselines of compression, and in the measurement of latency."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
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


class CompressorSettings(Settings):
    """How a row trains: ``epochs`` of AdamW, with a linear warm-up and half a cosine down to ``min_learning_rate``.

    The learning rate is 5e-5 · batch / 512 at the default batch of 1,024, as in the released log.
    """

    epochs: Natural = 120
    learning_rate: Positive = 1e-4
    min_learning_rate: NonNegative = 1e-5
    warmup_epochs: NonNegative = 5
    weight_decay: NonNegative = 0.05
    clip_norm: Positive | None = 1.0

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs before the export, and after it."""
        return 0, self.epochs


class DistillSettings(CompressorSettings):
    """What the rows of this paper share: training from the dense model, which is also the teacher.

    ``epochs`` are those of the second stage; rows that decide without a search add the epochs that a search would take.
    ``alpha`` weighs distillation against the labels, at ``temperature``; ``kd_norm`` "elements" is the released code's, which
    divides by the number of classes too. ``hard`` distillation teaches the teacher's class alone.
    """

    alpha: Fraction = 0.1
    temperature: Positive = 1.0
    kd_norm: Norm = "batch"
    hard: bool = False


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
                f"search_warmup_epochs {self.search_warmup_epochs} leaves nothing of search_epochs {self.search_epochs}: "
                f"lower it, to {self.search_epochs - 1} at most"
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


class S2ViTESettings(BudgetSettings):
    """S²ViTE: heads and neurons go and come back while a network trains from scratch, without a teacher.

    Every block keeps the same number of heads and of neurons, within the budget: as nearly the same share of both as it allows,
    or ``head_share`` of the heads, rounded down, and ``neuron_share`` of the neurons. Every ``interval`` steps, in the first
    ``end`` of training, a share of what is kept is exchanged: ``exchange`` at the start, falling to 0 by half a cosine.
    Defaults are those of the released scripts at a batch of 1,024, whose rate is DeiT's. ``from_scratch`` off starts from the
    dense model and its best units instead of the initial weights and random units; ``alpha`` above 0 then brings the teacher.
    """

    epochs: Natural = 600
    learning_rate: Positive = 1e-3
    clip_norm: Positive | None = None
    alpha: Fraction = 0.0
    head_share: Share | None = None
    neuron_share: Share | None = None
    interval: Natural = 7000
    exchange: Annotated[float, Gt(0), Le(1)] = 0.5
    end: Annotated[float, Gt(0), Lt(1)] = 0.8
    from_scratch: bool = True

    @property
    def stages(self) -> tuple[int, int]:
        """Epochs in which units are exchanged, and those of the network that is left; at least one each."""
        before = max(1, round(self.end * self.epochs))
        return before, max(1, self.epochs - before)


class DynamicViTSettings(CompressorSettings):
    """DynamicViT: predictors drop tokens, picture by picture, in front of some blocks (``places``, by default at the quarters).

    Of the patches, the share ``keep_ratio`` stays at the first place, its square at the second, and so on; a ``budget`` of
    multiply-accumulates, where it is given, decides it instead. The loss is the protocol's, plus ``class_weight`` · KL from the
    dense model's predictions, ``token_weight`` · squared distance of the tokens that stay from its tokens, and ``ratio_weight``
    · squared distance of the shares that stay from those asked for. Predictors learn at ``learning_rate``; the rest stands
    still for ``frozen_epochs``, then learns at ``backbone_rate`` times that. Defaults are those of the paper and its code.
    """

    epochs: Natural = 30
    learning_rate: Positive = 1e-3
    warmup_epochs: NonNegative = 0
    clip_norm: Positive | None = None
    keep_ratio: Share = 0.7
    budget: Share | None = None
    places: tuple[Count, ...] | None = None
    ratio_weight: NonNegative = 2.0
    class_weight: NonNegative = 0.5
    token_weight: NonNegative = 0.5
    backbone_rate: Fraction = 0.01
    frozen_epochs: Count = 5


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
