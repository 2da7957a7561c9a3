"""How far back an optimizer looks, and how complicated what it does is.

The temporal perception field and the mapping complexity of Zheng et al., ICLR 2022. The paper's exact definitions were out of
reach; these follow from what it says about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atlas.methods.symbolic_l2o.expressions import Expression, parse
from atlas.methods.symbolic_l2o.rules import column_names

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from atlas.l2o.recurrent import L2ODM, RNNprop
    from atlas.methods.symbolic_l2o.policy import SymbolicPolicy

SUPPORT = 1e-3
"""A lag counts as used from this share of the largest sensitivity on."""
POINTS = 41
"""Of each axis of the grid on which a network is compared with its equation."""


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
    return magnitude.mean(0).reshape(lags, len(features)).T.cpu().numpy()


def temporal_perception_field(
    fn: Expression | Callable[[Tensor], Tensor], X: Any, features: Sequence[str], lags: int
) -> dict[str, float]:
    """Mean lag that f is sensitive to, of each feature, over rows X (n, lags · features): Σ_τ τ S_{k,τ} / Σ_τ S_{k,τ}.

    0 for gradient descent, β/(1−β) for momentum; NaN for a feature that is not used. See :func:`sensitivities` for the
    parameters and errors.
    """
    return field_of(sensitivities(fn, X, features, lags), features)


def field_of(sensitivity: np.ndarray, features: Sequence[str]) -> dict[str, float]:
    """The temporal perception field of sensitivities (features, lags)."""
    fields = {}
    for feature, row in zip(features, sensitivity, strict=True):
        total = float(row.sum())
        fields[feature] = float(sum(lag * value for lag, value in enumerate(row)) / total) if total > 0 else math.nan
    return fields


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

    device = next(policy.parameters()).device
    inputs = torch.as_tensor(sequences, dtype=torch.float32, device=device).clone().requires_grad_()
    theta = inputs.new_zeros(1, len(inputs))
    cells = policy.cells.init_state(theta)
    output = theta
    for step in range(inputs.shape[1]):
        output, cells = policy.respond(_fed(policy, inputs[:, step].unsqueeze(0)), cells)
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    sensitivity = gradient.abs().mean(0).flip(0).T.double().cpu().numpy()
    return field_of(sensitivity, features)


def widest_field(fields: Mapping[str, float | None]) -> float:
    """The largest temporal perception field over features; 0 where none is used."""
    return max((value for value in fields.values() if value is not None and not math.isnan(value)), default=0.0)


def _fed(network: RNNprop | L2ODM, z: Tensor) -> Tensor:
    """What the cells are fed for features (instances, parameters, features): L2O-DM may see a gradient's logarithm and sign."""
    from atlas.l2o.recurrent import L2ODM

    return network.inputs(z.squeeze(-1)) if isinstance(network, L2ODM) else z


def responses(network: RNNprop | L2ODM, equation: SymbolicPolicy, features: int) -> Tensor:
    """What a network and its equation do when their first two features have kept values for as long as the equation looks back.

    Returns
    -------
    Tensor
        (points, 4) on a grid over [−1, 1]²: the first feature, the second, the network's output and the equation's, both before
        their scale. One feature alone has a line, with 0 for the second; further features are 0.
    """
    import torch

    axis = torch.linspace(-1, 1, POINTS)
    first, second = torch.meshgrid(axis, axis if features > 1 else torch.zeros(1), indexing="ij")
    z = torch.zeros(1, first.numel(), features)
    z[0, :, 0] = first.reshape(-1)
    if features > 1:
        z[0, :, 1] = second.reshape(-1)
    lags, clamp = equation.rule.lags, equation.clamp or math.inf
    with torch.no_grad():
        cells = network.cells.init_state(z[:, :, 0])
        for _ in range(lags):
            response, cells = network.respond(_fed(network, z), cells)
        bounded = equation.rule(z[0].T.expand(1, lags, -1, -1))[0].nan_to_num(0.0, 0.0, 0.0).clamp(-clamp, clamp)
    return torch.stack([first.reshape(-1), second.reshape(-1), response[0], bounded], dim=1)


def r_squared(predicted: Any, target: Any) -> float:
    """1 − SSE/SST.

    Raises
    ------
    ValueError
        ``target`` is constant: R² undefined.
    """
    import numpy as np

    target = np.asarray(target, dtype=np.float64)
    spread = float(np.square(target - target.mean()).sum())
    if spread == 0:
        raise ValueError("the target is constant: R² undefined")
    error = float(np.square(np.broadcast_to(predicted, target.shape) - target).sum())
    return 1 - error / spread if math.isfinite(error) else -math.inf
