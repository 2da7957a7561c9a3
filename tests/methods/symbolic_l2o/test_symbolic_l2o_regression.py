"""Engines of symbolic regression: what they find is what they say, and it is reproducible."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from atlas.cli.doctor import julia
from atlas.methods.symbolic_l2o.expressions import parse
from atlas.methods.symbolic_l2o.regression import (
    LstsqBackend,
    OperonBackend,
    PySRBackend,
    SRBackend,
    get_backend,
    has_pysr,
    pareto_front,
)
from atlas.methods.symbolic_l2o.settings import PAPER_OPERATORS, SRConfig

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


def test_operon_takes_no_roots_unless_told_to() -> None:
    """They depend on the processor, as findings/pyoperon_roots_differ_between_processors.sh shows; the others do not."""
    sklearn = pytest.importorskip("pyoperon.sklearn", reason="pyoperon is not installed")
    asked: list[set[str]] = []

    class Search(sklearn.SymbolicRegressor):  # type: ignore[misc]
        def fit(self, X: np.ndarray, y: np.ndarray) -> object:
            asked.append(set(self.allowed_symbols.split(",")))
            return super().fit(X, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn, "SymbolicRegressor", Search)
        X = rows()
        for operators in (None, "operon"):
            cfg = SRConfig(generations=2, population=20, **({"operators": operators} if operators else {}))  # type: ignore[arg-type]
            OperonBackend().fit(X, X[:, 0], NAMES, cfg, 0)
    always = {"add", "sub", "mul", "tanh", "abs", "square", "constant", "variable"}
    assert asked == [always, always | {"aq", "sqrtabs"}]


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
    with pytest.raises(ValueError, match="there is no set of operators julia; choose from portable, operon, paper"):
        SRConfig(operators="julia")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^rows = 0: input should be greater than or equal to 1"):
        SRConfig(rows=0)


@pytest.fixture
def pysr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package of that name on the path, and no Julia; returns its ``__init__.py``."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pysr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pysr").mkdir()
    start = tmp_path / "pysr" / "__init__.py"
    start.write_text("raise AssertionError('imported by a check')")
    importlib.invalidate_caches()
    assert shutil.which("julia") is None
    return start


def test_pysr_is_there_where_its_package_is_and_the_check_does_not_import_it(pysr: Path) -> None:
    assert has_pysr()
    finding = julia()
    assert finding.good
    assert "fetched at the first search" in finding.state
    assert "pysr" not in sys.modules


def test_pysr_is_asked_for_a_search_with_its_own_names(pysr: Path) -> None:
    pysr.write_text(
        "from types import SimpleNamespace\n"
        "class PySRRegressor:\n"
        "    def __init__(self, **options):\n"
        "        self.options = options\n"
        "    def fit(self, X, y, variable_names):\n"
        "        assert 'powm(x, y) = sign(x) * abs(x)^y' in self.options['binary_operators']\n"
        "        self.equations_ = {'equation': ['0.5', 'powm(x0, 2.0)', 'x0 ^ 2']}\n"
    )
    X = np.array([[-3.0], [1.0], [2.0]] * 20)
    try:
        for sign, text in ((X[:, 0] ** 2, "square"), (np.sign(X[:, 0]) * X[:, 0] ** 2, "pow")):
            found = PySRBackend().fit(X, sign, ["g_0"], SRConfig(operators=PAPER_OPERATORS, standardize=False), 0)
            assert found[-1].loss == 0
            assert found[-1].expression.op == text
    finally:
        sys.modules.pop("pysr", None)


def test_a_pysr_that_finds_no_julia_says_so(pysr: Path) -> None:
    pysr.write_text("raise OSError('no network\\nfor Julia')")
    with pytest.raises(RuntimeError, match=r"cannot start Julia \(OSError: no network for Julia\)"):
        PySRBackend().fit(rows(), rows()[:, 0], NAMES, QUICK, 0)


def test_without_pysr_the_engine_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs PySR, which is not installed \(pip install 'atlas\[pysr\]'"):
        PySRBackend().fit(rows(), rows()[:, 0], NAMES, QUICK, 0)
    assert julia().state == "neither PySR nor pyoperon"
    assert "atlas[symbolic]" in julia().advice


@pytest.mark.slow
@pytest.mark.skipif(not has_pysr(), reason="PySR is not installed")
def test_pysr_finds_a_rule() -> None:
    X = rows()
    y = -np.tanh(2 * X[:, 0]) + 0.3 * X[:, 3]
    front = PySRBackend().fit(X, y, NAMES, SRConfig(operators=PAPER_OPERATORS, max_size=20, time_limit_s=60), 0)
    assert r2(front[-1].loss, y) > 0.9
