"""An equation as a ``torch.optim.Optimizer``.

A step costs some passes over the parameters: the gradient comes in, the moments that the equation uses are updated, the
equation is evaluated, the parameters move. Done tensor by tensor, each pass would stream whole tensors through memory; here they
are taken in blocks that stay in the cache through all passes, so that a block is read and written once. On CUDA each
operation of the same passes acts on all tensors at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from atlas.l2o import Features
from atlas.l2o import LearnedOptimizer as LearnedOptimizer
from atlas.l2o.drop_in import DropIn, as_real, wide
from atlas.l2o.features import NORM_EPS
from atlas.l2o.policies import decays, not_negative, positive
from atlas.methods.symbolic_l2o.expressions import Expression, parse
from atlas.methods.symbolic_l2o.foreach import advance_all
from atlas.methods.symbolic_l2o.program import Program, as_tensors
from atlas.methods.symbolic_l2o.rules import Rule
from atlas.methods.symbolic_l2o.settings import ALPHA, RuleSettings
from atlas.nn.kinds import require_whole, told

if TYPE_CHECKING:
    import sympy

DEFAULT = RuleSettings()
Scalars = dict[str, Any]
Piece = tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]
BLOCK = 1 << 15  # scalars; the float32 buffers of a step, of 128 KiB each, fit a core's second-level cache


def read_rule(rule: Expression | Rule | str | Path | sympy.Expr) -> Expression:
    """The expression of a rule in any of its forms: ours, a template, text, a file that holds text, or sympy's.

    Raises
    ------
    TypeError
        It is none of these.
    ValueError
        The text is not an expression.
    """
    if isinstance(rule, Expression):
        return rule
    if isinstance(rule, Rule):
        return rule.expression
    if is_file(rule):
        return load_expression(rule)
    if isinstance(rule, str):
        return parse(rule)
    if not hasattr(rule, "free_symbols"):
        raise TypeError(f"rule is a {told(rule)}; an expression is needed: text, a Rule, a file that holds one, or sympy's")
    from atlas.methods.symbolic_l2o.sympy_bridge import from_sympy

    return from_sympy(rule)


def is_file(rule: object) -> TypeGuard[Path | str]:
    """Whether a rule is given by the file that holds it: a path, or text that ends in ``.json`` or ``.txt``."""
    return isinstance(rule, Path) or (isinstance(rule, str) and rule.endswith((".json", ".txt")))


def load_rule(path: Path | str) -> dict[str, Any]:
    """Read a rule's file: ``expression`` as text, and what a ``rule.json`` says beside it (``lr``, ``features``, ``lags``).

    Raises
    ------
    ValueError
        There is no such file, or it holds no expression.
    """
    import json

    if not Path(path).is_file():
        raise ValueError(f"there is no file {path} to read a rule from")
    text = Path(path).read_text()
    if Path(path).suffix != ".json":
        return {"expression": text}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("expression"), str):
        raise ValueError(f"{path} has no key expression")
    return content


def load_expression(path: Path | str) -> Expression:
    """Read a rule from a text file, or from a ``rule.json`` with the key ``expression``.

    Raises
    ------
    ValueError
        There is no such file, or it holds no expression.
    """
    return parse(load_rule(path)["expression"])


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
        f over variables ``"{feature}_{lag}"``, see :class:`atlas.l2o.Features` for the features. Its value is added. A path, or
        text that ends in ``.json`` or ``.txt``, is the file that holds it.
    lr : float, optional
        α; schedulers act on it. By default that of a ``rule.json`` that has one, else 0.01.
    features : sequence of str, optional
        Which features the rule may use; a template, and a ``rule.json``, bring their own.
    betas : tuple of float
        Decay of the moments.
    lags : int, optional
        Steps that the rule may look back on, the present one included; a template, and a ``rule.json``, bring their own.
    clamp : float, optional
        Bound on |f|, where what is not finite becomes 0. ``None`` leaves f as it is.
    eps : float
        What is added to √v̂ in the features m̃ and g̃. With torch's 1e-8, ``-m_0`` is ``torch.optim.Adam`` as it comes.
    foreach : bool, optional
        Evaluate operation by operation over all tensors at once, instead of block by block. By default on CUDA, where it
        took between a third and an eightieth of the compiled step's time (docs/performance.md); block by block is faster on a
        CPU, whose caches hold a block.
    compiled : bool
        Compile the step of a tensor by ``torch.compile``, instead: on a CPU −m took two fifths of the time that blocks take
        (docs/performance.md), once a C++ compiler had made the kernel, which is kept on the disk. Where none can be compiled, it
        warns and steps block by block. Rounded otherwise than blocks.
    weight_decay : float
        Decoupled, as AdamW's: parameters shrink by lr · weight_decay before the update.
    patience : int
        A tensor whose gradient is not finite keeps its value and state for that step; as many such steps in a row raise.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        An unknown feature, variable or operator (the valid ones are listed), ``lags`` < 1, ``lr`` or ``clamp`` not positive,
        ``eps`` negative, a β outside [0, 1), a group's option that is not known, no file of that name. From
        :meth:`load_state_dict`: the state belongs to another equation, or to parameters of other sizes.
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
        lr: float | None = None,
        features: Sequence[str] | None = None,
        betas: tuple[float, float] = DEFAULT.betas,
        lags: int | None = None,
        clamp: float | None = DEFAULT.clamp,
        *,
        eps: float = NORM_EPS,
        foreach: bool | None = None,
        compiled: bool = False,
        patience: int = 10,
        weight_decay: float = 0.0,
    ) -> None:
        told: Mapping[str, Any] = {}
        if isinstance(rule, Rule):
            features, lags = rule.features, rule.lags
        elif is_file(rule):
            told = load_rule(rule)
            rule = told["expression"]
        lr = told.get("lr", ALPHA) if lr is None else lr
        features = tuple(told.get("features", DEFAULT.features)) if features is None else features
        lags = told.get("lags", DEFAULT.lags) if lags is None else lags
        require_whole(lags=lags)
        if lags < 1:
            raise ValueError(f"lags must be at least 1, not {lags}")
        if clamp is not None:
            positive("clamp", clamp)
        Features(features, betas)
        self.expression = read_rule(rule).simplify()
        self.program = Program(self.expression, features, lags, clamp, float(not_negative("eps", eps)))
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
        together = not self.compiled and usable[0].is_cuda if self.foreach is None else self.foreach
        if together:
            advance_all(self.program, [(p, p.grad, self.state[p]) for p in usable], lr, betas)  # type: ignore[misc]
        else:
            shared: dict[tuple[int, torch.dtype, torch.device], tuple[Scalars, Scalars]] = {}  # of parameters alike
            for parameter in usable:
                step, dtype, device = self.state[parameter]["step"], wide(parameter), parameter.device
                if (step, dtype, device) not in shared:
                    scalars = self.program.scalars(step, lr, betas)
                    shared[step, dtype, device] = scalars, as_tensors(scalars, dtype, device) if self.compiled else {}
                self._advance(parameter, *shared[step, dtype, device])

    def _advance(self, parameter: Tensor, scalars: Scalars, tensors: Scalars) -> None:
        assert parameter.grad is not None
        store = self.state[parameter]
        real = as_real(parameter)
        flat, copied = _flat(real)
        gradient = as_real(parameter.grad).reshape(-1)
        several = len(flat) > 1  # torch.compile compiles anew for an axis of one, or none
        if not (self.compiled and several and self._fused(flat, gradient.to(flat.dtype), store, scalars["slots"], tensors)):
            for theta, g, moments, history in _blocks(flat, gradient, store["moments"], store["history"]):
                self.program.advance(theta, g, moments, history, scalars)
        if copied:
            real.copy_(flat.view_as(real))

    def _fused(self, flat: Tensor, gradient: Tensor, store: dict[str, Any], slots: dict[str, int], scalars: Scalars) -> bool:
        """One step on a whole parameter by the compiled kernel; false where none can be compiled, and nothing has changed."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes a second to load

        if self._kernel is None:
            _tell_caches_apart()
            self._kernel = torch.compile(_own_code(self.program.fused), dynamic=True, fullgraph=True)
        history = store["history"]
        kept = {feature: _from_its_start(memory[slots[feature]]) for feature, memory in history.items()}
        past = {
            name: kept[feature] if lag == len(history[feature]) else _from_its_start(history[feature][slots[feature] - lag])
            for name, (feature, lag) in self.program.columns.items()
            if lag
        }
        theta, gradient = _from_its_start(flat), _from_its_start(gradient)
        try:
            self._kernel(theta, gradient, store["moments"], past, kept, scalars)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"the step of {self.expression} is not compiled, but taken block by block: {reason}", stacklevel=2)
            self.compiled = False
            return False
        for changed in (flat, *history.values()):
            torch.autograd.graph.increment_version(changed)  # of which the tensors that share its memory know nothing
        return True

    def _fresh(self, group: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        return {parameter: self.program.init(as_real(parameter.to("meta"))) for parameter in group["params"]}

    def rule(self) -> str:
        """The equation, simplified, as text that can be read back."""
        return str(self.expression)

    def latex(self) -> str:
        """Return the update equation in LaTeX, without dollar signs."""
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


def _own_code(method: Any) -> Any:
    """The same method of the same object with a code object of its own.

    ``torch.compile`` counts by code object how often it has compiled anew, and gives up after eight times: all rules of a
    process would share these.
    """
    function = method.__func__
    code = function.__code__.replace()
    return MethodType(FunctionType(code, function.__globals__, function.__name__), method.__self__)


def _tell_caches_apart() -> None:
    """Let the processor's vectors be part of what ``torch.compile`` looks its cache up by.

    PyTorch 2.15 leaves them out: code written for vectors of 16 numbers (AVX-512) is taken from the cache by a process that is
    held to 8 (AVX2), or by another machine that shares the folder, and writes half of the numbers only.
    """
    tag, capability = torch.compiler.config.cache_key_tag, torch.backends.cpu.get_cpu_capability()
    if capability not in tag.split():
        torch.compiler.config.cache_key_tag = f"{tag} {capability}".strip()


def _from_its_start(vector: Tensor) -> Tensor:
    """The same memory (n,) as a tensor of its own, which begins where its memory does.

    ``torch.compile`` compiles anew for where in its storage a tensor begins, with ``dynamic=True`` too: at the start, after as
    many numbers as another input is long, or elsewhere, for each input. A slot of a ring begins anywhere.
    """
    vector = vector.detach()  # whether it is one of autograd's is another thing to compile for
    return torch.from_dlpack(vector) if vector.storage_offset() else vector


def _blocks(flat: Tensor, gradient: Tensor, moments: dict[str, Tensor], history: dict[str, Tensor]) -> Iterator[Piece]:
    """Corresponding pieces of a parameter, its gradient and its state."""
    cut = {name: value.split(BLOCK) for name, value in moments.items()}
    past = {name: value.split(BLOCK, 1) for name, value in history.items()}
    for index, (theta, g) in enumerate(zip(flat.split(BLOCK), gradient.split(BLOCK), strict=True)):
        yield (
            theta,
            g.to(flat.dtype),
            {name: parts[index] for name, parts in cut.items()},
            {name: parts[index] for name, parts in past.items()},
        )
