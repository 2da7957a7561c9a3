"""Expressions in torch: as differentiable modules whose constants can be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.symbolic_l2o.expressions import LOG_EPS, Expression


def _power(x: Tensor, y: Tensor) -> Tensor:
    """The ordinary power; the magnitude's, negative where x is negative and y not even."""
    magnitude = torch.abs(x) ** y
    return magnitude * (1 - 2 * ((x < 0) & (torch.remainder(y, 2) != 0)).to(magnitude.dtype))


def _greater(x: Tensor, y: Tensor) -> Tensor:
    """1 where x > y, else 0, in the type that their sum has."""
    compiled = torch.compiler.is_compiling()  # which has no way to ask for a type alone
    return torch.gt(x, y).to((x + y).dtype if compiled else torch.result_type(x, y))


@cache
def torch_operators() -> dict[str, Callable[..., Any]]:
    """Name to function on tensors, differentiable almost everywhere."""
    return {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "pow": lambda x, y: torch.sign(x) * torch.abs(x) ** y,
        "power": _power,
        "greater": _greater,
        "aq": lambda x, y: x * torch.rsqrt(1 + y * y),
        "neg": torch.neg,
        "relu": torch.relu,
        "exp": torch.exp,
        "tanh": torch.tanh,
        "sinh": torch.sinh,
        "asinh": torch.asinh,
        "erfc": torch.special.erfc,
        "square": torch.square,
        "cube": lambda x: x * x * x,
        "abs": torch.abs,
        "sign": torch.sign,
        "logm": lambda x: torch.log(torch.abs(x) + LOG_EPS),
        "sqrtm": lambda x: torch.sqrt(torch.abs(x)),
    }


class ExpressionModule(nn.Module):
    """An expression whose constants are one vector, ``constants`` (k,), from left to right.

    They are kept in float64, as the expression has them, and take on the type of the tensors that they meet.

    Parameters
    ----------
    expression : Expression
        The tree; its constants are the initial values.
    trainable : bool
        Whether ``constants`` is a parameter, or a buffer.
    """

    constants: Tensor

    def __init__(self, expression: Expression, trainable: bool = True) -> None:
        super().__init__()
        self.form = expression
        values = torch.tensor(expression.constants, dtype=torch.float64)
        if trainable:
            self.constants = nn.Parameter(values)
        else:
            self.register_buffer("constants", values)

    def forward(self, env: Mapping[str, Tensor]) -> Tensor:
        """Value where variables have the tensors of ``env``, of their broadcast shape and type.

        Raises
        ------
        KeyError
            A variable has no tensor.
        """
        some = next(iter(env.values()), self.constants)
        constants = iter(self.constants.to(some.dtype).unbind()) if len(self.constants) else iter(())
        value: Tensor = self.form.evaluate(torch_operators(), env, constants)
        needed = [env[name].shape for name in self.form.variables]
        return value.expand(torch.broadcast_shapes(*needed)) if needed else value

    @property
    def expression(self) -> Expression:
        """The expression with its present constants."""
        return self.form.with_constants(self.constants.detach().double().tolist())

    def extra_repr(self) -> str:
        """The expression with its present constants, for printing."""
        return str(self.expression)
