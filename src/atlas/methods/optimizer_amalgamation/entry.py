"""Plugs Optimizer Amalgamation, its choice policies, its pool and its learned baselines into learned optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import model_validator

from atlas.harness.registry import Amounts, Metric, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.learned_optimization.entry import window_amount

if TYPE_CHECKING:
    from atlas.tasks.learned_optimization.competitors import Competitor

PAPER = paper(
    "optimizer-amalgamation",
    title="Optimizer Amalgamation",
    citation="T. Huang, T. Chen, S. Liu, S. Chang, L. Amini, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.06474",
)
TASK = "learned-optimization"
Natural = Annotated[int, Gt(0)]
Widths = Annotated[tuple[Natural, ...], MinLen(1)]
Weight = Annotated[float, Ge(0)]


class Schedule(Settings):
    """Stages of meta-training; see :class:`.schedule.Curriculum`. The defaults are the published curriculum of students.

    Per stage: windows per draw, in training and in validation; weight of imitation; draws per period.
    """

    depth: tuple[Natural, ...] = (1, 2, 5, 10)
    validation_depth: tuple[Natural, ...] = (2, 5, 10, 20)
    imitation: tuple[Weight, ...] = (0.2, 0.1, 0.05, 0.02)
    resets: tuple[Natural, ...] = (10, 10, 10, 10)
    unroll: Natural = 100
    min_periods: Annotated[int, Ge(0)] = 5
    chances: Annotated[int, Ge(0)] = 5
    repeat_threshold: Weight = 0.5
    max_repeats: Annotated[int, Ge(0)] = 4
    fixed: bool = False
    compare: Literal["train", "validation"] = "train"
    validation_resets: Annotated[int, Ge(0)] = 10
    warmup: Annotated[int, Ge(0)] = 1
    warmup_lr: Annotated[float, Gt(0)] = 0.05
    cold_start: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if len({len(self.depth), len(self.validation_depth), len(self.imitation), len(self.resets)}) != 1:
            raise ValueError("depth, validation_depth, imitation and resets must have one length")
        if not self.fixed and not self.validation_resets:
            raise ValueError("a curriculum that waits for improvements needs validation_resets")
        return self


CHOICE = Schedule(
    depth=(1, 2, 5, 5, 5),
    validation_depth=(10,) * 5,
    imitation=(0.0,) * 5,
    resets=(10,) * 5,
    repeat_threshold=0.9,
    fixed=True,
    compare="validation",
    cold_start=True,
)


class MetaTraining(Settings):
    """How meta-steps are made; see :class:`.trainer.TrainerConfig`."""

    instances: Natural = 1
    lr: Annotated[float, Gt(0)] = 1e-3
    clip: Weight = 0.1
    spread: Weight = 3.0
    huber: Weight = 0.0
    il_mode: Literal["sum", "switch"] = "sum"
    second_order: bool = False
    longest: Natural = 20


class PoolSettings(Settings):
    """The pool: ``small`` is Adam and RMSprop, ``large`` has SGD, Momentum, PowerSign and AddSign too."""

    pool: Literal["small", "large"] = "small"


class StudentSettings(Settings):
    """A student of LSTM cells, its curriculum and meta-optimizer; ``replicates`` are trained side by side in one run."""

    hidden: Widths = (20, 20)
    schedule: Schedule = Schedule()
    meta: MetaTraining = MetaTraining()
    replicates: Annotated[int, Ge(1), Le(64)] = 1


class TaughtSettings(StudentSettings, PoolSettings):
    """A student with a pool of teachers, and noise on its weights in meta-steps: ``none``, ``random`` or ``adversarial``."""

    noise: Literal["none", "random", "adversarial"] = "none"
    eps: Annotated[float, Gt(0)] = 1e-3


class NoisySettings(TaughtSettings):
    """The same with noise."""

    noise: Literal["none", "random", "adversarial"] = "random"


class ChoiceSettings(PoolSettings):
    """A choice policy; ``pool_lr``: the tuned step sizes of the pool, or those (and ε) of the official configuration."""

    hidden: Widths = (20, 20)
    schedule: Schedule = CHOICE
    meta: MetaTraining = MetaTraining()
    pool_lr: Literal["tuned", "official"] = "tuned"
    replicates: Annotated[int, Ge(1), Le(1)] = 1


class LargeChoiceSettings(ChoiceSettings):
    """The same over the large pool."""

    pool: Literal["small", "large"] = "large"


class Plain(Settings):
    """Plain meta-training; see :class:`atlas.l2o.MetaConfig`."""

    windows: Natural = 2000
    unroll: Natural = 20
    depth: Natural = 5
    instances: Natural = 1
    lr: Annotated[float, Gt(0)] = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    second_order: bool = False
    spread: Weight = 0.0


class DMSettings(Settings):
    """L2O-DM: an LSTM on the raw gradient, or on its logarithm and sign."""

    hidden: Widths = (20, 20)
    scale: Annotated[float, Gt(0)] = 0.1
    preprocess: Literal["raw", "log-sign"] = "raw"
    meta: Plain = Plain()


class ScaleSettings(Settings):
    """L2O-Scale: widths of the cells of coordinates, tensors and the network; ``scale`` of the update."""

    hidden: tuple[Natural, Natural, Natural] = (20, 10, 10)
    scale: Annotated[float, Gt(0)] = 1.0
    meta: Plain = Plain()


BEST_REPLICATE = Metric("best_replicate", "best replicate's log val. loss", "lower", ".3f", table=False)
REPLICATE_METRICS = (
    Metric("eval_sd", "sd between evaluations", "lower", ".3f", table=False),
    Metric("meta_sd", "sd between replicates", "lower", ".3f", table=False),
    Metric("meta_sd_train", "sd between replicates, train", "lower", ".3f", table=False),
    BEST_REPLICATE,
    Metric("windows", "meta-training windows", "lower", ".0f", cost=True),
)
_TINY = {"depth": [1, 2], "validation_depth": [1, 1], "imitation": [0.1, 0.1], "resets": [1, 1], "unroll": 2, "fixed": False}
SHORT_SCHEDULE = {**_TINY, "min_periods": 0, "chances": 0, "max_repeats": 1, "validation_resets": 1}
ONE_WINDOW = {
    "depth": [1],
    "validation_depth": [1],
    "imitation": [0.1],
    "resets": [1],
    "unroll": 1,
    "fixed": True,
    "validation_resets": 1,
}
SMALLEST = {"schedule": SHORT_SCHEDULE, "meta": {"longest": 2}, "replicates": 2}
REHEARSAL = {"schedule": ONE_WINDOW, "replicates": 1}


def meta_training_amounts(run: Run) -> Amounts:
    """Windows of the schedule, if nothing is repeated, and optimizees side by side over replicates."""
    settings = run.settings_model(run.recipe[0])
    if isinstance(settings, DMSettings | ScaleSettings):
        return {TRAIN: window_amount(settings.meta.windows, settings.meta.unroll, settings.meta.instances)}
    rules = settings.schedule
    periods = 1 if rules.fixed else rules.min_periods + 1
    windows = periods * sum(resets * depth for resets, depth in zip(rules.resets, rules.depth, strict=True))
    return {TRAIN: window_amount(windows, rules.unroll, settings.meta.instances * settings.replicates)}


def _learned(name: str, title: str, summary: str, settings: type[Settings], **options: Any) -> Any:
    """The decorator of a learned row; what all have in common."""
    return method(
        name,
        task=TASK,
        paper=PAPER,
        title=title,
        summary=summary,
        settings=settings,
        **{
            "extra_metrics": REPLICATE_METRICS,
            "smallest": SMALLEST,
            "rehearsal": REHEARSAL,
            "amounts": meta_training_amounts,
            **options,
        },
    )


@method(
    "oracle",
    task=TASK,
    paper=PAPER,
    title="Oracle of the pool",
    summary="Of the tuned teachers, the one with the smallest validation loss on each problem.",
    role="baseline",
    settings=PoolSettings,
    extra_metrics=(BEST_REPLICATE,),
    train=lambda run: _outside_the_loop(run),
)
def oracle(run: Run, settings: PoolSettings) -> Competitor:
    """Tunes every teacher; the step sizes serve all rows that have teachers."""
    from atlas.methods.optimizer_amalgamation.stages import Oracle

    return Oracle(run, settings)


def _outside_the_loop(run: Run) -> Any:
    from atlas.tasks.learned_optimization.training import train

    return train(run)


def _choice(run: Run, settings: ChoiceSettings) -> Competitor:
    from atlas.methods.optimizer_amalgamation.stages import Choice

    return Choice(run, settings)


def _student(run: Run, settings: StudentSettings) -> Competitor:
    from atlas.methods.optimizer_amalgamation.stages import Distilled

    return Distilled(run, settings)


_CHOICE_OPTIONS = {
    "extra_metrics": tuple(metric for metric in REPLICATE_METRICS if not metric.name.startswith("meta_sd")),  # one replicate
    "role": "ablation",
    "needs": {"teachers": "oracle"},
    "smallest": {**SMALLEST, "replicates": 1},
}
_learned(
    "choice-policy",
    "Choice policy",
    "A small network that weighs the updates of the small pool; the teacher of the optimal-choice student.",
    ChoiceSettings,
    **_CHOICE_OPTIONS,
)(_choice)
_learned(
    "choice-policy-large",
    "Choice policy, large pool",
    "A small network that weighs the updates of the large pool.",
    LargeChoiceSettings,
    **_CHOICE_OPTIONS,
)(_choice)

_learned(
    "amalgamated-choice",
    "Amalgamated, choice",
    "Optimal choice: the student imitates a choice policy over the small pool.",
    StudentSettings,
    needs={"choice": "choice-policy"},
)(_student)
_learned(
    "amalgamated-choice-large",
    "Amalgamated, choice, large pool",
    "Optimal choice over the large pool.",
    StudentSettings,
    needs={"choice": "choice-policy-large"},
)(_student)
_learned(
    "amalgamated-mean",
    "Amalgamated, mean",
    "The student imitates all teachers of the pool alike.",
    TaughtSettings,
    needs={"teachers": "oracle"},
)(_student)
_learned(
    "amalgamated-minmax",
    "Amalgamated, min-max",
    "The student imitates the farthest teacher of the pool at every step.",
    TaughtSettings,
    needs={"teachers": "oracle"},
)(_student)
_learned(
    "amalgamated-noisy",
    "Amalgamated, min-max, noise",
    "Min-max with noise on the student's weights while it is meta-trained, for stability.",
    NoisySettings,
    needs={"teachers": "oracle"},
)(_student)
_learned(
    "untaught",
    "RNNprop, curriculum",
    "The same student with the same curriculum, without teachers.",
    StudentSettings,
    role="baseline",
)(_student)
_learned(
    "rnnprop",
    "RNNprop",
    "The same student, without teachers or curriculum.",
    StudentSettings,
    role="baseline",
)(_student)
_learned(
    "stronger",
    "Stronger baseline",
    "RNNprop with a curriculum and imitation of one teacher, Adam, in a share of the meta-steps (Chen et al., NeurIPS 2020).",
    StudentSettings,
    role="baseline",
    needs={"teachers": "oracle"},
)(_student)


_PLAIN: dict[str, Any] = {
    "role": "baseline",
    "extra_metrics": (),
    "smallest": {"meta": {"windows": 4, "depth": 2, "unroll": 2}},
    "rehearsal": {"meta": {"windows": 1}},
}


@_learned(
    "l2o-dm",
    "L2O-DM",
    "Learning to learn by gradient descent by gradient descent (Andrychowicz et al., NeurIPS 2016).",
    DMSettings,
    **_PLAIN,
)
def l2o_dm(run: Run, settings: DMSettings) -> Competitor:
    """Plainly meta-trained, the sum of losses."""
    from atlas.methods.optimizer_amalgamation.stages import PlainDM

    return PlainDM(run, settings)


@_learned(
    "l2o-scale",
    "L2O-Scale",
    "Recurrences over coordinates, tensors and the network (Wichrowska et al., ICML 2017).",
    ScaleSettings,
    **_PLAIN,
)
def l2o_scale(run: Run, settings: ScaleSettings) -> Competitor:
    """Plainly meta-trained, the sum of losses."""
    from atlas.methods.optimizer_amalgamation.stages import PlainScale

    return PlainScale(run, settings)
