"""From an optimizer to an equation: record, regress, select, judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas.l2o import History, MetaConfig, Optimizee, Policy, meta_train
from atlas.l2o.policies import require_policy
from atlas.methods.symbolic_l2o.expressions import Expression
from atlas.methods.symbolic_l2o.interpretability import mapping_complexity, r_squared, temporal_perception_field
from atlas.methods.symbolic_l2o.policy import SymbolicPolicy
from atlas.methods.symbolic_l2o.recording import Records, features_of, record
from atlas.methods.symbolic_l2o.regression import ParetoEntry, get_backend, pareto_front
from atlas.methods.symbolic_l2o.rules import Rule
from atlas.methods.symbolic_l2o.settings import ALPHA, EquationSettings, RecordSettings, RuleSettings, SRConfig
from atlas.nn.bars import track
from atlas.nn.kinds import require_kind, require_whole

RECORD, EQUATION, RULE = RecordSettings(), EquationSettings(), RuleSettings()

TOLERANCE = 0.02
"""How far below the best R² of a front the selected expression may stay."""


@dataclass(frozen=True)
class Distillation:
    """What became of an optimizer.

    Attributes
    ----------
    front : list of ParetoEntry
        By growing complexity; losses are those of the rows of the search.
    r2_test : list of float
        R² of each entry on the held-out run.
    selected : Expression
        The simplest one whose R² on the held-out run is within 0.02 of the best.
    r2 : float
        Of the selected expression, on the held-out run.
    tpf : dict
        Its temporal perception field, per feature.
    mc : int
        Its mapping complexity.
    bound : float
        R² that gradient boosting reaches on the same rows: what the window of features allows at all.
    features, lags
        What the expression may look at.
    engine : str
        Which engine found it.
    """

    front: list[ParetoEntry]
    r2_test: list[float]
    selected: Expression
    r2: float
    tpf: dict[str, float]
    mc: int
    bound: float
    features: tuple[str, ...]
    lags: int
    engine: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for a ``rule.json`` that people can read: the equation, its scores, and the whole front."""
        front = [
            {"complexity": entry.complexity, "loss": entry.loss, "r2_test": r2, "expression": str(entry.expression)}
            for entry, r2 in zip(self.front, self.r2_test, strict=True)
        ]
        return {
            "expression": str(self.selected),
            "latex": self.selected.latex(),
            "engine": self.engine,
            "features": list(self.features),
            "lags": self.lags,
            "r2_test": self.r2,
            "r2_bound": self.bound,
            "mapping_complexity": self.mc,
            "temporal_perception_field": {name: None if math.isnan(value) else value for name, value in self.tpf.items()},
            "front": front,
        }


def simplest_of_best(front: Sequence[ParetoEntry], r2_test: Sequence[float]) -> int:
    """Index of the simplest expression within 0.02 of the best R² of a front.

    Raises
    ------
    ValueError
        The front is empty.
    """
    if not front:
        raise ValueError("the front is empty: no expression is finite on all rows")
    best = max(r2_test)
    return next(index for index, value in enumerate(r2_test) if value >= best - TOLERANCE)


def distill_records(
    records: Records,
    features: Sequence[str],
    lags: int,
    *,
    backend: str = EQUATION.engine,
    cfg: SRConfig | None = None,
    seed: int = 0,
    searches: int = EQUATION.searches,
    progress: bool | None = None,
) -> Distillation:
    """Find the equation behind recorded rows; the last run is held out. See :func:`distill`.

    Parameters
    ----------
    searches : int
        Searches from different seeds, whose fronts are merged.
    progress : bool, optional
        Whether to draw a bar; by default on a terminal.
    """
    require_kind(Records, "Records, as record(…) or Records.load(path) makes them,", records=records)
    require_whole(searches=searches)
    train, test = records.split()
    settings, engine = cfg or SRConfig(), get_backend(backend)
    candidates: list[Expression] = []
    for attempt in track(range(searches), "search equations", searches, progress):
        front = engine.fit(train.X, train.y, train.names, settings, seed + attempt)
        candidates += [entry.expression for entry in front]
    front = pareto_front(candidates, train.X, train.y, train.names)
    env = dict(zip(test.names, test.X.T, strict=True))
    scores = [r_squared(entry.expression.numpy(env), test.y) for entry in front]
    index = simplest_of_best(front, scores)
    chosen = front[index].expression
    return Distillation(
        front=front,
        r2_test=scores,
        selected=chosen,
        r2=scores[index],
        tpf=temporal_perception_field(chosen, test.X, features, lags),
        mc=mapping_complexity(chosen),
        bound=boosting_bound(train, test, seed),
        features=tuple(features),
        lags=lags,
        engine=engine.name,
    )


def distill(
    policy: Policy,
    problems: Optimizee | Sequence[Optimizee],
    *,
    lags: int = RECORD.lags,
    runs: int = RECORD.runs,
    steps: int = RECORD.steps,
    backend: str = EQUATION.engine,
    seed: int = 0,
    features: Sequence[str] | None = None,
    cfg: SRConfig | None = None,
    searches: int = EQUATION.searches,
    progress: bool | None = None,
) -> Distillation:
    """Turn a learned optimizer into an equation.

    Parameters
    ----------
    policy : Policy
        Not changed.
    problems : Optimizee or sequence of Optimizee
        What it is recorded on.
    lags, runs, steps : int
        Steps that the equation sees; trajectories, of which the last is held out; their length.
    backend : str
        ``operon``, ``pysr`` or ``lstsq``.
    features : sequence of str, optional
        By default those that the policy is fed.
    cfg : SRConfig, optional
        Of the search.
    searches : int
        Searches from different seeds, whose fronts are merged.
    progress : bool, optional
        Whether to draw a bar; by default on a terminal.

    Raises
    ------
    ValueError
        Fewer than 2 runs, ``lags`` < 1, an unknown engine or feature, or a policy whose updates are constant.
    RuntimeError
        The engine's software is not installed.
    """
    get_backend(backend)
    require_policy(policy=policy)
    names = features_of(policy, features)
    records = record(policy, problems, features=names, lags=lags, runs=runs, steps=steps, seed=seed, progress=progress)
    return distill_records(records, names, lags, backend=backend, cfg=cfg, seed=seed, searches=searches, progress=progress)


def boosting_bound(train: Records, test: Records, seed: int = 0) -> float:
    """R² of gradient-boosted trees on the held-out run: what is there to be explained by this window."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(random_state=seed).fit(train.X, train.y)
    return r_squared(np.asarray(model.predict(test.X)), test.y)


def meta_tune(
    rule: Rule,
    problem: Optimizee,
    cfg: MetaConfig,
    gen: Any,
    *,
    lr: float = ALPHA,
    betas: tuple[float, float] = RULE.betas,
    clamp: float | None = RULE.clamp,
) -> History:
    """Fine-tune a rule's numbers in place by meta-training, as the recurrent optimizer was trained; returns a row per window.

    Parameters
    ----------
    rule : Rule
        Template or expression.
    lr, betas, clamp
        As in :class:`.policy.SymbolicPolicy`.

    Raises
    ------
    ValueError
        The rule has nothing to train.
    """
    require_kind(Rule, "a Rule, such as ExpressionRule(expression) or TanhTemplate(…),", rule=rule)
    if not any(parameter.requires_grad and parameter.numel() for parameter in rule.parameters()):
        raise ValueError("the rule has no constants to tune")
    return meta_train(SymbolicPolicy(rule, lr, betas, clamp), problem, cfg, gen)
