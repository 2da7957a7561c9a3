"""What can be chosen in Symbolic Learning to Optimize: networks, records, the search for equations, and rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen
from pydantic import field_serializer, field_validator

from atlas.l2o.settings import Decay, MomentumSettings
from atlas.l2o.settings import MetaConfig as MetaConfig
from atlas.methods.symbolic_l2o.expressions import OPERATORS
from atlas.settings import Natural, Positive, Settings

Engine = Literal["operon", "pysr", "lstsq"]
ALPHA = 0.01
"""Scale α of the updates of networks and equations."""
DEFAULT_OPERATORS = frozenset({"add", "sub", "mul", "tanh", "abs", "square"})
OPERON_OPERATORS = DEFAULT_OPERATORS | {"aq", "sqrtm"}
PAPER_OPERATORS = frozenset(OPERATORS) - {"sub", "neg", "aq", "power"}
OPERATOR_SETS = {"portable": DEFAULT_OPERATORS, "operon": OPERON_OPERATORS, "paper": PAPER_OPERATORS}
"""Named sets of operators: those with which a seed of pyoperon finds the same equations on every x86-64 processor, these and the
two that take a square root, and the paper's, for PySR. Pyoperon 0.6.2 takes roots by refining what the processor approximates."""


class TeacherSettings(Settings):
    """The recurrent optimizer: ``size`` is one of the paper's, ``scale`` the largest update α."""

    size: Literal["rp", "rp-small", "rp-small-inputs", "rp-five"] = "rp"
    scale: Positive = ALPHA
    meta: MetaConfig = MetaConfig()


class RecordSettings(Settings):
    """``runs`` trajectories of ``steps`` updates each, of which the last is held out.

    Rows are windows of ``lags`` steps, the present one included, of ``coordinates`` coordinates of every tensor.
    """

    lags: Natural = 10
    runs: Annotated[int, Ge(2)] = 4
    steps: Natural = 200
    coordinates: Natural = 10


class SRConfig(Settings):
    """What a search for an equation may use, and how long it takes.

    ``operators`` are names of :data:`~.expressions.OPERATORS`, or the name of a set: ``portable``, ``operon``, which has the
    square roots ``aq`` and ``sqrtm`` as well, or ``paper``. With roots, the equation that pyoperon finds depends on the
    processor. ``max_size`` and ``max_depth`` bound an expression, in nodes and in nodes along a path, as the engine counts them.
    ``time_limit_s`` is for engines that stop on time (PySR); pyoperon stops on ``generations`` of a ``population``, so that a
    seed gives one answer.
    ``rows`` are used, drawn by the seed where there are more. ``standardize`` divides every column by its standard deviation
    during the search, which is folded back into the expressions; columns are not centred, since features of gradients are
    symmetric about 0.
    ``n_threads`` are the engine's; more than one is not reproducible in every engine.
    """

    operators: frozenset[str] = DEFAULT_OPERATORS
    max_size: Natural = 40
    max_depth: Natural = 10
    time_limit_s: Positive = 60.0
    rows: Natural = 1500
    standardize: bool = True
    n_threads: Natural = 1
    population: Natural = 200
    generations: Natural = 400

    @field_validator("operators", mode="before")
    @classmethod
    def _operators_are_known(cls, given: Any) -> Any:
        if isinstance(given, str):
            if given not in OPERATOR_SETS:
                raise ValueError(
                    f"there is no set of operators {given}; choose from {', '.join(OPERATOR_SETS)}, or list operators"
                )
            return OPERATOR_SETS[given]
        for name in given:
            if name not in OPERATORS:
                raise ValueError(f"there is no operator {name}; choose from {', '.join(OPERATORS)}")
        return given

    @field_serializer("operators")
    def _named_where_there_is_a_name(self, operators: frozenset[str]) -> str | list[str]:
        return next((name for name, members in OPERATOR_SETS.items() if members == operators), sorted(operators))


class EquationSettings(SRConfig):
    """The search for an equation by an ``engine``; the fronts of ``searches`` from different seeds are merged into one."""

    engine: Engine = "operon"
    searches: Natural = 1


class SymbolicSettings(Settings):
    """``clamp`` bounds the magnitude of what a rule returns, where what is not finite becomes 0; ``null`` leaves it as it is."""

    clamp: Positive | None = 1.0


class RuleSettings(SymbolicSettings):
    """What a rule sees: ``features`` of the gradients with decay rates ``betas``, at the last ``lags`` steps."""

    features: Annotated[tuple[str, ...], MinLen(1)] = ("m", "g")
    betas: tuple[Decay, Decay] = (0.95, 0.95)
    lags: Natural = 10


class OptimizerSettings(RuleSettings):
    """An equation trains the recipe, at the protocol's learning rate and weight decay.

    ``rule`` is text over ``"{feature}_{lag}"``; or a ``file`` relative to the checkout, such as the ``rule.json`` of a search.
    """

    rule: str = "-tanh(m_0)"
    file: str | None = None


class TemplateSettings(SymbolicSettings):
    """ψ = −Σ W γ tanh(z/γ), with W by least squares on the records, and γ the best of the grid ``gammas``."""

    gammas: Annotated[tuple[Positive, ...], MinLen(1)] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class TunedTemplateSettings(SymbolicSettings):
    """The template's numbers, fine-tuned by meta-training."""

    meta: MetaConfig = MetaConfig()


class CosineSettings(MomentumSettings):
    """Heavy ball whose step size falls by half a cosine to 0 within ``steps`` updates."""

    steps: Natural = 1000


class RecoverySettings(RecordSettings):
    """Synthetic gradients, what the known optimizer ``target`` makes of them (momentum with ``beta``), and the search."""

    target: Literal["sgd", "momentum"] = "sgd"
    beta: Decay = 0.6
    search: EquationSettings = EquationSettings()
