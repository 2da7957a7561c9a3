"""Between expressions and sympy, for algebra and for LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from typing import Any

import sympy

from atlas.methods.symbolic_l2o.expressions import LOG_EPS, Expression, call, const, raised, var

GREEK = {"m": r"\tilde{m}", "g": r"\tilde{g}", "n": r"\tilde{n}", "mhat": r"\hat{m}", "grad": "g", "mom": "m", "d": "d"}


def _ordinary_power(base: Any, exponent: Any) -> Any:
    """``power``: x^y, but −|x|^y where x is negative and y not whole."""
    if exponent.is_number and float(exponent).is_integer():
        return base ** sympy.Integer(int(exponent))
    if base.is_nonnegative or exponent.is_integer:
        return base**exponent
    whole = sympy.Eq(sympy.floor(exponent), exponent)
    return sympy.Piecewise((base**exponent, (base >= 0) | whole), (-(sympy.Abs(base) ** exponent), True))


TO_SYMPY: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: sympy.sign(x) * sympy.Abs(x) ** y,
    "power": _ordinary_power,
    "greater": lambda x, y: sympy.Heaviside(x - y, 0),
    "aq": lambda x, y: x / sympy.sqrt(1 + y**2),
    "neg": lambda x: -x,
    "relu": lambda x: sympy.Max(x, 0),
    "exp": sympy.exp,
    "tanh": sympy.tanh,
    "sinh": sympy.sinh,
    "asinh": sympy.asinh,
    "erfc": sympy.erfc,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "abs": sympy.Abs,
    "sign": sympy.sign,
    "logm": lambda x: sympy.log(sympy.Abs(x) + LOG_EPS),
    "sqrtm": lambda x: sympy.sqrt(sympy.Abs(x)),
}


def symbol(name: str) -> sympy.Symbol:
    """The symbol of a variable, which sympy takes for a real number."""
    return sympy.Symbol(name, real=True)


def to_sympy(expression: Expression) -> sympy.Expr:
    """The same function in sympy, over real symbols; whole numbers stay whole. See :meth:`.Expression.sympy`."""
    if expression.op == "var":
        return symbol(expression.name)
    if expression.op == "const":
        whole = int(expression.value)
        return sympy.Integer(whole) if whole == expression.value and abs(whole) < 1000 else sympy.Float(expression.value)
    return TO_SYMPY[expression.op](*map(to_sympy, expression.args))


FUNCTIONS = {
    sympy.exp: "exp",
    sympy.tanh: "tanh",
    sympy.sinh: "sinh",
    sympy.asinh: "asinh",
    sympy.erfc: "erfc",
    sympy.Abs: "abs",
    sympy.sign: "sign",
}


def from_sympy(expression: Any) -> Expression:
    """Turn a sympy expression into ours.

    A logarithm becomes ``logm``, which adds 1e-8 to its argument's magnitude.

    Raises
    ------
    ValueError
        It holds a function that has no counterpart; says which.
    """
    node = sympy.sympify(expression) if isinstance(expression, int | float) else expression
    if node.is_Symbol:
        return var(node.name)
    if node.is_number:
        return const(float(node))
    if node.is_Add or node.is_Mul:
        return reduce(lambda x, y: call("add" if node.is_Add else "mul", x, y), map(from_sympy, node.args))
    if node.is_Pow:
        return _power(node.base, node.exp)
    for kind, name in FUNCTIONS.items():
        if isinstance(node, kind):
            return call(name, from_sympy(node.args[0]))
    return _special(node)


def _power(base: Any, exponent: Any) -> Expression:
    """A power of sympy, which is the ordinary one; √|x| has an operator of its own."""
    if exponent.is_number and exponent.is_negative:
        return call("div", 1.0, _power(base, -exponent))
    if exponent == sympy.Rational(1, 2) and isinstance(base, sympy.Abs):
        return call("sqrtm", from_sympy(base.args[0]))
    return raised(from_sympy(base), from_sympy(exponent))


def _special(node: Any) -> Expression:
    if isinstance(node, sympy.log):
        argument = node.args[0]
        magnitude = argument - LOG_EPS
        return call("logm", from_sympy(magnitude.args[0] if isinstance(magnitude, sympy.Abs) else argument))
    if isinstance(node, sympy.Max) and len(node.args) == 2 and sympy.Integer(0) in node.args:
        return call("relu", from_sympy(next(arg for arg in node.args if arg != 0)))
    if isinstance(node, sympy.Heaviside) and node.args[-1] == 0:
        return call("greater", from_sympy(node.args[0]), 0.0)
    if isinstance(node, sympy.Piecewise) and node == _ordinary_power(*node.args[0].expr.as_base_exp()):
        return call("power", *map(from_sympy, node.args[0].expr.as_base_exp()))
    raise ValueError(f"{type(node).__name__} has no counterpart among the operators: {node}")


def to_latex(expression: Expression, digits: int = 3) -> str:
    """See :meth:`.Expression.latex`; constants are rounded to ``digits`` significant digits."""
    converted = to_sympy(expression)
    rounded = converted.xreplace({number: sympy.Float(number, digits) for number in converted.atoms(sympy.Float)})
    return sympy.latex(rounded, symbol_names={variable: latex_name(variable.name) for variable in rounded.free_symbols})


def latex_name(name: str) -> str:
    """LaTeX of a variable: ``m_3`` is m̃ three steps ago."""
    match = re.fullmatch(r"(.+)_(\d+)", name)
    if match is None:
        return name.replace("_", r"\_")
    feature, lag = match.groups()
    base = GREEK.get(feature, rf"\mathrm{{{feature}}}")
    return rf"{base}_{{t}}" if lag == "0" else rf"{base}_{{t-{lag}}}"
