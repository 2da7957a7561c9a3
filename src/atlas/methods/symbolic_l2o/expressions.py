"""Expressions: update rules as small immutable trees, with one meaning in NumPy, torch and sympy.

The operators are those of *Symbolic Learning to Optimize* (Zheng et al., ICLR 2022), with protected powers, roots and
logarithms, so that a rule has a value everywhere it is evaluated, and the robust division of pyoperon. Text is read by
Python's own parser and a whitelist: nothing is ever executed.

>>> rule = parse("tanh(-2 * m_0) + 0.1 * g_1")
>>> rule.complexity, sorted(rule.variables)
(8, ['g_1', 'm_0'])
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from atlas.nn.kinds import require_kind

if TYPE_CHECKING:
    import numpy as np
    import sympy
    from torch import nn

LOG_EPS = 1e-8
MAX_TEXT = 100_000
UNARY = (
    "neg",
    "relu",
    "exp",
    "tanh",
    "sinh",
    "asinh",
    "erfc",
    "square",
    "cube",
    "abs",
    "sign",
    "logm",
    "sqrtm",
)
BINARY = ("add", "sub", "mul", "div", "pow", "power", "greater", "aq")
OPERATORS: dict[str, int] = {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2)}
"""Name to number of operands.

``pow(x, y)`` = sign(x)|x|^y, the paper's protected power, ``power(x, y)`` = x^y, the ordinary one (see :func:`raised`),
``sqrtm(x)`` = √|x|, ``logm(x)`` = log(|x| + 1e-8), ``aq(x, y)`` = x/√(1 + y²), ``greater(x, y)`` is 1 where x > y, else 0.
"""
ALIASES = {"plus": "add", "mult": "mul", "minus": "sub", "sqrtabs": "sqrtm", "logabs": "logm", "Abs": "abs", "powm": "pow"}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.\d[A-Za-z0-9_]*)?)|(?P<power>\^)"
)


@dataclass(frozen=True, repr=False)
class Expression:
    """One node: an operator with its operands, a constant, or a variable.

    Made by :func:`const`, :func:`var`, :func:`call` and :func:`parse`.

    Attributes
    ----------
    op : str
        ``"const"``, ``"var"`` or a key of :data:`OPERATORS`.
    args : tuple of Expression
        Operands.
    value : float
        Of a constant.
    name : str
        Of a variable, ``"{feature}_{lag}"`` in update rules.
    """

    op: str
    args: tuple[Expression, ...] = ()
    value: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        operands = 0 if self.op in ("const", "var") else OPERATORS.get(self.op)
        if operands is None:
            raise ValueError(f"there is no operator {self.op}; choose from {', '.join(OPERATORS)}")
        if len(self.args) != operands:
            raise ValueError(f"{self.op} takes {operands} operands, not {len(self.args)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied node by node, not level by level: sums of hundreds of terms are that deep."""
        return _planted, ([(node.op, node.value, node.name) for node in self.nodes()],)

    @cached_property
    def complexity(self) -> int:
        """Number of nodes; every operator, constant and variable counts one, a negative literal too."""
        return 1 + sum(arg.complexity for arg in self.args)

    @cached_property
    def depth(self) -> int:
        """Longest path from this node to a leaf, in nodes."""
        return 1 + max((arg.depth for arg in self.args), default=0)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables in the tree, each once."""
        return frozenset(node.name for node in self.nodes() if node.op == "var")

    @cached_property
    def constants(self) -> tuple[float, ...]:
        """Values of the constants, from left to right."""
        return tuple(node.value for node in self.nodes() if node.op == "const")

    def nodes(self) -> Iterator[Expression]:
        """Every node, operands before their operator."""
        for arg in self.args:
            yield from arg.nodes()
        yield self

    def numpy(self, env: Mapping[str, Any]) -> np.ndarray:
        """Value where variables have the arrays of ``env``; float64, of their broadcast shape.

        Raises
        ------
        KeyError
            A variable has no array.
        """
        import numpy as np

        arrays = {name: np.asarray(env[name], dtype=np.float64) for name in self.variables}
        shape = np.broadcast_shapes(*(array.shape for array in arrays.values()), *(() if arrays else ((),)))
        with np.errstate(all="ignore"):
            value = self.evaluate(_numpy_operators(), arrays, iter(self.constants))
        return np.broadcast_to(np.asarray(value, dtype=np.float64), shape).copy()

    def evaluate(self, table: Mapping[str, Callable[..., Any]], env: Mapping[str, Any], constants: Iterator[Any]) -> Any:
        """Value by a table of operators; ``constants`` are taken from left to right."""
        if self.op == "var":
            return env[self.name]
        if self.op == "const":
            return next(constants)
        return table[self.op](*[arg.evaluate(table, env, constants) for arg in self.args])

    def module(self, trainable: bool = True) -> nn.Module:
        """The expression as a module whose constants are a parameter (or, if not ``trainable``, a buffer).

        Its ``forward`` takes a mapping of names to tensors.
        """
        from atlas.methods.symbolic_l2o.modules import ExpressionModule

        return ExpressionModule(self, trainable)

    def with_constants(self, values: Any) -> Expression:
        """The same tree with other constants, given from left to right."""
        remaining = iter([float(value) for value in values])
        replaced = self._replaced(remaining)
        if next(remaining, None) is not None:
            raise ValueError(f"the expression has {len(self.constants)} constants; more were given")
        return replaced

    def _replaced(self, values: Iterator[float]) -> Expression:
        if self.op == "const":
            return const(next(values))
        return Expression(self.op, tuple(arg._replaced(values) for arg in self.args), self.value, self.name)

    def simplify(self) -> Expression:
        """Fold constants and drop what does nothing (·1, +0, /1, double negation); the value does not change."""
        from atlas.methods.symbolic_l2o.simplification import simplify

        return simplify(self)

    def sympy(self) -> sympy.Expr:
        """The same function in sympy, over real symbols."""
        from atlas.methods.symbolic_l2o.sympy_bridge import to_sympy

        return to_sympy(self)

    def latex(self) -> str:
        """LaTeX of the expression, with ``{feature}_{lag}`` as indexed symbols."""
        from atlas.methods.symbolic_l2o.sympy_bridge import to_latex

        return to_latex(self)

    def __str__(self) -> str:
        """Text that :func:`parse` reads back to the same tree."""
        if self.op == "var":
            return self.name
        if self.op == "const":
            return repr(self.value) if self.value >= 0 and not math.copysign(1, self.value) < 0 else f"({self.value!r})"
        if self.op in INFIX:
            left, right = map(str, self.args)
            return f"({left} {INFIX[self.op]} {right})"
        return f"{self.op}({', '.join(map(str, self.args))})"

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    def __add__(self, other: Expression | float) -> Expression:
        return call("add", self, other)

    def __radd__(self, other: float) -> Expression:
        return call("add", other, self)

    def __sub__(self, other: Expression | float) -> Expression:
        return call("sub", self, other)

    def __rsub__(self, other: float) -> Expression:
        return call("sub", other, self)

    def __mul__(self, other: Expression | float) -> Expression:
        return call("mul", self, other)

    def __rmul__(self, other: float) -> Expression:
        return call("mul", other, self)

    def __truediv__(self, other: Expression | float) -> Expression:
        return call("div", self, other)

    def __rtruediv__(self, other: float) -> Expression:
        return call("div", other, self)

    def __neg__(self) -> Expression:
        return call("neg", self)


def _planted(nodes: list[tuple[str, float, str]]) -> Expression:
    """The tree of nodes in the order of :meth:`Expression.nodes`."""
    stack: list[Expression] = []
    for op, value, name in nodes:
        count = len(stack) - OPERATORS.get(op, 0)
        stack[count:] = [Expression(op, tuple(stack[count:]), value, name)]
    return stack[0]


def const(value: float) -> Expression:
    """A constant.

    Raises
    ------
    ValueError
        It is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"a constant must be finite, not {value}")
    return Expression("const", value=float(value))


