"""What an equation makes of the past, kept instead of the past.

tanh(z_{t−τ}) is the number that tanh(z_t) was τ steps ago. Where an equation makes the same of every past value of a feature, as
the template of the paper does, the history therefore holds what is made of it: the template computes a tanh per feature and
step, not one per feature and lag. The numbers are the same to the last digit, and so is the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
    common: dict[str, set[Expression]] = {}
    for name, made in _made_of(expression):
        feature, lag = columns[name]
        if lag:
            forms = {_of(form, feature) for form in made}
            common[feature] = common[feature] & forms if feature in common else forms
    kept = {}
    for feature, forms in common.items():
        dear = [form for form in forms if form.op not in CHEAP]
        if dear:
            kept[feature] = max(dear, key=lambda form: form.complexity)
    if not kept:
        return expression, dict(columns), {}
    found: dict[str, tuple[str, int]] = {}
    changed = _changed(expression, columns, kept, found)
    return changed, {name: found[name] for name in sorted(changed.variables)}, {str(form): form for form in kept.values()}


def _made_of(expression: Expression, above: tuple[Expression, ...] = ()) -> Iterator[tuple[str, tuple[Expression, ...]]]:
    """Every place of a variable, with the parts of the expression around it that have no other variable, itself included."""
    own = (*above, expression) if len(expression.variables) == 1 else ()
    if expression.op == "var":
        yield expression.name, own
    for arg in expression.args:
        yield from _made_of(arg, own)


def _of(form: Expression, feature: str) -> Expression:
    """The same of a feature, whatever the lag."""
    name = feature if form.op == "var" else ""
    return Expression(form.op, tuple(_of(arg, feature) for arg in form.args), form.value, name)


def _changed(
    expression: Expression, columns: Columns, kept: Mapping[str, Expression], found: dict[str, tuple[str, int]]
) -> Expression:
    """The expression with variables for what is kept; ``found`` gets the columns of the variables that it has then."""
    if len(expression.variables) == 1:
        (name,) = expression.variables
        feature, lag = columns[name]
        if kept.get(feature) == _of(expression, feature):
            carrier = str(kept[feature])
            found[f"{carrier}_{lag}"] = (carrier, lag)
            return Expression("var", name=f"{carrier}_{lag}")
        if expression.op == "var":
            found[name] = (feature, lag)
    return Expression(
        expression.op, tuple(_changed(arg, columns, kept, found) for arg in expression.args), expression.value, expression.name
    )
