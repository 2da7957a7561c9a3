"""How far back an optimizer looks, and how complicated what it does is.

The temporal perception field and the mapping complexity of Zheng et al., ICLR 2022. The paper's exact definitions were out of
reach; these follow from what it says about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from atlas.methods.symbolic_l2o.expressions import Expression, parse
from atlas.methods.symbolic_l2o.rules import column_names

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from atlas.l2o.recurrent import L2ODM, RNNprop

SUPPORT = 1e-3
"""A lag counts as used from this share of the largest sensitivity on."""


def sensitivities(fn: Expression | Callable[[Tensor], Tensor], X: Any, features: Sequence[str], lags: int) -> np.ndarray:
    """Mean |∂f/∂z_{k,t−τ}| over rows, (features, lags).

    Parameters
    ----------
    fn : Expression or callable
        An expression of ``"{feature}_{lag}"``; or a function of rows, (n, lags · features) to (n,), differentiable in torch.
    X : array
        (n, lags · features), columns as :func:`.rules.column_names` has them.

    Raises
    ------
    ValueError
        X does not have a column per feature and lag.
    """
    import torch

    rows = torch.as_tensor(X, dtype=torch.float64).clone().requires_grad_()
    if rows.ndim != 2 or rows.shape[1] != lags * len(features):
        raise ValueError(f"X must have {lags * len(features)} columns, not {tuple(rows.shape)}")
    if isinstance(fn, Expression):
        module = fn.module(trainable=False)
        env = {name: rows[:, column] for column, name in enumerate(column_names(features, lags))}
        value = module(env)
    else:
        value = fn(rows)
    if not value.requires_grad:
        return torch.zeros(len(features), lags).numpy()
    (gradient,) = torch.autograd.grad(value.sum(), rows, allow_unused=True)
    if gradient is None:
        return torch.zeros(len(features), lags).numpy()
    magnitude = torch.nan_to_num(gradient.abs(), nan=0.0, posinf=0.0)
    return magnitude.mean(0).reshape(lags, len(features)).T.numpy()


def temporal_perception_field(
    fn: Expression | Callable[[Tensor], Tensor], X: Any, features: Sequence[str], lags: int
) -> dict[str, float]:
    """Mean lag that f is sensitive to, of each feature: Σ_τ τ S_{k,τ} / Σ_τ S_{k,τ}.

    0 for gradient descent, β/(1−β) for momentum; NaN for a feature that is not used. See :func:`sensitivities` for the
    parameters and errors.
    """
    return field_of(sensitivities(fn, X, features, lags), features)


def field_of(sensitivity: np.ndarray, features: Sequence[str]) -> dict[str, float]:
    """The temporal perception field of sensitivities (features, lags)."""
    found = {}
    for feature, row in zip(features, sensitivity, strict=True):
        total = float(row.sum())
        found[feature] = float(sum(lag * value for lag, value in enumerate(row)) / total) if total > 0 else math.nan
    return found


def lag_support(sensitivity: np.ndarray, features: Sequence[str]) -> dict[str, int]:
    """Number of lags that each feature is used at, by sensitivities (features, lags)."""
    top = float(sensitivity.max())
    return {feature: int((row > SUPPORT * top).sum()) for feature, row in zip(features, sensitivity, strict=True)}


def mapping_complexity(expr: Expression | str) -> int:
    """Nodes of an expression once constants are folded; a weighted leaf counts as a product of a constant and a variable.

    >>> mapping_complexity("tanh(c)"), mapping_complexity("logm(pow(c,plus(c,m)))")
    (2, 6)
    """
    expression = parse(expr) if isinstance(expr, str) else expr
    return expression.simplify().complexity


def network_field(policy: RNNprop | L2ODM, sequences: Any, features: Sequence[str]) -> dict[str, float]:
    """Temporal perception field of a recurrent policy, through its unrolled recurrence.

    Parameters
    ----------
    sequences : array
        (n, steps, features): inputs in the order of time, from an empty memory; the last step's output is differentiated. The
        paper unrolls 60 steps.
    """
    import torch

    inputs = torch.as_tensor(sequences, dtype=torch.float32).clone().requires_grad_()
    theta = inputs.new_zeros(1, len(inputs))
    cells = policy.cells.init_state(theta)
    output = theta
    for step in range(inputs.shape[1]):
        output, cells = policy.respond(inputs[:, step].unsqueeze(0), cells)
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    sensitivity = gradient.abs().mean(0).flip(0).T.double().numpy()
    return field_of(sensitivity, features)


def r_squared(found: Any, wanted: Any) -> float:
    """1 − SSE/SST.

    Raises
    ------
    ValueError
        ``wanted`` is constant: R² undefined.
    """
    import numpy as np

    wanted = np.asarray(wanted, dtype=np.float64)
    spread = float(np.square(wanted - wanted.mean()).sum())
    if spread == 0:
        raise ValueError("the target is constant: R² undefined")
    error = float(np.square(np.broadcast_to(found, wanted.shape) - wanted).sum())
    return 1 - error / spread if math.isfinite(error) else -math.inf
