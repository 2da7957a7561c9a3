"""What an equation makes of the past, kept instead of the past.

tanh(z_{t−τ}) is the number that tanh(z_t) was τ steps ago. Where an equation makes the same of every past value of a feature, as
the template of the paper does, the history therefore holds what is made of it: the template computes a tanh per feature and
step, not one per feature and lag. The numbers are the same to the last digit, and so is the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atlas.methods.symbolic_l2o.expressions import Expression

CHEAP = frozenset({"const", "var", "neg", "add", "sub", "mul"})  # a pass over memory costs more than these
Columns = Mapping[str, tuple[str, int]]


def carried(expression: Expression, columns: Columns) -> tuple[Expression, dict[str, tuple[str, int]], dict[str, Expression]]:
    """Let what an equation makes of a feature's past be variables of it.

    Parameters
    ----------
    expression : Expression
        Over the variables that ``columns`` has.
    columns : mapping
        Variable to (feature, lag).

    Returns
    -------
    tuple
        The expression, over new variables where something is carried; its variables' (feature, lag), where what is carried
        counts as a feature, named by its text; and what each of these is, as an expression over the feature that it is made of.

    Examples
    --------
    >>> from atlas.methods.symbolic_l2o import parse
    >>> rule, columns, made = carried(parse("tanh(2 * m_0) - 0.5 * tanh(2 * m_3)"), {"m_0": ("m", 0), "m_3": ("m", 3)})
    >>> str(rule), columns["tanh((2.0 * m))_3"], list(made)
    ('(tanh((2.0 * m))_0 - (0.5 * tanh((2.0 * m))_3))', ('tanh((2.0 * m))', 3), ['tanh((2.0 * m))'])
    """
    parts = _Parts(columns)
    root = parts.read(expression)
    common: dict[str, set[int]] = {}
    _meet(root, (), columns, common)
    kept = {feature: max(forms, key=parts.size.__getitem__) for feature, forms in common.items() if forms}
    if not kept:
        return expression, dict(columns), {}
    found: dict[str, tuple[str, int]] = {}
    made: dict[str, Expression] = {}
    changed = _changed(root, columns, kept, found, made)
    return changed, {name: found[name] for name in sorted(found)}, made


@dataclass
class _Part:
    """A part of an expression, and the number of its form; equal forms of one feature have one number, whatever the lag."""

    whole: Expression
    args: tuple[_Part, ...]
    form: int
    variable: str  # the only one in it, or nothing
    many: bool  # more than one variable


@dataclass
class _Parts:
    """The forms that occur: what they are, told by an operator, the forms of its operands, a number or a feature."""

    columns: Columns
    numbers: dict[tuple[object, ...], int] = field(default_factory=dict)
    size: list[int] = field(default_factory=list)

    def read(self, expression: Expression) -> _Part:
        args = tuple(self.read(arg) for arg in expression.args)
        names = {arg.variable for arg in args if arg.variable} | ({expression.name} if expression.op == "var" else set())
        feature = self.columns[expression.name][0] if expression.op == "var" else ""
        key = (expression.op, tuple(arg.form for arg in args), repr(expression.value), feature)  # 0.0 is not -0.0 there
        form = self.numbers.setdefault(key, len(self.numbers))
        if form == len(self.size):
            self.size.append(1 + sum(self.size[arg.form] for arg in args))
        many = len(names) > 1 or any(arg.many for arg in args)
        return _Part(expression, args, form, "" if many or not names else next(iter(names)), many)


def _meet(part: _Part, above: tuple[int, ...], columns: Columns, common: dict[str, set[int]]) -> None:
    """Collect the forms that all places of a feature's past have around them: dear ones, without another variable."""
    if part.many or not part.variable:
        above = ()
    elif part.whole.op not in CHEAP:
        above = (*above, part.form)
    if part.whole.op == "var":
        feature, lag = columns[part.variable]
        if lag:
            common[feature] = common[feature] & set(above) if feature in common else set(above)
    for arg in part.args:
        _meet(arg, above, columns, common)


def _changed(
    part: _Part,
    columns: Columns,
    kept: Mapping[str, int],
    found: dict[str, tuple[str, int]],
    made: dict[str, Expression],
) -> Expression:
    """The expression with variables for what is kept; ``found`` gets its variables' columns, ``made`` what is kept."""
    if part.variable:
        feature, lag = columns[part.variable]
        if kept.get(feature) == part.form:
            form = _of(part.whole, feature)
            made[str(form)] = form
            found[f"{form}_{lag}"] = (str(form), lag)
            return Expression("var", name=f"{form}_{lag}")
        if part.whole.op == "var":
            found[part.variable] = (feature, lag)
    args = tuple(_changed(arg, columns, kept, found, made) for arg in part.args)
    return Expression(part.whole.op, args, part.whole.value, part.whole.name)


def _of(form: Expression, feature: str) -> Expression:
    """The same of a feature, whatever the lag."""
    name = feature if form.op == "var" else ""
    return Expression(form.op, tuple(_of(arg, feature) for arg in form.args), form.value, name)