def var(name: str) -> Expression:
    """A variable.

    Raises
    ------
    ValueError
        The name is not letters, digits and underscores (and one dot before a digit, as in ``ema0.5_3``), or is an operator's.
    """
    match = TOKEN.fullmatch(name)
    if match is None or match["name"] is None or name in OPERATORS or name in ALIASES:
        raise ValueError(f"{name!r} cannot be the name of a variable")
    return Expression("var", name=name)


def call(op: str, *operands: Expression | float) -> Expression:
    """An operator applied to expressions or numbers; other spellings of its name are understood (``plus``, ``mult``).

    Raises
    ------
    ValueError
        There is no such operator (the known ones are listed), or it takes another number of operands.
    """
    args = tuple(arg if isinstance(arg, Expression) else const(arg) for arg in operands)
    return Expression(ALIASES.get(op, op), args)


def raised(base: Expression, exponent: Expression) -> Expression:
    """``base ^ exponent`` as people write it: (−3)² is 9, (−3)³ is −27, 0⁰ is 1 and x⁻² is 1/x².

    Where there is no real value, a negative base under an exponent that is not whole, it is −|base|^exponent, as the paper's
    protected power has it, so that a rule has a value everywhere. The sign-keeping ``pow(x, y)`` of *Symbolic Learning to
    Optimize* is another operator: pow(−3, 2) is −9.

    A constant exponent is written with the operators of the paper (``square``, ``cube``, ``pow`` of the base or of its
    magnitude), so that the value does not jump when the exponent is trained; only a variable one needs ``power``.

    >>> str(parse("m_0 ^ 2")), str(parse("m_0 ** 4")), str(parse("m_0 ^ 0.5")), str(parse("m_0 ^ g_0"))
    ('square(m_0)', 'pow(abs(m_0), 4.0)', 'pow(m_0, 0.5)', 'power(m_0, g_0)')
    """
    value = math.nan if exponent.variables else float(exponent.numpy({}))
    if not math.isfinite(value):
        return call("power", base, exponent)
    if value < 0:
        return call("div", 1.0, raised(base, const(-value)))
    if value in (0, 1):
        return base if value else const(1.0)
    if value in (2, 3):
        return call("square" if value == 2 else "cube", base)
    return call("pow", base if value % 2 else call("abs", base), value)


