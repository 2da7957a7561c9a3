"""Update rules with few trainable numbers; :class:`.policy.SymbolicPolicy` runs them.

*Symbolic Learning to Optimize* (Zheng et al., ICLR 2022): u_t = α f(z_t, z_{t−1}, …), where z are features of the gradients
(:class:`atlas.l2o.Features`) and the history before the first step is zero. A rule is f. It sees ``history``, (…, lags, features,
parameters) with lag 0, the present step, first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atlas.l2o import Features
from atlas.methods.symbolic_l2o.expressions import Expression, call, const, parse, var
from atlas.methods.symbolic_l2o.modules import ExpressionModule
from atlas.methods.symbolic_l2o.settings import RuleSettings, TemplateSettings

DEFAULT = RuleSettings()
LAGGED = re.compile(r"(.+)_(\d+)")


def column_names(features: Sequence[str], lags: int) -> list[str]:
    """``"{feature}_{lag}"`` of all features at lag 0, then at lag 1, and so on: the columns of regression data."""
    return [f"{feature}_{lag}" for lag in range(lags) for feature in features]


def used_columns(variables: Iterable[str], features: Sequence[str], lags: int) -> dict[str, tuple[int, int]]:
    """Variable to (feature's index, lag), for the variables of an expression.

    Raises
    ------
    ValueError
        A variable is not a feature with a lag that is kept; the valid ones are listed.
    """
    columns = {}
    for name in sorted(variables):
        match = LAGGED.fullmatch(name)
        if match is None or match[1] not in features or int(match[2]) >= lags:
            known = ", ".join(f"{feature}_0 … {feature}_{lags - 1}" if lags > 1 else f"{feature}_0" for feature in features)
            raise ValueError(f"{name} is not a variable of the rule; choose from {known}")
        columns[name] = (list(features).index(match[1]), int(match[2]))
    return columns


class Rule(nn.Module):
    """Base of update rules: what they are fed, and an expression that says what they do now.

    Attributes
    ----------
    features : tuple of str
        Of :data:`atlas.l2o.FEATURES`.
    lags : int
        Steps that the rule sees, the present one included.
    """

    features: tuple[str, ...]
    lags: int

    def __init__(self, features: Sequence[str], lags: int) -> None:
        super().__init__()
        Features(features)  # refuses names that are not features
        if lags < 1:
            raise ValueError(f"lags must be at least 1, not {lags}")
        self.features, self.lags = tuple(features), lags

    @property
    def expression(self) -> Expression:
        """The rule as an expression, with its present numbers."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The rule's equation, simplified, for printing."""
        return str(self.expression.simplify())


class ExpressionRule(Rule):
    """Any expression of ``"{feature}_{lag}"``; its constants are trainable.

    Parameters
    ----------
    expression : Expression or str
        The rule.
    features, lags
        As in :class:`Rule`.

    Raises
    ------
    ValueError
        A variable is not a feature with a lag that is kept, or ``lags`` is less than 1.
    """

    def __init__(
        self, expression: Expression | str, features: Sequence[str] = DEFAULT.features, lags: int = DEFAULT.lags
    ) -> None:
        super().__init__(features, lags)
        form = parse(expression) if isinstance(expression, str) else expression
        self.columns = used_columns(form.variables, features, lags)
        self.form = ExpressionModule(form)

    @property
    def expression(self) -> Expression:
        """The expression with its present constants."""
        return self.form.expression

    def forward(self, history: Tensor) -> Tensor:
        """Return f, (…, parameters), for a history of features, (…, lags, features, parameters)."""
        env = {name: history[..., lag, feature, :] for name, (feature, lag) in self.columns.items()}
        value: Tensor = self.form(env) if env else self.form({"": history[..., 0, 0, :]})
        return value.expand(*history.shape[:-3], history.shape[-1])


class TanhTemplate(Rule):
    """ψ = −Σ_k Σ_τ W_{k,τ} γ_k tanh(z_{k,t−τ}/γ_k): the template that the paper fine-tunes, one γ > 0 per feature.

    Parameters
    ----------
    features, lags
        As in :class:`Rule`.
    weights : Tensor, optional
        W, (features, lags); by default 1 for the first feature at lag 0 and 0 elsewhere, which is Adam-like for m̃.
    gamma : float or sequence of float
        γ, of all features or of each; kept positive by training its logarithm.

    Attributes
    ----------
    weights, log_gamma : nn.Parameter
        (features, lags) and (features,).

    Raises
    ------
    ValueError
        Shapes do not fit, a γ is not positive, or ``lags`` is less than 1.
    """

    def __init__(
        self,
        features: Sequence[str] = DEFAULT.features,
        lags: int = DEFAULT.lags,
        weights: Tensor | None = None,
        gamma: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(features, lags)
        if weights is None:
            weights = torch.zeros(len(features), lags)
            weights[0, 0] = 1.0
        widths = torch.as_tensor(gamma, dtype=weights.dtype).expand(len(features))
        if weights.shape != (len(features), lags):
            raise ValueError(f"weights must be {(len(features), lags)}, not {tuple(weights.shape)}")
        if not bool((widths > 0).all()):
            raise ValueError(f"gamma must be positive, not {widths.tolist()}")
        self.weights = nn.Parameter(weights.detach().clone())
        self.log_gamma = nn.Parameter(widths.log().clone())

    @property
    def gamma(self) -> Tensor:
        """Widths γ of the squashing, one per feature, (features,)."""
        return self.log_gamma.exp()

    def forward(self, history: Tensor) -> Tensor:
        """Return f, (…, parameters), for a history of features, (…, lags, features, parameters)."""
        gamma = self.gamma.to(history.dtype)
        squashed = torch.tanh(history / gamma[:, None]) * gamma[:, None]
        return -torch.einsum("...lfp,fl->...p", squashed, self.weights.to(history.dtype))

    @property
    def expression(self) -> Expression:
        """The template as a sum of terms; weights that are exactly 0 have none."""
        total: Expression | None = None
        weights, gammas = self.weights.detach().double(), self.gamma.detach().double().tolist()
        for lag in range(self.lags):
            for k, feature in enumerate(self.features):
                weight = float(weights[k, lag])
                if weight:
                    inner = call("tanh", call("mul", 1 / gammas[k], var(f"{feature}_{lag}")))
                    term = call("mul", -weight * gammas[k], inner)
                    total = term if total is None else call("add", total, term)
        return const(0.0) if total is None else total.simplify()

    @classmethod
    def fit(
        cls,
        X: Any,
        y: Any,
        features: Sequence[str] = DEFAULT.features,
        lags: int = DEFAULT.lags,
        gammas: Sequence[float] = TemplateSettings().gammas,
    ) -> TanhTemplate:
        """Least squares for W on regression data, over a grid of γ (the same for all features).

        Parameters
        ----------
        X, y : ndarray
            (rows, lags · features), columns as :func:`column_names` has them, and (rows,).

        Raises
        ------
        ValueError
            X does not have a column per feature and lag.
        """
        rows = torch.as_tensor(X, dtype=torch.float64)
        target = torch.as_tensor(y, dtype=torch.float64)
        if rows.ndim != 2 or rows.shape[1] != lags * len(features):
            raise ValueError(f"X must have {lags * len(features)} columns, not {tuple(rows.shape)}")
        best: tuple[float, Tensor, float] | None = None
        for gamma in gammas:
            atoms = -gamma * torch.tanh(rows / gamma)
            solution = torch.linalg.lstsq(atoms, target[:, None], driver="gelsd").solution[:, 0]
            loss = float((atoms @ solution - target).square().mean())
            if best is None or loss < best[0]:
                best = (loss, solution, gamma)
        assert best is not None
        weights = best[1].reshape(lags, len(features)).T.to(torch.get_default_dtype())
        return cls(features, lags, weights, best[2])


class InterpolationRule(Rule):
    """−m̂/(1 − λ + λ√v̂): momentum at λ = 0, Adam at λ = 1; λ is the only trainable number.

    The authors' code has it without the minus sign, which ascends.
    """

    def __init__(self, lam: float = 0.8) -> None:
        super().__init__(("mhat", "d"), 1)
        self.lam = nn.Parameter(torch.tensor(float(lam)))

    def forward(self, history: Tensor) -> Tensor:
        """Return f, (…, parameters), for the present m̂ and √v̂, (…, 1, 2, parameters)."""
        first, deviation = history[..., 0, 0, :], history[..., 0, 1, :]
        lam = self.lam.to(history.dtype)
        return -first / (1 - lam + lam * deviation)

    @property
    def expression(self) -> Expression:
        """The rule as an expression, with its present λ."""
        lam = float(self.lam.detach())
        return call("neg", var("mhat_0") / (const(1 - lam) + lam * var("d_0")))


class PolynomialRule(Rule):
    """Σ_{k,τ,o} a·sgn(x)|x|^{o+δ} + b·sgn(x)|x|^{o−δ} with x = z/scale_k and o = 1 … orders: the authors' alternative.

    Parameters
    ----------
    scale : sequence of float
        Of each feature; (0.2, 1, 5e-4, 5e-4) are the authors' for m̃, g̃, g and the mean of g with 0.5.
    delta : float
        δ.

    Attributes
    ----------
    a, b : nn.Parameter
        (orders, lags, features), initially −0.001^o; the cubic term of the first feature at lag 0 in ``a`` is −1.98·0.2³.
    """

    def __init__(
        self,
        features: Sequence[str] = ("m", "g", "grad", "ema0.5"),
        lags: int = DEFAULT.lags,
        scale: Sequence[float] = (0.2, 1.0, 5e-4, 5e-4),
        orders: int = 3,
        delta: float = 0.05,
    ) -> None:
        super().__init__(features, lags)
        if len(scale) != len(features) or min(scale) <= 0:
            raise ValueError(f"scale must hold a positive number for each of {len(features)} features, not {tuple(scale)}")
        start = -torch.tensor([0.001**order for order in range(1, orders + 1)])
        self.a = nn.Parameter(start[:, None, None].repeat(1, lags, len(features)))
        self.b = nn.Parameter(start[:, None, None].repeat(1, lags, len(features)))
        if orders >= 3:
            with torch.no_grad():
                self.a[2, 0, 0] = -1.98 * 0.2**3
        self.register_buffer("scale", torch.tensor(tuple(scale), dtype=torch.float64))
        self.orders, self.delta = orders, delta

    def forward(self, history: Tensor) -> Tensor:
        """Return f, (…, parameters), for a history of features, (…, lags, features, parameters)."""
        assert isinstance(self.scale, Tensor)
        x = history / self.scale.to(history.dtype)[:, None]
        sign, magnitude = x.sign(), x.abs()
        total = torch.zeros_like(x[..., 0, 0, :])
        for order in range(1, self.orders + 1):
            for weights, exponent in ((self.a, order + self.delta), (self.b, order - self.delta)):
                term = sign * magnitude.pow(exponent)
                total = total + torch.einsum("...lfp,lf->...p", term, weights[order - 1].to(x.dtype))
        return total

    @property
    def expression(self) -> Expression:
        """The sum of powers, with their present weights."""
        assert isinstance(self.scale, Tensor)
        total: Expression = const(0.0)
        for order in range(1, self.orders + 1):
            for weights, exponent in ((self.a, order + self.delta), (self.b, order - self.delta)):
                for lag in range(self.lags):
                    for k, feature in enumerate(self.features):
                        x = call("div", var(f"{feature}_{lag}"), float(self.scale[k]))
                        total = total + float(weights[order - 1, lag, k].detach()) * call("pow", x, exponent)
        return total.simplify()


def adam_like(lags: int = 1) -> TanhTemplate:
    """The template that all but equals −m̃: Adam with the features' decay rates."""
    return TanhTemplate(("m", "g"), lags, gamma=(math.exp(7), 1.0))
