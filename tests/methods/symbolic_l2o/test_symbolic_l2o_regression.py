"""Engines of symbolic regression: what they find is what they say, and it is reproducible."""

from __future__ import annotations

import importlib.util
import shutil
from itertools import pairwise

import numpy as np
import pytest

from atlas.methods.symbolic_l2o.expressions import parse
from atlas.methods.symbolic_l2o.regression import (
    PAPER_OPERATORS,
    LstsqBackend,
    OperonBackend,
    PySRBackend,
    SRBackend,
    SRConfig,
    get_backend,
    pareto_front,
)

NAMES = ("m_0", "g_0", "m_1", "g_1")
QUICK = SRConfig(generations=60, population=100, max_size=20)


def rows(count: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)) * np.array([1.0, 0.1, 3.0, 1.0])


def r2(entry_loss: float, y: np.ndarray) -> float:
    return 1 - entry_loss / float(np.var(y))


@pytest.mark.parametrize("backend", [OperonBackend(), LstsqBackend()], ids=lambda backend: backend.name)
def test_front_is_sorted_strictly_improving_and_measured_by_us(backend: SRBackend) -> None:
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    X = rows()
    y = -np.tanh(2 * X[:, 0]) + 0.3 * X[:, 3]
    front = backend.fit(X, y, NAMES, QUICK, 1)
    assert [entry.complexity for entry in front] == sorted({entry.complexity for entry in front})
    assert all(later.loss < earlier.loss for earlier, later in pairwise(front))
    for entry in front:
        assert entry.complexity == entry.expression.complexity
        found = entry.expression.numpy(dict(zip(NAMES, X.T, strict=True)))
        assert entry.loss == pytest.approx(float(np.mean((np.broadcast_to(found, y.shape) - y) ** 2)))
    assert r2(front[-1].loss, y) > 0.98


def test_operon_finds_gradient_descent() -> None:
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    X = rows()
    y = -0.01 * X[:, 1]
    front = OperonBackend().fit(X, y, NAMES, QUICK, 0)
    assert r2(front[-1].loss, y) > 0.9999


def test_operon_gives_one_answer_per_seed_and_leaves_out_what_it_lacks() -> None:
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    X = rows(200)
    y = np.maximum(X[:, 0], 0) - np.minimum(X[:, 3], X[:, 0])
    cfg = SRConfig(generations=20, population=60, max_size=20, operators=PAPER_OPERATORS)
    first, second = (OperonBackend().fit(X, y, NAMES, cfg, 3) for _ in range(2))
    assert first == second
    assert r2(first[-1].loss, y) > 0.7


def test_operon_trees_are_read_exactly() -> None:
    """Our reading of every tree of a front has the error that Operon reports for it."""
    sklearn = pytest.importorskip("pyoperon.sklearn", reason="pyoperon is not installed")
    from atlas.methods.symbolic_l2o.regression import read_operon

    X = np.asfortranarray(rows(300, 5))
    y = X[:, 0] / (1 + X[:, 1] ** 2) - np.abs(X[:, 3]) + np.exp(-np.square(X[:, 0]))
    symbols = "add,sub,mul,div,aq,exp,tanh,square,abs,sqrtabs,logabs,powabs,fmin,fmax,constant,variable"
    search = sklearn.SymbolicRegressor(
        allowed_symbols=symbols, objectives=["r2", "length"], generations=30, population_size=100, pool_size=100,
        max_length=30, n_threads=1, random_state=2, max_evaluations=10**8,
    )  # fmt: skip
    search.fit(X, y)
    names = {key: (NAMES[int(column[1:]) - 1], 1.0) for key, column in search.variables_.items()}
    env = dict(zip(NAMES, X.T, strict=True))
    for entry in search.pareto_front_:
        found = np.broadcast_to(read_operon(entry["tree"], names).numpy(env), y.shape)
        assert float(np.mean((found - y) ** 2)) == pytest.approx(entry["mean_squared_error"], rel=1e-3, abs=1e-9)


def test_least_squares_recovers_a_template() -> None:
    """ψ = −Σ W γ tanh(z/γ) with γ on the grid: W comes back."""
    X, gamma = rows(500, 2), 0.5
    weights = np.array([0.8, 0.0, 0.05, -0.3])
    y = -(gamma * np.tanh(X / gamma)) @ weights
    best = LstsqBackend().fit(X, y, NAMES, SRConfig(max_size=200), 0)[-1]
    assert best.loss < 1e-20
    for index, name in enumerate(NAMES):
        env = {other: np.array([0.0]) for other in NAMES} | {name: np.array([1e-3])}
        slope = best.expression.numpy(env)[0] / 1e-3
        assert -slope == pytest.approx(weights[index] * gamma * np.tanh(1e-3 / gamma) / 1e-3, abs=1e-6)


def test_dominated_and_undefined_expressions_are_dropped() -> None:
    X = np.array([[0.0], [1.0], [2.0]])
    y = np.array([0.0, 2.0, 4.0])
    texts = ["x", "2 * x", "x + x", "1 / x", "x * 1", "1.0", "cube(x) + 3 * x"]
    front = pareto_front([parse(text) for text in texts], X, y, ["x"])
    assert [str(entry.expression) for entry in front] == ["x", "(2.0 * x)"]


@pytest.mark.parametrize("backend", [OperonBackend(), LstsqBackend()], ids=lambda backend: backend.name)
def test_rows_that_cannot_be_fitted_say_so(backend: SRBackend) -> None:
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    X = rows()
    with pytest.raises(ValueError, match="R² undefined"):
        backend.fit(X, np.ones(len(X)), NAMES, QUICK, 0)
    with pytest.raises(ValueError, match="finite"):
        backend.fit(X, np.full(len(X), np.nan), NAMES, QUICK, 0)
    with pytest.raises(ValueError, match="do not fit together"):
        backend.fit(X, X[:, 0], NAMES[:2], QUICK, 0)
    with pytest.warns(UserWarning, match="advisable"):
        backend.fit(X[:20], X[:20, 0], NAMES, SRConfig(generations=2, population=20), 0)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="operon, pysr, lstsq"):
        get_backend("eureqa")
    with pytest.raises(ValueError, match="there is no operator cos"):
        SRConfig(operators=frozenset({"cos"}))
    with pytest.raises(ValueError, match="rows must be positive"):
        SRConfig(rows=0)


HAS_PYSR = importlib.util.find_spec("pysr") is not None and shutil.which("julia") is not None


@pytest.mark.skipif(HAS_PYSR, reason="PySR and Julia are here")
def test_pysr_says_what_it_needs() -> None:
    with pytest.raises(RuntimeError, match="Julia"):
        PySRBackend().fit(rows(), rows()[:, 0], NAMES, QUICK, 0)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PYSR, reason="PySR needs Julia, which is not installed")
def test_pysr_finds_a_rule() -> None:
    X = rows()
    y = -np.tanh(2 * X[:, 0]) + 0.3 * X[:, 3]
    front = PySRBackend().fit(X, y, NAMES, SRConfig(operators=PAPER_OPERATORS, max_size=20, time_limit_s=60), 0)
    assert r2(front[-1].loss, y) > 0.9
