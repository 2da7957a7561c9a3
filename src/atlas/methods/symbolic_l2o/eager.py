"""An expression as a chain of torch operations that wastes no memory traffic.

In a tree every intermediate result has one reader, so its memory serves the operator that reads it. A sum with a scaled operand
is one operation. Constants are Python numbers, whose type never widens a tensor's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from atlas.methods.symbolic_l2o.expressions import Expression
from atlas.methods.symbolic_l2o.modules import torch_operators

Env = Mapping[str, Tensor]
Functions = Mapping[str, Callable[[Tensor], Tensor]]
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": Tensor.neg_,
    "relu": Tensor.relu_,
    "exp": Tensor.exp_,
    "tanh": Tensor.tanh_,
    "sinh": Tensor.sinh_,
    "asinh": Tensor.asinh_,
    "erfc": Tensor.erfc_,
    "square": Tensor.square_,
    "abs": Tensor.abs_,
    "sign": Tensor.sign_,
}


@dataclass(frozen=True)
class Chain:
    """What a tree does to tensors; ``owned`` says whether the result is new memory, which the caller may write to."""

    run: Callable[[Env], Tensor]
    owned: bool


def quick_tanh(x: Tensor) -> Tensor:
    """Tanh of float32 (…) by nothing but sums, products and a quotient, which a compiler turns into a few vector instructions.

    It is x · P(x²)/Q(x²) with P and Q of degree 4: for |x| ≤ 9 the quotient whose largest relative error is smallest,
    2.1e-8, found by least squares whose weights follow the errors. In float32 it is at most 6 units in the last place away
    from tanh, and at most 1 in magnitude; what is beyond 9 is 1, and nan stays nan. The coefficients stand in the code itself,
    because ``torch.compile`` reads numbers from anywhere else anew for every few coordinates.
    """
    x = x.clamp(-9.0, 9.0)
    y = x * x
    above = y * 1.3352027317358531e-8 + 2.0607379924920679e-5
    above = y * (y * (y * above + 0.0034954957448480638) + 0.13380952381377324) + 0.99999998000985543
    below = y * 7.7755349831102921e-7 + 0.00032854754196429828
    below = y * (y * (y * below + 0.025876644325024488) + 0.46714268229301555) + 1.0
    return (x * above / below).clamp(-1.0, 1.0)


def chain(expression: Expression, instead: Functions = MappingProxyType({})) -> Chain:
    """The chain of a tree; that of a number gives a tensor without axes.

    ``instead`` has functions for some of the operators that have one operand.
    """
    if not expression.variables:
        number = torch.tensor(float(expression.numpy({})), dtype=torch.float64)
        return Chain(lambda env: number, owned=False)
    if expression.op == "var":
        name = expression.name
        return Chain(lambda env: env[name], owned=False)
    if expression.op in instead:
        other, run = instead[expression.op], chain(expression.args[0], instead).run
        return Chain(lambda env: other(run(env)), owned=True)
    if expression.op in IN_PLACE:
        return _unary(expression.op, chain(expression.args[0], instead))
    if expression.op in ("add", "sub", "mul"):
        left, right = expression.args
        return _arithmetic(expression.op, left, right, instead)
    function, operands = torch_operators()[expression.op], [_operand(arg, instead) for arg in expression.args]
    return Chain(lambda env: function(*[operand(env) for operand in operands]), owned=True)


def _operand(expression: Expression, instead: Functions) -> Callable[[Env], Tensor]:
    if expression.variables:
        return chain(expression, instead).run
    value = torch.tensor(float(expression.numpy({})), dtype=torch.float64)
    return lambda env: value


def _unary(op: str, inner: Chain) -> Chain:
    run, function = inner.run, IN_PLACE[op] if inner.owned else torch_operators()[op]
    return Chain(lambda env: function(run(env)), owned=True)


def _arithmetic(op: str, left: Expression, right: Expression, instead: Functions) -> Chain:
    if not left.variables:
        return _from_number(op, float(left.numpy({})), chain(right, instead))
    if not right.variables:
        return _with_number(op, chain(left, instead), float(right.numpy({})))
    if op == "mul":
        return _joined(Tensor.mul_, torch.mul, chain(left, instead), chain(right, instead))
    sign = -1.0 if op == "sub" else 1.0
    if (scaled := _scaled(right)) is not None:
        return _sum(chain(left, instead), chain(scaled[1], instead), sign * scaled[0])
    if op == "add" and (scaled := _scaled(left)) is not None:
        return _sum(chain(right, instead), chain(scaled[1], instead), scaled[0])
    if op == "add":
        return _joined(Tensor.add_, torch.add, chain(left, instead), chain(right, instead))
    return _sum(chain(left, instead), chain(right, instead), sign)


def _from_number(op: str, value: float, inner: Chain) -> Chain:
    """The chain of an operator whose left operand is a number."""
    run = inner.run
    if op == "sub":
        return Chain(lambda env: torch.rsub(run(env), value), owned=True)
    return _with_number(op, inner, value)


def _with_number(op: str, inner: Chain, value: float) -> Chain:
    """The chain of an operator whose right operand is a number."""
    run, owned = inner.run, inner.owned
    kept: dict[str, Callable[..., Tensor]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}
    reused: dict[str, Callable[..., Tensor]] = {"add": Tensor.add_, "sub": Tensor.sub_, "mul": Tensor.mul_}
    function = (reused if owned else kept)[op]
    return Chain(lambda env: function(run(env), value), owned=True)


def _scaled(expression: Expression) -> tuple[float, Expression] | None:
    """The number c and the operand x where an expression is c·x or x·c, else nothing."""
    if expression.op != "mul":
        return None
    left, right = expression.args
    if not left.variables and right.variables:
        return float(left.numpy({})), right
    if not right.variables and left.variables:
        return float(right.numpy({})), left
    return None


def _sum(left: Chain, right: Chain, factor: float) -> Chain:
    """The chain of left + factor · right, which is one operation."""
    first, second = left.run, right.run
    function = Tensor.add_ if left.owned else torch.add
    return Chain(lambda env: function(first(env), second(env), alpha=factor), owned=True)


def _joined(reused: Callable[..., Tensor], kept: Callable[..., Tensor], left: Chain, right: Chain) -> Chain:
    """A commutative operator, into the memory of whichever operand is new."""
    first, second = (left.run, right.run) if left.owned or not right.owned else (right.run, left.run)
    function = reused if left.owned or right.owned else kept
    return Chain(lambda env: function(first(env), second(env)), owned=True)
