"""Symbolic regression behind one interface: rows in, a Pareto front of expressions out.

An engine proposes expressions; their complexity (nodes) and loss (mean squared error on the rows that it saw) are always computed
here, so that engines are comparable.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from atlas.methods.symbolic_l2o.expressions import OPERATORS, Expression, call, const, parse, var
from atlas.methods.symbolic_l2o.settings import SRConfig, TemplateSettings

if TYPE_CHECKING:
    import numpy as np

GAMMAS = TemplateSettings().gammas


@dataclass(frozen=True)
class ParetoEntry:
    """One expression of a front, with its nodes and its mean squared error on the rows of the search."""

    complexity: int
    loss: float
    expression: Expression


class SRBackend(Protocol):
    """An engine. To add one: propose expressions, and let :func:`pareto_front` do the rest."""

    name: str

    def fit(self, X: np.ndarray, y: np.ndarray, names: Sequence[str], cfg: SRConfig, seed: int) -> list[ParetoEntry]:
        """Search for y as a function of the columns of X.

        Parameters
        ----------
        X, y : ndarray
            (rows, columns) and (rows,).
        names : sequence of str
            Names of the columns, the variables of the expressions.

        Returns
        -------
        list of ParetoEntry
            By growing complexity, each strictly better than the one before.

        Raises
        ------
        ValueError
            Shapes do not fit, a value is not finite, or y is constant, so that R² is undefined.
        """
        ...


def pareto_front(candidates: Iterable[Expression], X: np.ndarray, y: np.ndarray, names: Sequence[str]) -> list[ParetoEntry]:
    """Measure expressions on rows and keep those that no simpler one matches; what is not finite somewhere is dropped."""
    import numpy as np

    env = {name: X[:, column] for column, name in enumerate(names)}
    measured = []
    for expression in dict.fromkeys(candidate.simplify() for candidate in candidates):
        error = np.broadcast_to(expression.numpy(env), y.shape) - y
        loss = float(np.mean(np.square(error)))
        if math.isfinite(loss):
            measured.append(ParetoEntry(expression.complexity, loss, expression))
    front: list[ParetoEntry] = []
    for entry in sorted(measured, key=lambda entry: (entry.complexity, entry.loss)):
        if not front or entry.loss < front[-1].loss:
            front.append(entry)
    return front


def prepared(X: Any, y: Any, names: Sequence[str], cfg: SRConfig, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check the rows, draw ``cfg.rows`` of them, and return (X, y, scales of the columns). See :meth:`SRBackend.fit`."""
    import numpy as np

    X, y = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if X.ndim != 2 or y.shape != X.shape[:1] or len(names) != X.shape[1]:
        raise ValueError(f"X {X.shape}, y {y.shape} and {len(names)} names do not fit together")
    if not (np.isfinite(X).all() and np.isfinite(y).all()):
        raise ValueError("X and y must be finite")
    if not len(y) or np.ptp(y) == 0:
        raise ValueError("y is constant: R² undefined")
    if len(y) < 10 * X.shape[1]:
        warnings.warn(f"{len(y)} rows for {X.shape[1]} columns; ten times as many rows as columns are advisable", stacklevel=3)
    if len(y) > cfg.rows:
        chosen = np.sort(np.random.default_rng(seed).choice(len(y), cfg.rows, replace=False))
        X, y = X[chosen], y[chosen]
    deviation = X.std(0)
    scales = np.where(deviation > 0, deviation, 1.0) if cfg.standardize else np.ones(X.shape[1])
    return X, y, scales


class OperonBackend:
    """pyoperon: genetic programming with local search, in C++. Reproducible on one thread."""

    name = "operon"
    SYMBOLS: ClassVar[dict[str, str]] = {
        "add": "add",
        "sub": "sub",
        "mul": "mul",
        "div": "div",
        "aq": "aq",
        "pow": "powabs",
        "exp": "exp",
        "tanh": "tanh",
        "square": "square",
        "abs": "abs",
        "logm": "logabs",
        "sqrtm": "sqrtabs",
        "relu": "fmin,fmax",
    }
    """Our operators to Operon's symbols. It has no sinh, asinh, erfc, cube, sign and greater; relu comes as minima and maxima."""

    def fit(self, X: np.ndarray, y: np.ndarray, names: Sequence[str], cfg: SRConfig, seed: int) -> list[ParetoEntry]:
        """See :meth:`SRBackend.fit`; operators that Operon lacks are left out."""
        import numpy as np
        from pyoperon.sklearn import SymbolicRegressor

        X, y, scales = prepared(X, y, names, cfg, seed)
        symbols = [self.SYMBOLS[name] for name in OPERATORS if name in cfg.operators and name in self.SYMBOLS]
        if not symbols:
            raise ValueError(f"Operon has none of these operators; choose from {', '.join(self.SYMBOLS)}")
        search = SymbolicRegressor(
            allowed_symbols=",".join([*symbols, "constant", "variable"]),
            objectives=["r2", "length"],
            population_size=cfg.population,
            pool_size=cfg.population,
            generations=cfg.generations,
            max_length=cfg.max_size,
            max_depth=cfg.max_depth,
            optimizer="lm",
            optimizer_iterations=3,
            local_search_probability=0.2,
            max_evaluations=10**8,
            n_threads=cfg.n_threads,
            random_state=seed,
        )
        columns = np.asfortranarray(X / scales)  # Operon reads columns; other layouts are copied and freed too early
        search.fit(columns, y)
        weighted = {
            key: (names[int(column.removeprefix("X")) - 1], 1 / scales[int(column.removeprefix("X")) - 1])
            for key, column in search.variables_.items()
        }
        return pareto_front([read_operon(entry["tree"], weighted) for entry in search.pareto_front_], X, y, names)


