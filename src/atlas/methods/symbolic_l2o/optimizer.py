"""An equation as a ``torch.optim.Optimizer``.

A step costs some passes over the parameters: the gradient comes in, the moments that the equation uses are updated, the
equation is evaluated, the parameters move. Done tensor by tensor, each pass would stream whole tensors through memory; here they
are taken in blocks that stay in the cache through all passes, so that a block is read and written once. On CUDA the same passes
are compiled into few kernels per tensor, or done by foreach operations over all tensors at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from atlas.l2o import Features
from atlas.l2o import LearnedOptimizer as LearnedOptimizer
from atlas.l2o.drop_in import DropIn, as_real, wide
from atlas.l2o.features import EMA, NORM_EPS, POWER, POWER_EPS, TIME_SCALE
from atlas.l2o.policies import decays, not_negative, positive
from atlas.methods.symbolic_l2o.eager import chain
from atlas.methods.symbolic_l2o.expressions import Expression, parse
from atlas.methods.symbolic_l2o.rules import Rule, used_columns

if TYPE_CHECKING:
    import sympy

Piece = tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]
BLOCK = 1 << 15  # scalars; the float32 buffers of a step, of 128 KiB each, fit a core's second-level cache


def read_rule(rule: Expression | Rule | str | Path | sympy.Expr) -> Expression:
    """The expression of a rule in any of its forms: ours, a template, text, a file that holds text, or sympy's.

    Raises
    ------
    ValueError
        It is none of these, or the text is not an expression.
    """
    if isinstance(rule, Expression):
        return rule
    if isinstance(rule, Rule):
        return rule.expression
    if isinstance(rule, Path):
        return load_expression(rule)
    if isinstance(rule, str):
        return parse(rule)
    from atlas.methods.symbolic_l2o.sympy_bridge import from_sympy

    return from_sympy(rule)


def load_expression(path: Path | str) -> Expression:
    """Read a rule from a text file, or from a ``rule.json`` with the key ``expression``.

    Raises
    ------
    ValueError
        The file holds no expression.
    """
    import json

    text = Path(path).read_text()
    if Path(path).suffix == ".json":
        content = json.loads(text)
        if not isinstance(content, dict) or not isinstance(content.get("expression"), str):
            raise ValueError(f"{path} has no key expression")
        text = content["expression"]
    return parse(text)


class SymbolicOptimizer(DropIn):
    """Steps parameters by u = lr · f(features and their history).

    State is limited to what the equation uses: −0.01·g needs none, an Adam-like one two moments, and a feature's history is as
    long as its longest lag. State is kept in float32 (float64 for such parameters). Complex parameters are stepped as pairs of
    real ones.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for any optimizer. A group may set ``lr``, ``betas`` and ``weight_decay`` for its parameters;
        another option is refused.
    rule : Expression, Rule, str, Path or sympy.Expr
        f over variables ``"{feature}_{lag}"``, see :class:`atlas.l2o.Features` for the features. Its value is added.
    lr : float
        α; schedulers act on it.
    features : sequence of str
        Which features the rule may use; a template brings its own.
    betas : tuple of float
        Decay of the moments.
    lags : int
        Steps that the rule may look back on, the present one included.
    clamp : float, optional
        Bound on |f|, where what is not finite becomes 0. ``None`` leaves f as it is.
    foreach : bool, optional
        Evaluate operation by operation over all tensors at once, instead of block by block. By default on no device.
    compiled : bool, optional
        Compile the step. By default on CUDA.
    weight_decay : float
        Decoupled, as AdamW's: parameters shrink by lr · weight_decay before the update.
    patience : int
        A tensor whose gradient is not finite keeps its value and state for that step; as many such steps in a row raise.

    Raises
    ------
    ValueError
        An unknown feature, variable or operator (the valid ones are listed), ``lags`` < 1, ``lr`` or ``clamp`` not positive, a β
        outside [0, 1), a group's option that is not known. From :meth:`load_state_dict`: the state belongs to another equation,
        or to parameters of other sizes.
    RuntimeError
        From :meth:`step`: a gradient is sparse, or not finite for ``patience`` steps in a row.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 1)
    >>> optimizer = SymbolicOptimizer(layer.parameters(), "-tanh(2 * m_0) - 0.1 * g_1", lr=0.01)
    """

    options: ClassVar[Mapping[str, Callable[[str, Any], object]]] = {**DropIn.options, "betas": decays}
    _kernel: Callable[..., None] | None = None

    def __init__(
        self,
        params: Any,
        rule: Expression | Rule | str | Path | sympy.Expr,
        lr: float = 0.01,
        features: Sequence[str] = ("m", "g"),
        betas: tuple[float, float] = (0.95, 0.95),
        lags: int = 10,
        clamp: float | None = 1.0,
        *,
        foreach: bool = False,
        compiled: bool | None = None,
        patience: int = 10,
        weight_decay: float = 0.0,
    ) -> None:
        if isinstance(rule, Rule):
            features, lags = rule.features, rule.lags
        if lags < 1:
            raise ValueError(f"lags must be at least 1, not {lags}")
        if clamp is not None:
            positive("clamp", clamp)
        Features(features, betas)
        self.expression = read_rule(rule).simplify()
        self.program = Program(self.expression, features, lags, clamp)
        self.foreach, self.compiled = foreach, compiled
        defaults = {"lr": positive("lr", lr), "betas": betas, "weight_decay": not_negative("weight_decay", weight_decay)}
        super().__init__(params, defaults, patience)

    def _step(self, group: dict[str, Any], usable: list[Tensor]) -> None:
        for parameter in usable:
            store = self.state[parameter]
            if "step" not in store:
                store.update(self.program.init(as_real(parameter)))
            store["step"] += 1
        lr, betas = float(group["lr"]), group["betas"]
        if self.foreach:
            self.program.advance_all([(p, p.grad, self.state[p]) for p in usable], lr, betas)  # type: ignore[misc]
        else:
            for parameter in usable:
                self._advance(parameter, lr, betas)

    def _advance(self, parameter: Tensor, lr: float, betas: tuple[float, float]) -> None:
        assert parameter.grad is not None
        compiled = parameter.is_cuda if self.compiled is None else self.compiled
        store = self.state[parameter]
        real = as_real(parameter)
        flat, copied = _flat(real)
        gradient = as_real(parameter.grad).reshape(-1)
        scalars = self.program.scalars(store["step"], lr, betas)
        if compiled:
            if self._kernel is None:
                self._kernel = torch.compile(self.program.advance, dynamic=True)
            self._kernel(flat, gradient.to(flat.dtype), store["moments"], store["history"], as_tensors(scalars, flat))
        else:
            for theta, g, moments, history in _blocks(flat, gradient, store["moments"], store["history"]):
                self.program.advance(theta, g, moments, history, scalars)
        if copied:
            real.copy_(flat.view_as(real))

    def _fresh(self, group: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        return {parameter: self.program.init(as_real(parameter.to("meta"))) for parameter in group["params"]}

    def rule(self) -> str:
        """The equation."""
        return str(self.expression)

    def latex(self) -> str:
        """The equation as LaTeX."""
        return self.expression.latex()

    def __repr__(self) -> str:
        rates = ", ".join(f"{group['lr']:g}" for group in self.param_groups)
        return f"SymbolicOptimizer({self.expression}, lr={rates})"


def _flat(parameter: Tensor) -> tuple[Tensor, bool]:
    """A parameter of real numbers as a vector of at least single precision; whether that is a copy."""
    dtype = wide(parameter)
    if parameter.is_contiguous() and parameter.dtype == dtype:
        return parameter.view(-1), False
    return parameter.reshape(-1).to(dtype, copy=True), True


def _blocks(flat: Tensor, gradient: Tensor, moments: dict[str, Tensor], history: dict[str, Tensor]) -> Iterator[Piece]:
    """Corresponding pieces of a parameter, its gradient and its state."""
    for start in range(0, len(flat), BLOCK):
        part = slice(start, start + BLOCK)
        yield (
            flat[part],
            gradient[part].to(flat.dtype),
            {name: value[part] for name, value in moments.items()},
            {name: value[:, part] for name, value in history.items()},
        )


def as_tensors(scalars: dict[str, Any], like: Tensor) -> dict[str, Any]:
    """The numbers of a step as tensors, so that a compiled step is not compiled anew for each."""
    numbers = {name: torch.tensor(scalars[name], dtype=like.dtype) for name in ("first_bias", "second_bias", "time", "lr")}
    slots = {feature: torch.tensor(slot, device=like.device) for feature, slot in scalars["slots"].items()}
    return {**scalars, **{name: number.to(like.device) for name, number in numbers.items()}, "slots": slots}


class Program:
    """What one step does, worked out once from the expression: moments that are needed, history, and the evaluation."""

    def __init__(self, expression: Expression, features: Sequence[str], lags: int, clamp: float | None) -> None:
        columns = used_columns(expression.variables, features, lags)
        self.settings, self.clamp = (expression, tuple(features), lags, clamp), clamp
        # a sign in front is the step's: the bound is symmetric
        self.sign, self.expression = (-1, expression.args[0]) if expression.op == "neg" else (1, expression)
        self.chain = chain(self.expression)
        self.columns = {name: (features[feature], lag) for name, (feature, lag) in columns.items()}
        self.used = sorted({feature for feature, _ in self.columns.values()})
        longest = {feature: max(lag for own, lag in self.columns.values() if own == feature) for feature in self.used}
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
        """State of a parameter of real numbers before its first step."""
        dtype = wide(parameter)

        def zeros(*lead: int) -> Tensor:
            return torch.zeros(*lead, parameter.numel(), dtype=dtype, device=parameter.device)

        names = [*(["m"] if self.first else []), *(["v"] if self.second else []), *self.means]
        names += self.power_means
        return {
            "step": 0,
            "moments": {name: zeros() for name in names},
            "history": {feature: zeros(length) for feature, length in self.history.items()},
        }

    def constants(self, like: Tensor) -> tuple[Tensor, ...]:
        """The expression's constants as tensors without axes."""
        values = torch.tensor(self.expression.constants, dtype=like.dtype).to(like.device)
        return values.unbind() if len(values) else ()

    def scalars(self, step: int, lr: float, betas: tuple[float, float]) -> dict[str, Any]:
        """Numbers of a step that are the same for all coordinates."""
        one, two = betas
        slots = {feature: (step - 1) % length for feature, length in self.history.items()}
        return {
            "betas": betas,
            "first_bias": 1 - one**step,
            "second_bias": 1 - two**step,
            "time": step / TIME_SCALE,
            "lr": self.sign * lr,
            "slots": slots,
        }

    def advance(
        self, theta: Tensor, gradient: Tensor, moments: dict[str, Tensor], history: dict[str, Tensor], scalars: dict[str, Any]
    ) -> None:
        """One step on (part of) one parameter, in place; all tensors are vectors over the same coordinates."""
        present = self._features(gradient, moments, scalars)
        env = {name: self._value(*column, present, history, scalars) for name, column in self.columns.items()}
        raw, owned = self.chain.run(env), self.chain.owned
        if self.clamp is not None:
            finite = torch.nan_to_num_ if owned else torch.nan_to_num
            raw = finite(raw, nan=0.0, posinf=0.0, neginf=0.0).clamp_(-self.clamp, self.clamp)
        lr = scalars["lr"]
        if isinstance(lr, Tensor):
            theta.add_(raw * lr)
        else:
            theta.add_(raw, alpha=lr)
        for feature, memory in history.items():
            memory[scalars["slots"][feature]] = present[feature]

    def _value(
        self, feature: str, lag: int, present: dict[str, Tensor], history: dict[str, Tensor], scalars: dict[str, Any]
    ) -> Tensor:
        """A feature some steps ago; the history is a ring, whose next slot holds the oldest entry."""
        if lag == 0:
            return present[feature]
        length = self.history[feature]
        return history[feature][(scalars["slots"][feature] - lag) % length]

    def _features(self, g: Tensor, moments: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Tensor]:
        """Update the moments in place, and return the features that are used; see :class:`atlas.l2o.Features`."""
        one, two = scalars["betas"]
        if self.first:
            moments["m"].lerp_(g, 1 - one)
        if self.second:
            moments["v"].mul_(two).addcmul_(g, g, value=1 - two)
        for name, beta in self.means.items():
            moments[name].lerp_(g, 1 - beta)
        for name, power in self.power_means.items():
            moments[name].mul_(two).add_(g.abs().pow_(power), alpha=1 - two)
        deviation = _unbiased(moments["v"], scalars["second_bias"]).sqrt() if self.second else None
        normaliser = None
        if deviation is not None and self.normalised:
            normaliser = deviation + NORM_EPS if "d" in self.used else deviation.add_(NORM_EPS)
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
            top = corrected if name == "n" else moments["m"]
            assert top is not None
            return top / ((mean / scalars["second_bias"]).pow_(1 / power).add_(POWER_EPS))
        if name in self.means:
            return moments[name]
        if name == "time":
            return torch.zeros_like(g) + scalars["time"]
        if name in ("m", "g"):
            assert normaliser is not None
            return g / normaliser if name == "g" else moments["m"] / _biased(normaliser, scalars["first_bias"])
        plain: dict[str, Tensor | None] = {"grad": g, "mom": moments.get("m"), "mhat": corrected, "d": deviation}
        found = plain[name]
        assert found is not None
        return found

    def advance_all(self, tensors: list[tuple[Tensor, Tensor, dict[str, Any]]], lr: float, betas: tuple[float, float]) -> None:
        """One step on many parameters, operation by operation over all of them."""
        from atlas.methods.symbolic_l2o.foreach import advance_all

        advance_all(self, tensors, lr, betas)


def _unbiased(mean: Tensor, correction: Any) -> Tensor:
    """A moment over its bias correction, which is 1 after some hundred steps."""
    return mean if isinstance(correction, float) and correction == 1 else mean / correction


def _biased(width: Tensor, correction: Any) -> Tensor:
    return width if isinstance(correction, float) and correction == 1 else width * correction


def _mean_name(power: float) -> str:
    return f"v{power:g}"


def _power(feature: str) -> float:
    return 3.0 if feature == "n" else float(feature[1:])
