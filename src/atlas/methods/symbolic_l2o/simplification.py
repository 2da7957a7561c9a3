"""Simplification that keeps an expression's value: constants are folded, and operations that do nothing are dropped."""

from __future__ import annotations

import math

from atlas.methods.symbolic_l2o.expressions import Expression, call, const


def simplify(expression: Expression) -> Expression:
    """See :meth:`.Expression.simplify`. One pass from the leaves up reaches a fixed point: each rule returns simple operands."""
    if not expression.args:
        return expression
    args = tuple(simplify(arg) for arg in expression.args)
    folded = _folded(Expression(expression.op, args))
    if folded is not None:
        return folded
    return _reduced(expression.op, args) or Expression(expression.op, args)


def _folded(expression: Expression) -> Expression | None:
    """The constant that an operator on constants gives, where it is finite."""
    if any(arg.op != "const" for arg in expression.args):
        return None
    value = float(expression.numpy({}))
    return const(value) if math.isfinite(value) else None


def _reduced(op: str, args: tuple[Expression, ...]) -> Expression | None:
    """What remains where an operand does nothing, or ``None``."""
    if op == "neg":
        return _negated(args[0])
    if len(args) != 2:
        return None
    left, right = args
    if op == "add":
        return right if _is(left, 0) else left if _is(right, 0) else None
    if op == "sub":
        return left if _is(right, 0) else _negated(right) or call("neg", right) if _is(left, 0) else None
    if op == "mul":
        return right if _is(left, 1) else left if _is(right, 1) else None
    if (op in ("div", "pow", "power") and _is(right, 1)) or (op == "aq" and _is(right, 0)):
        return left
    return None


def _negated(operand: Expression) -> Expression | None:
    if operand.op == "neg":
        return operand.args[0]
    return const(-operand.value) if operand.op == "const" else None


def _is(expression: Expression, value: float) -> bool:
    return expression.op == "const" and expression.value == value