def parse(text: str) -> Expression:
    """Read an expression: infix (``-0.5 * tanh(m_0) + g_1``, with ``^`` or ``**`` for ordinary powers, see :func:`raised`, and
    ``>`` for ``greater``) or calls (``plus(mult(c, m), 1)``).

    Raises
    ------
    ValueError
        The text is not such an expression: says what was found where, and what is known.
    """
    require_kind(str, "text such as -0.1 * g_0", expression=text)
    if len(text) > MAX_TEXT:
        raise ValueError(f"an expression of {len(text):,} characters; at most {MAX_TEXT:,} are read")
    names: dict[str, str] = {}

    def token(match: re.Match[str]) -> str:
        if match["number"]:
            return match["number"]
        if match["power"]:
            return "**"
        return names.setdefault(match["name"], f"v{len(names)}")

    try:
        tree = ast.parse(TOKEN.sub(token, text.strip()), mode="eval")
        return _Reader(text, {short: name for name, short in names.items()}).read(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        raise ValueError(f"not an expression: {text[:200]!r} ({reason})") from None


class _Reader:
    """Turns Python's syntax tree into an expression, node by node; what is not listed here is refused."""

    BINARY: Mapping[type[ast.operator], str] = {
        ast.Add: "add",
        ast.Sub: "sub",
        ast.Mult: "mul",
        ast.Div: "div",
    }

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self.text, self.names = text, names

    def refuse(self, what: str) -> ValueError:
        known = f"operators: {', '.join(OPERATORS)}"
        return ValueError(f"{what} is not allowed in the expression {self.text[:200]!r}; {known}")

    def read(self, node: ast.expr) -> Expression:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, int | float):
                raise self.refuse(repr(node.value))
            return const(node.value)
        if isinstance(node, ast.Name):
            return var(self.names[node.id])
        if isinstance(node, ast.UnaryOp):
            return self.signed(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            return raised(self.read(node.left), self.read(node.right))
        if isinstance(node, ast.BinOp) and type(node.op) in self.BINARY:
            return call(self.BINARY[type(node.op)], self.read(node.left), self.read(node.right))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Gt | ast.Lt):
            left, right = self.read(node.left), self.read(node.comparators[0])
            return call("greater", left, right) if isinstance(node.ops[0], ast.Gt) else call("greater", right, left)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self.applied(node.func.id, node.args)
        raise self.refuse(type(node).__name__.lower())

    def signed(self, node: ast.UnaryOp) -> Expression:
        operand = self.read(node.operand)
        if isinstance(node.op, ast.UAdd):
            return operand
        if not isinstance(node.op, ast.USub):
            raise self.refuse("a logical operator")
        literal = isinstance(node.operand, ast.Constant)
        return const(-operand.value) if literal else call("neg", operand)

    def applied(self, short: str, args: list[ast.expr]) -> Expression:
        name = self.names[short]
        op = ALIASES.get(name, name)
        if op not in OPERATORS:
            raise self.refuse(f"the function {name}")
        return call(op, *[self.read(arg) for arg in args])


def _sign(x: Any) -> Any:
    """The sign as torch has it: 0 where there is no number."""
    import numpy as np

    return np.where(np.isnan(x), 0.0, np.sign(x))


def _power(x: Any, y: Any) -> Any:
    """The ordinary power; the magnitude's, negative where x is negative and y not even."""
    import numpy as np

    return np.where((x < 0) & (np.mod(y, 2) != 0), -1.0, 1.0) * np.abs(x) ** y


def _numpy_operators() -> dict[str, Callable[..., Any]]:
    import numpy as np
    from scipy.special import erfc

    return {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "pow": lambda x, y: _sign(x) * np.abs(x) ** y,
        "power": _power,
        "greater": lambda x, y: np.greater(x, y).astype(np.float64),
        "aq": lambda x, y: x / np.sqrt(1 + np.square(y)),
        "neg": np.negative,
        "relu": lambda x: np.maximum(x, 0.0),
        "exp": np.exp,
        "tanh": np.tanh,
        "sinh": np.sinh,
        "asinh": np.arcsinh,
        "erfc": erfc,
        "square": np.square,
        "cube": lambda x: x * x * x,
        "abs": np.abs,
        "sign": _sign,
        "logm": lambda x: np.log(np.abs(x) + LOG_EPS),
        "sqrtm": lambda x: np.sqrt(np.abs(x)),
    }
