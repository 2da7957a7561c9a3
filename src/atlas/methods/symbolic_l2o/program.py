"""What a step of an equation does to one block of coordinates, worked out once from the expression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atlas.l2o.drop_in import wide
from atlas.l2o.features import EMA, NORM_EPS, POWER, POWER_EPS, TIME_SCALE
from atlas.methods.symbolic_l2o.delays import carried
from atlas.methods.symbolic_l2o.eager import Chain, chain, quick_tanh
from atlas.methods.symbolic_l2o.expressions import Expression
from atlas.methods.symbolic_l2o.rules import used_columns

STEP = "step"  # beside what is made of the past, whose names are expressions


class Program:
    """What one step does, worked out once from the expression: moments that are needed, history, and the evaluation.

    ``eps`` is what stands beside √v̂ in the features m̃ and g̃. What the equation makes of a feature's past is kept in its place
    (:mod:`atlas.methods.symbolic_l2o.delays`): ``made`` says what that is.
    """

    def __init__(
        self, expression: Expression, features: Sequence[str], lags: int, clamp: float | None, eps: float = NORM_EPS
    ) -> None:
        columns = used_columns(expression.variables, features, lags)
        self.settings, self.clamp = (expression, tuple(features), lags, clamp, eps), clamp
        self.eps = eps
        # a sign in front is the step's: the bound is symmetric
        self.sign, plain = (-1, expression.args[0]) if expression.op == "neg" else (1, expression)
        named = {name: (features[feature], lag) for name, (feature, lag) in columns.items()}
        self.used = sorted({feature for feature, _ in named.values()})
        self.expression, self.columns, self.made = carried(plain, named)
        self.chains = {name: chain(made) for name, made in {**self.made, STEP: self.expression}.items()}
        self.quick = {name: chain(made, {"tanh": quick_tanh}) for name, made in {**self.made, STEP: self.expression}.items()}
        kept = {feature for feature, _ in self.columns.values()}
        longest = {feature: max(lag for own, lag in self.columns.values() if own == feature) for feature in sorted(kept)}
        self.history = {feature: length for feature, length in longest.items() if length}
        self.means = {feature: float(feature[3:]) for feature in self.used if EMA.fullmatch(feature)}
        self.powers = {feature: _power(feature) for feature in self.used if feature == "n" or POWER.fullmatch(feature)}
        self.mean_of = {feature: _mean_name(power) for feature, power in self.powers.items()}
        self.power_means = {_mean_name(power): power for power in sorted(set(self.powers.values()))}
        self.first = bool({"m", "n", "mom", "mhat"} & set(self.used)) or any(map(POWER.fullmatch, self.used))
        self.second = bool({"m", "g", "d"} & set(self.used))
        self.normalised, self.corrected = bool({"m", "g"} & set(self.used)), bool({"mhat", "n"} & set(self.used))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is worked out anew; functions can be neither copied nor pickled."""
        return Program, self.settings

    def init(self, parameter: Tensor) -> dict[str, Any]:
        """State of a parameter (…) of n real numbers before its first step: moments (n,) and histories (length, n)."""
        dtype = wide(parameter)

        def zeros(*lead: int) -> Tensor:
            return torch.zeros(*lead, parameter.numel(), dtype=dtype, device=parameter.device)

        names = [*(["m"] if self.first else []), *(["v"] if self.second else []), *self.means]
        names += self.power_means
        history = {feature: zeros(length) for feature, length in self.history.items()}
        for name, made in self.made.items():  # of features that were zero, with the arithmetic of the steps
            before = self.chains[name].run(dict.fromkeys(made.variables, torch.zeros(1, dtype=dtype)))
            history[name] += float(before)
        return {"step": 0, "moments": {name: zeros() for name in names}, "history": history}

    def constants(self, like: Tensor, expression: Expression) -> tuple[Tensor, ...]:
        """The constants of (a part of) the equation as tensors without axes."""
        values = torch.tensor(expression.constants, dtype=like.dtype).to(like.device)
        return values.unbind() if len(values) else ()

    def scalars(self, step: int, lr: float, betas: tuple[float, float]) -> dict[str, Any]:
        """Numbers of a step that are the same for all coordinates."""
        beta1, beta2 = betas
        slots = {feature: (step - 1) % length for feature, length in self.history.items()}
        return {
            "betas": betas,
            "first_bias": 1 - beta1**step,
            "second_bias": 1 - beta2**step,
            "time": step / TIME_SCALE,
            "lr": self.sign * lr,
            "slots": slots,
        }

    def advance(
        self, theta: Tensor, gradient: Tensor, moments: dict[str, Tensor], history: dict[str, Tensor], scalars: dict[str, Any]
    ) -> None:
        """One step on (part of) one parameter, in place; all tensors are vectors (n,) over the same coordinates."""
        present = self.move(theta, gradient, moments, self.past(history, scalars["slots"]), scalars, self.chains)
        for feature, memory in history.items():
            memory[scalars["slots"][feature]] = present[feature]

    def past(self, history: dict[str, Tensor], slots: dict[str, int]) -> dict[str, Tensor]:
        """Variables (n,) that lie some steps back; the history (length, n) is a ring, its next slot holds the oldest entry."""
        lagged = {name: column for name, column in self.columns.items() if column[1]}
        return {name: history[feature][(slots[feature] - lag) % self.history[feature]] for name, (feature, lag) in lagged.items()}

    def move(
        self,
        theta: Tensor,
        gradient: Tensor,
        moments: dict[str, Tensor],
        past: dict[str, Tensor],
        scalars: dict[str, Any],
        chains: dict[str, Chain],
    ) -> dict[str, Tensor]:
        """Update moments and parameter in place, and return what has a history and the present features, all (n,).

        The history is left to the caller.
        """
        present = self._features(gradient, moments, scalars)
        present |= {name: chains[name].run(present) for name in self.made}
        env = {name: past[name] if lag else present[feature] for name, (feature, lag) in self.columns.items()}
        raw, owned = chains[STEP].run(env), chains[STEP].owned
        if self.clamp is not None:
            if torch.compiler.is_compiling():  # where nan_to_num would ask number by number whether one is nan
                raw = torch.where(raw.abs() < math.inf, raw, 0.0)
            else:
                raw = (torch.nan_to_num_ if owned else torch.nan_to_num)(raw, nan=0.0, posinf=0.0, neginf=0.0)
            raw = raw.clamp_(-self.clamp, self.clamp)
        lr = scalars["lr"]
        if isinstance(lr, Tensor):
            theta.add_(raw * lr)
        else:
            theta.add_(raw, alpha=lr)
        return present

    def fused(
        self,
        theta: Tensor,
        gradient: Tensor,
        moments: dict[str, Tensor],
        past: dict[str, Tensor],
        kept: dict[str, Tensor],
        scalars: dict[str, Any],
    ) -> None:
        """What is compiled: :meth:`move`, with what has a history written to ``kept``, (n,), the slot of its oldest entry.

        ``past`` has that entry as the same tensor. The others are tensors of their own: reading and writing one ring in one
        kernel would be taken for reading what is written, and not be fused.
        """
        quick = theta.dtype == torch.float32 and theta.device.type == "cpu"
        present = self.move(theta, gradient, moments, past, scalars, self.quick if quick else self.chains)
        for feature, memory in kept.items():
            memory.copy_(present[feature])

    def _features(self, g: Tensor, moments: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Tensor]:
        """Update the moments in place, and return the features that are used; see :class:`atlas.l2o.Features`."""
        beta1, beta2 = scalars["betas"]
        if self.first:
            moments["m"].lerp_(g, 1 - beta1)
        if self.second:
            moments["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        for name, beta in self.means.items():
            moments[name].lerp_(g, 1 - beta)
        for name, power in self.power_means.items():
            moments[name].mul_(beta2).add_(g.abs().pow_(power), alpha=1 - beta2)
        deviation = _unbiased(moments["v"], scalars["second_bias"]).sqrt() if self.second else None
        normaliser = None
        if deviation is not None and self.normalised:
            normaliser = deviation + self.eps if "d" in self.used else deviation.add_(self.eps)
        corrected = moments["m"] / scalars["first_bias"] if self.corrected else None
        return {name: self._feature(name, g, moments, deviation, normaliser, corrected, scalars) for name in self.used}

    def _feature(
        self,
        name: str,
        g: Tensor,
        moments: dict[str, Tensor],
        deviation: Tensor | None,
        normaliser: Tensor | None,
        corrected: Tensor | None,
        scalars: dict[str, Any],
    ) -> Tensor:
        if name in self.powers:
            power, mean = self.powers[name], moments[self.mean_of[name]]
            numerator = corrected if name == "n" else moments["m"]
            assert numerator is not None
            return numerator / ((mean / scalars["second_bias"]).pow_(1 / power).add_(POWER_EPS))
        if name in self.means:
            return moments[name]
        if name == "time":
            return torch.zeros_like(g) + scalars["time"]
        if name in ("m", "g"):
            assert normaliser is not None
            return g / normaliser if name == "g" else moments["m"] / _biased(normaliser, scalars["first_bias"])
        direct: dict[str, Tensor | None] = {"grad": g, "mom": moments.get("m"), "mhat": corrected, "d": deviation}
        value = direct[name]
        assert value is not None
        return value


def _unbiased(mean: Tensor, correction: Any) -> Tensor:
    """A moment over its bias correction, which is 1 after some hundred steps."""
    return mean if isinstance(correction, float) and correction == 1 else mean / correction


def _biased(width: Tensor, correction: Any) -> Tensor:
    return width if isinstance(correction, float) and correction == 1 else width * correction


def _mean_name(power: float) -> str:
    return f"v{power:g}"


def _power(feature: str) -> float:
    return 3.0 if feature == "n" else float(feature[1:])


def as_tensors(scalars: dict[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The numbers of a step as scalar tensors, so that a compiled step is not compiled anew for each."""
    numbers = {name: torch.tensor(scalars[name], dtype=dtype) for name in ("first_bias", "second_bias", "time", "lr")}
    return {"betas": scalars["betas"], **{name: number.to(device) for name, number in numbers.items()}}
