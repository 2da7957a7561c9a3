"""Plugs the chain of Symbolic Learning to Optimize into learned optimization, and its optimizer into image classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from atlas.harness.registry import Amount, Amounts, Metric, method, paper
from atlas.harness.run import Run
from atlas.nn.work import TRAIN
from atlas.settings import Settings
from atlas.tasks.learned_optimization.entry import window_amount

if TYPE_CHECKING:
    from atlas.tasks.image_classification.ingredients import Ingredient
    from atlas.tasks.learned_optimization.competitors import Competitor

PAPER = paper(
    "symbolic-l2o",
    title="Symbolic Learning to Optimize: Towards Interpretability and Scalability",
    citation="W. Zheng, T. Chen, T.-K. Hu, Z. Wang, ICLR 2022",
    url="https://arxiv.org/abs/2203.06578",
)
TASK = "learned-optimization"
Natural = Annotated[int, Gt(0)]
Positive = Annotated[float, Gt(0)]
Rate = Annotated[float, Ge(0), Lt(1)]
Engine = Literal["operon", "pysr", "lstsq"]


class Meta(Settings):
    """Meta-training by windows; see :class:`atlas.l2o.MetaConfig`. The defaults are the paper's for the network."""

    windows: Natural = 2000
    unroll: Natural = 20
    depth: Natural = 10
    instances: Natural = 1
    lr: Positive = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    boundary: Literal["post", "pre", "none"] = "post"


class TeacherSettings(Settings):
    """The recurrent optimizer: ``size`` is one of the paper's, ``scale`` the largest update α."""

    size: Literal["rp", "rp-small", "rp-small-inputs", "rp-five"] = "rp"
    scale: Positive = 0.01
    meta: Meta = Meta()


class SmallTeacherSettings(TeacherSettings):
    """The same in the paper's small size."""

    size: Literal["rp", "rp-small", "rp-small-inputs", "rp-five"] = "rp-small"


class RecordSettings(Settings):
    """``runs`` trajectories of ``steps`` steps; windows of ``lags`` steps of some ``coordinates`` of every tensor."""

    lags: Natural = 20
    runs: Annotated[int, Ge(2)] = 12
    steps: Natural = 300
    coordinates: Natural = 10


class EquationSettings(Settings):
    """The search for an equation; see :class:`.regression.SRConfig`. ``searches`` are merged into one front."""

    engine: Engine = "operon"
    operators: Literal["operon", "paper"] = "operon"
    rows: Natural = 10_000
    max_size: Natural = 40
    generations: Natural = 400
    population: Natural = 200
    time_limit_s: Positive = 600.0
    searches: Natural = 3


class SymbolicSettings(Settings):
    """``clamp`` bounds what an equation that imitates a tanh may return; not finite becomes 0."""

    clamp: Positive = 1.0


class TemplateSettings(SymbolicSettings):
    """ψ = −Σ W γ tanh(z/γ), W by least squares on the records, γ from a grid."""

    gammas: Annotated[tuple[Positive, ...], MinLen(1)] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class TunedSettings(SymbolicSettings):
    """The template's numbers, fine-tuned by meta-training."""

    meta: Meta = Meta(windows=400, unroll=10, lr=1e-2)


class CosineSettings(Settings):
    """Heavy ball whose step size falls by half a cosine to 0 within ``steps`` steps; tuned on the meta-training problem."""

    beta: Rate = 0.9
    steps: Natural = 1000
    lr: Positive | None = None


class RecoverySettings(Settings):
    """Synthetic gradients, what a known optimizer makes of them, and the search for its equation."""

    target: Literal["sgd", "momentum"] = "sgd"
    beta: Rate = 0.6
    lags: Natural = 10
    runs: Annotated[int, Ge(2), Le(100)] = 4
    steps: Natural = 300
    coordinates: Natural = 20
    search: EquationSettings = EquationSettings(rows=1500, generations=100, searches=1)


FIDELITY = (
    Metric("r2_test", "R², held-out run", "higher", ".3f"),
    Metric("r2_bound", "R² of gradient boosting", "neither", ".3f", table=False),
    Metric("mapping_complexity", "nodes", "lower", ".0f"),
    Metric("tpf_max", "temporal field", "lower", ".2f"),
)
TINY_SEARCH = {"generations": 3, "population": 20, "searches": 1, "rows": 200}
TINY_META = {"windows": 4, "unroll": 3, "depth": 2}


def _learned(run: Run) -> Mapping[str, Any]:
    """Training of rows whose result is not weights: the task's own function, by another name for the registry."""
    from atlas.tasks.learned_optimization.training import train

    return train(run)


def _competitor(kind: str) -> Any:
    """A builder of one of the competitors in :mod:`.stages`."""

    def build(run: Run, settings: Settings) -> Competitor:
        from atlas.methods.symbolic_l2o import stages

        found: Competitor = getattr(stages, kind)(run, settings)
        return found

    return build


def _row(name: str, kind: str, title: str, summary: str, settings: type[Settings], **options: Any) -> None:
    method(name, task=TASK, paper=PAPER, title=title, summary=summary, settings=settings, **options)(_competitor(kind))


def _stage(name: str, kind: str, title: str, summary: str, settings: type[Settings], **options: Any) -> None:
    _row(name, kind, title, summary, settings, role="stage", metrics=(), train=_learned, **options)


RECORDING = "recording"
"""Letting the teacher train, to see what it does."""


def _meta_amounts(run: Run) -> Amounts:
    """Windows of the meta-training."""
    meta = run.settings_model(run.recipe[0]).meta
    return {TRAIN: window_amount(meta.windows, meta.unroll, meta.instances)}