def read_operon(tree: Any, variables: dict[int, tuple[str, float]]) -> Expression:
    """Turn a tree of pyoperon into an expression.

    Parameters
    ----------
    tree : pyoperon.Tree
        Nodes in postfix order, the left operand last.
    variables : dict
        Hash of a variable to its name and the factor by which the column was multiplied.

    Raises
    ------
    ValueError
        The tree holds a symbol without counterpart; says which.
    """
    stack: list[Expression] = []
    for node in tree.Nodes:
        if node.IsVariable:
            name, factor = variables[node.HashValue]
            weight = node.Value * factor
            stack.append(var(name) if weight == 1 else call("mul", weight, var(name)))
        elif node.IsConstant:
            stack.append(const(node.Value))
        else:
            if node.Name not in OPERON_NODES:
                raise ValueError(f"the symbol {node.Name} of Operon has no counterpart")
            operands = [stack.pop() for _ in range(node.Arity)]
            stack.append(OPERON_NODES[node.Name](*operands))
    (root,) = stack
    return root


def _maximum(x: Expression, y: Expression) -> Expression:
    return call("add", y, call("relu", call("sub", x, y)))


def _minimum(x: Expression, y: Expression) -> Expression:
    return call("sub", x, call("relu", call("sub", x, y)))


def _applied(op: str) -> Callable[..., Expression]:
    return lambda *operands: call(op, *operands)


OPERON_NODES: dict[str, Callable[..., Expression]] = {
    "+": _applied("add"),
    "-": _applied("sub"),
    "*": _applied("mul"),
    "/": _applied("div"),
    "aq": _applied("aq"),
    "powabs": lambda x, y: call("pow", call("abs", x), y),
    "exp": _applied("exp"),
    "tanh": _applied("tanh"),
    "square": _applied("square"),
    "abs": _applied("abs"),
    "logabs": _applied("logm"),
    "sqrtabs": _applied("sqrtm"),
    "fmax": _maximum,
    "fmin": _minimum,
}


def has_pysr() -> bool:
    """Whether PySR is installed; it is not imported, which would start Julia.

    Julia itself need not be on the PATH: PySR comes with juliapkg, which finds a Julia or fetches one when PySR is first
    imported.
    """
    return importlib.util.find_spec("pysr") is not None


