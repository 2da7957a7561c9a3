"""What can be chosen in Optimizer Amalgamation: the curriculum, meta-steps, pools of teachers, students, noise, baselines."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Le, MinLen
from pydantic import model_validator

from atlas.l2o.settings import MetaConfig, Widths
from atlas.settings import Count, Natural, NonNegative, Positive, Settings

Amalgamation = Literal["mean", "minmax", "choice"]
PoolName = Literal["small", "large"]
PoolStepSizes = Literal["tuned", "official"]
NoiseKind = Literal["none", "random", "adversarial"]
Ascent = Literal["normalize", "clip"]
PerStage = Annotated[tuple[Natural, ...], MinLen(1)]


class Curriculum(Settings):
    """Stages of meta-training; the defaults are the published curriculum of students. See :class:`.schedule.CurriculumProgress`.

    Of each stage: ``depth`` and ``validation_depth`` are the windows per draw of optimizees, in training and in validation;
    ``imitation`` is the weight α of the imitation loss; ``resets`` are the draws per period.

    A window has ``unroll`` updates. A stage lasts ``min_periods`` + 1 periods at least, and waits ``chances`` periods for an
    improvement. A period whose loss exceeds its reference by more than ``repeat_threshold`` times the reference's size is
    repeated, ``max_repeats`` times at most. With ``fixed`` a stage is one period, whatever the validation says. ``compare`` says
    whose loss a stage's first period compares with the previous stage's validation. A validation has ``validation_resets``
    draws; 0 leaves it out, and with it repeats. ``warmup`` windows of plain SGD with rate ``warmup_lr`` come before each draw's
    first window; none in the first period with ``cold_start``.
    """

    depth: PerStage = (1, 2, 5, 10)
    validation_depth: PerStage = (2, 5, 10, 20)
    imitation: Annotated[tuple[NonNegative, ...], MinLen(1)] = (0.2, 0.1, 0.05, 0.02)
    resets: PerStage = (10, 10, 10, 10)
    unroll: Natural = 100
    min_periods: Count = 5
    chances: Count = 5
    repeat_threshold: NonNegative = 0.5
    max_repeats: Count = 4
    fixed: bool = False
    compare: Literal["train", "validation"] = "train"
    validation_resets: Count = 10
    warmup: Count = 1
    warmup_lr: Positive = 0.05
    cold_start: bool = False

    @model_validator(mode="after")
    def _stages_are_complete(self) -> Self:
        if len({len(self.depth), len(self.validation_depth), len(self.imitation), len(self.resets)}) != 1:
            raise ValueError("depth, validation_depth, imitation and resets must have one length")
        if not self.fixed and not self.validation_resets:
            raise ValueError("a curriculum that waits for improvements needs validation: validation_resets, or fixed")
        return self

    @classmethod
    def paper(cls) -> Self:
        """The published curriculum of students: at least 6 periods in each of 4 stages, 1,080 windows of 100 steps or more."""
        return cls()

    @classmethod
    def choice(cls) -> Self:
        """The published schedule of choice policies: five periods of depth 1, 2, 5, 5, 5, repeated while much worse."""
        return cls(
            depth=(1, 2, 5, 5, 5),
            validation_depth=(10,) * 5,
            imitation=(0.0,) * 5,
            resets=(10,) * 5,
            repeat_threshold=0.9,
            fixed=True,
            compare="validation",
            cold_start=True,
        )

    @property
    def stages(self) -> int:
        """Number of stages that a training passes through."""
        return len(self.depth)

    def windows_at_least(self) -> int:
        """Meta-steps if nothing is repeated and nothing improves after the first periods."""
        return self._windows(self.least_periods)

    def windows_at_most(self, longest: int = 20) -> int:
        """A bound on meta-steps: every period repeated, and at most ``longest`` periods per stage."""
        return self._windows((1 if self.fixed else longest) * (self.max_repeats + 1))

    @property
    def least_periods(self) -> int:
        """Periods of a stage if nothing is repeated and nothing improves after the first ones."""
        return 1 if self.fixed else self.min_periods + 1

    def draws_at_least(self) -> int:
        """Draws of optimizees in training, if nothing is repeated and nothing improves after the first periods."""
        return self.least_periods * sum(self.resets)

    def validations_at_least(self) -> int:
        """Validations, of ``validation_resets`` draws each: one at the end of every period."""
        return self.least_periods * self.stages if self.validation_resets else 0

    def validation_windows_at_least(self) -> int:
        """Least number of windows that all validations of a meta-training unroll."""
        return self.least_periods * self.validation_resets * sum(self.validation_depth)

    def _windows(self, periods: int) -> int:
        return sum(periods * resets * depth for resets, depth in zip(self.resets, self.depth, strict=True))


class TrainerConfig(Settings):
    """How meta-steps are made; the defaults are the paper's.

    ``instances`` optimizees stand side by side. The meta-optimizer is Adam with step size ``lr`` and adaptive clipping at
    ``clip`` of a tensor's norm; 0 does not clip. Coordinates are scaled by exp U(−``spread``, ``spread``). Distances are Huber's
    with δ = ``huber``, or squared ones for 0. ``il_mode`` is ``sum``, the meta-loss plus α times imitation, or ``switch``, one of
    the two, imitation with probability α. ``second_order`` differentiates through the optimizee's gradient too, as the official
    graph does. A stage has ``longest`` periods at most.
    """

    instances: Natural = 1
    lr: Positive = 1e-3
    clip: NonNegative = 0.1
    spread: NonNegative = 3.0
    huber: NonNegative = 0.0
    il_mode: Literal["sum", "switch"] = "sum"
    second_order: bool = False
    longest: Natural = 20


class PoolSettings(Settings):
    """The pool: ``small`` is Adam and RMSprop, ``large`` has SGD, Momentum, PowerSign and AddSign too."""

    pool: PoolName = "small"


class ChoiceConfig(Settings):
    """How a choice policy is trained: ``hidden`` are the widths of its cells, then its schedule and its meta-steps."""

    hidden: Widths = (20, 20)
    schedule: Curriculum = Curriculum.choice()
    trainer: TrainerConfig = TrainerConfig()


class ChoiceSettings(ChoiceConfig, PoolSettings):
    """``pool_lr``: the pool acts with its tuned step sizes, or with those (and ε) of the official configuration.

    One choice policy is trained per run: it is a teacher.
    """

    replicates: ClassVar[int] = 1
    pool_lr: PoolStepSizes = "tuned"


class StudentSettings(Settings):
    """A student with cells of widths ``hidden``, its curriculum and meta-steps; ``replicates`` are trained side by side."""

    hidden: Widths = (20, 20)
    schedule: Curriculum = Curriculum.paper()
    trainer: TrainerConfig = TrainerConfig()
    replicates: Annotated[Natural, Le(64)] = 1


class NoiseSettings(Settings):
    """Noise of relative size ``eps`` on a student's weights in meta-steps; the paper's best size is 1e-3."""

    noise: NoiseKind = "none"
    eps: Positive = 1e-3


class TaughtSettings(NoiseSettings, StudentSettings, PoolSettings):
    """A student with a pool of teachers, and perhaps noise on its weights."""


class L2ODMSettings(Settings):
    """L2O-DM: an LSTM on the ``raw`` gradient, or on its logarithm and sign; ``scale`` multiplies its output."""

    hidden: Widths = (20, 20)
    scale: Positive = 0.1
    preprocess: Literal["raw", "log-sign"] = "raw"
    meta: MetaConfig = MetaConfig()


class L2OScaleSettings(Settings):
    """L2O-Scale: widths of the cells of coordinates, of tensors and of the network; ``scale`` multiplies the update."""

    hidden: tuple[Natural, Natural, Natural] = (20, 10, 10)
    scale: Positive = 1.0
    meta: MetaConfig = MetaConfig()