def _recording_amounts(run: Run) -> Amounts:
    """Steps of the recorded runs, one after the other."""
    settings = run.settings_model(run.recipe[0])
    return {RECORDING: Amount(1, settings.runs * settings.steps, 1)}


_row(
    "rp-small",
    "Teacher",
    "RP, small",
    "RNNprop with one LSTM cell of 7, plainly meta-trained: the network that the equation imitates.",
    SmallTeacherSettings,
    role="baseline",
    smallest={"meta": TINY_META},
    rehearsal={"meta": {"windows": 1}},
    amounts=_meta_amounts,
)
_row(
    "rp",
    "Teacher",
    "RP",
    "RNNprop with two LSTM cells of 20, plainly meta-trained.",
    TeacherSettings,
    role="baseline",
    smallest={"meta": TINY_META},
    rehearsal={"meta": {"windows": 1}},
    amounts=_meta_amounts,
)

for _teacher, _symbolic, _title in (
    ("rp-small", "symbolic", "Equation of RP, small"),
    ("rp", "symbolic-rp", "Equation of RP"),
    ("l2o-dm", "symbolic-dm", "Equation of L2O-DM"),
):
    _stage(
        f"{_teacher}-records",
        "Recorder",
        f"Records of {_teacher}",
        "What the network sees and does on training runs: rows.npz.",
        RecordSettings,
        needs={"teacher": _teacher},
        smallest={"lags": 3, "runs": 2, "steps": 20, "coordinates": 4},
        rehearsal={"lags": 3, "runs": 2, "steps": 16},
        amounts=_recording_amounts,
    )
    _stage(
        f"{_teacher}-equation",
        "Regression",
        f"Symbolic regression of {_teacher}",
        "The front of equations that imitate the network, and the one selected: rule.json.",
        EquationSettings,
        needs={"records": f"{_teacher}-records", "teacher": _teacher},
        smallest=TINY_SEARCH,
        rehearsal={**TINY_SEARCH, "engine": "operon"},
    )
    _row(
        _symbolic,
        "Symbolic",
        _title,
        "The distilled equation as an optimizer, as the search found it.",
        SymbolicSettings,
        needs={"equation": f"{_teacher}-equation", "teacher": _teacher},
        extra_metrics=(*FIDELITY, Metric("network_tpf_max", "temporal field of the network", "neither", ".2f", table=False)),
        train=_learned,
    )

_row(
    "template",
    "Template",
    "Template, least squares",
    "A sum of squashed features fitted to what the small network does.",
    TemplateSettings,
    role="ablation",
    needs={"records": "rp-small-records", "teacher": "rp-small"},
    extra_metrics=(FIDELITY[0], FIDELITY[2]),
)
_row(
    "template-tuned",
    "TunedTemplate",
    "Template, meta-tuned",
    "The template with its numbers fine-tuned by meta-training: the paper's symbolic optimizer.",
    TunedSettings,
    needs={"template": "template", "teacher": "rp-small"},
    extra_metrics=(FIDELITY[2],),
    smallest={"meta": TINY_META},
    rehearsal={"meta": {"windows": 1}},
    amounts=_meta_amounts,
)
_row(
    "momentum-cosine",
    "Cosine",
    "Momentum, cosine",
    "Heavy ball with a cosine schedule, the strong baseline on residual networks; step size tuned.",
    CosineSettings,
    role="baseline",
    extra_metrics=(Metric("tuned_lr", "step size", "neither", ".3g", table=False),),
    train=_learned,
)


def _train_recovery(run: Run) -> Mapping[str, Any]:
    from atlas.methods.symbolic_l2o.stages import recover

    return recover(run)


def _evaluate_recovery(run: Run) -> Mapping[str, float]:
    from atlas.harness.execute import training_summary

    return {metric.name: training_summary(run)[metric.name] for metric in FIDELITY}


@method(
    "recovery",
    task=TASK,
    paper=PAPER,
    title="recovery",
    summary="Whether the search finds the equation of an optimizer that is known.",
    settings=RecoverySettings,
    metrics=FIDELITY,
    train=_train_recovery,
    evaluate=_evaluate_recovery,
    smallest={"steps": 60, "coordinates": 4, "runs": 2, "search": TINY_SEARCH},
    rehearsal={"search": TINY_SEARCH},
)
def recovery(run: Run, settings: RecoverySettings) -> RecoverySettings:
    """Nothing is trained but an equation: the settings are all there is."""
    return settings


class OptimizerSettings(Settings):
    """An equation trains the recipe, at the protocol's learning rate and weight decay.

    ``rule`` is text over ``"{feature}_{lag}"``; or a ``file`` relative to the checkout, such as the ``rule.json`` of a search.
    """

    rule: str = "-tanh(m_0)"
    file: str | None = None
    features: Annotated[tuple[str, ...], MinLen(1)] = ("m", "g")
    betas: tuple[Rate, Rate] = (0.95, 0.95)
    lags: Natural = 10
    clamp: Positive | None = 1.0


@method(
    "symbolic-optimizer",
    task="image-classification",
    paper=PAPER,
    title="symbolic optimizer",
    summary="An equation takes AdamW's place; it stands in any recipe.",
    settings=OptimizerSettings,
    phase="training",
)
def symbolic_optimizer(run: Run, settings: OptimizerSettings) -> Ingredient:
    """The large-scale use: the optimizer was found on small networks."""
    from atlas.methods.symbolic_l2o.ingredient import SymbolicTraining

    return SymbolicTraining(settings, run.root)