class PySRBackend:
    """PySR, the engine of the paper. It needs Julia, which it fetches itself where there is none."""

    name = "pysr"
    UNARY: ClassVar[dict[str, str]] = {
        "relu": "relu(x) = max(x, zero(x))",
        "exp": "exp",
        "tanh": "tanh",
        "sinh": "sinh",
        "asinh": "asinh",
        "erfc": "erfc",
        "square": "square",
        "cube": "cube",
        "abs": "abs",
        "sign": "sign",
        "neg": "neg",
        "logm": "logm(x) = log(abs(x) + convert(typeof(x), 1e-8))",
        "sqrtm": "sqrtm(x) = sqrt(abs(x))",
    }
    BINARY: ClassVar[dict[str, str]] = {
        "add": "+",
        "sub": "-",
        "mul": "*",
        "div": "/",
        "pow": "powm(x, y) = sign(x) * abs(x)^y",
        "power": "^",
        "greater": "greater",
        "aq": "aq(x, y) = x / sqrt(one(y) + y * y)",
    }

    def fit(self, X: np.ndarray, y: np.ndarray, names: Sequence[str], cfg: SRConfig, seed: int) -> list[ParetoEntry]:
        """See :meth:`SRBackend.fit`.

        Raises
        ------
        RuntimeError
            PySR is not there, or finds no Julia.
        """
        regressor = self._regressor(cfg, seed)
        X, y, scales = prepared(X, y, names, cfg, seed)
        columns = [f"x{column}" for column in range(X.shape[1])]
        regressor.fit(X / scales, y, variable_names=columns)
        weights = {column: call("mul", 1 / scales[index], var(names[index])) for index, column in enumerate(columns)}
        candidates = [substitute(parse(text), weights) for text in regressor.equations_["equation"]]
        return pareto_front(candidates, X, y, names)

    def _regressor(self, cfg: SRConfig, seed: int) -> Any:
        if not has_pysr():
            raise RuntimeError(
                "the engine pysr needs PySR, which is not installed (pip install 'atlas[pysr]'; it fetches Julia itself); "
                "the engine operon needs neither"
            )
        try:
            from pysr import PySRRegressor
        except Exception as error:  # the import starts Julia, or fetches it first; what goes wrong there has many types
            reason = " ".join(str(error).split())
            raise RuntimeError(
                f"PySR is installed but cannot start Julia ({type(error).__name__}: {reason}); "
                "install Julia or let PySR fetch it: python -c 'import pysr'"
            ) from error

        return PySRRegressor(
            unary_operators=[text for name, text in self.UNARY.items() if name in cfg.operators],
            binary_operators=[text for name, text in self.BINARY.items() if name in cfg.operators],
            extra_sympy_mappings=_sympy_mappings(),
            maxsize=cfg.max_size,
            maxdepth=cfg.max_depth,
            timeout_in_seconds=cfg.time_limit_s,
            populations=8,
            niterations=10**6,
            random_state=seed,
            deterministic=cfg.n_threads == 1,
            parallelism="serial" if cfg.n_threads == 1 else "multithreading",
            progress=False,
            verbosity=0,
        )


def _sympy_mappings() -> dict[str, Callable[..., Any]]:
    from atlas.methods.symbolic_l2o.sympy_bridge import TO_SYMPY

    return {**{name: TO_SYMPY[name] for name in ("relu", "logm", "sqrtm", "aq", "greater")}, "powm": TO_SYMPY["pow"]}


def substitute(expression: Expression, values: dict[str, Expression]) -> Expression:
    """Return the expression with variables replaced by expressions; others stay."""
    if expression.op == "var":
        return values.get(expression.name, expression)
    args = tuple(substitute(arg, values) for arg in expression.args)
    return Expression(expression.op, args, expression.value, expression.name)


class LstsqBackend:
    """Least squares on z and tanh(z/γ) of every column, then backward elimination. Needs nothing but NumPy."""

    name = "lstsq"

    def fit(self, X: np.ndarray, y: np.ndarray, names: Sequence[str], cfg: SRConfig, seed: int) -> list[ParetoEntry]:
        """See :meth:`SRBackend.fit`; one γ for all columns, from the template's grid."""
        X, y, _ = prepared(X, y, names, cfg, seed)
        candidates: list[Expression] = []
        for gamma in GAMMAS:
            candidates += self._eliminated(X, y, names, gamma)
        small = [candidate for candidate in candidates if candidate.complexity <= cfg.max_size]
        return pareto_front(small or candidates, X, y, names)

    def _eliminated(self, X: np.ndarray, y: np.ndarray, names: Sequence[str], gamma: float) -> Iterable[Expression]:
        """The least-squares combination of all atoms, and what remains as the least useful atom is dropped, again and again."""
        import numpy as np

        atoms = np.concatenate([X, np.tanh(X / gamma)], axis=1)
        left = list(range(atoms.shape[1]))
        while left:
            chosen = atoms[:, left]
            weights, _, _, _ = np.linalg.lstsq(chosen, y, rcond=None)
            yield self._expression([(weight, column) for weight, column in zip(weights, left, strict=True)], names, gamma)
            inverse = np.linalg.pinv(chosen.T @ chosen)
            loss = np.square(weights) / np.maximum(np.diag(inverse), np.finfo(float).tiny)
            left.pop(int(np.argmin(loss)))

    def _expression(self, terms: list[tuple[float, int]], names: Sequence[str], gamma: float) -> Expression:
        total: Expression | None = None
        for weight, column in terms:
            inner: Expression = var(names[column % len(names)])
            if column >= len(names):
                inner = call("tanh", inner if gamma == 1 else call("mul", 1 / gamma, inner))
            term = call("mul", float(weight), inner)
            total = term if total is None else call("add", total, term)
        assert total is not None
        return total


BACKENDS: dict[str, Callable[[], SRBackend]] = {"operon": OperonBackend, "pysr": PySRBackend, "lstsq": LstsqBackend}


def get_backend(name: str) -> SRBackend:
    """Return an engine by name.

    Raises
    ------
    ValueError
        There is none of that name; the known ones are listed.
    """
    if name not in BACKENDS:
        raise ValueError(f"there is no engine {name}; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]()
