"""One window of meta-training: unroll a policy on optimizees, and differentiate what it reached with respect to the policy.

Gradients that the policy is fed are detached (first order), so the only way from its numbers φ to the parameters is through
the sum of updates. With c_t the derivative of the objective with respect to θ_t (at hand: it is the gradient that was fed), the
exact first-order meta-gradient is dL/dφ = Σ_t λ_tᵀ ∂u_t/∂φ with λ_t = Σ_{s>t} c_s, a suffix sum: no graph goes through the
optimizee. With ``second_order`` the graph goes through its gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atlas.l2o.optimizees import Batch, Optimizee
from atlas.l2o.settings import Boundary, Objective
from atlas.l2o.state import State, map_state

EPS = 1e-10
Step = Callable[[Tensor, State], tuple[Tensor, State]]
Follow = Callable[[int, Tensor, Batch], tuple[Tensor, Tensor] | None]
"""Called after update i with the parameters that it reached; returns (loss (…,), its derivative (…, P)), to be added."""


@dataclass
class Window:
    """What a window of updates left.

    Attributes
    ----------
    theta, state
        Parameters (…, P) after the last update and the policy's state, without history.
    losses : Tensor
        (steps, …): mini-batch losses before each update.
    objective : Tensor
        (…,): meta-objective of every instance; without history.
    followed : Tensor
        (…,): what the ``follow`` hook added to the objective.
    valid : Tensor
        (…,) of bool: whether all losses, gradients and updates were finite. An instance that diverged stays where it was and
        adds nothing further, so its objective is not comparable. Where it was the policy that computed something that is not
        finite, or where gradients go through the optimizee's (``second_order``), the meta-gradient is not finite either, and its
        step is the caller's to skip.
    """

    theta: Tensor
    state: State
    losses: Tensor
    objective: Tensor
    followed: Tensor
    valid: Tensor
    _roots: list[Tensor] = field(default_factory=list, repr=False)
    _cotangents: list[Tensor] = field(default_factory=list, repr=False)

    def backward(self) -> None:
        """Add the gradient of the objective's mean over instances to the policy's parameters.

        Leading axes before the instances' (replicates) are summed: each has parameters of its own.
        """
        pairs = [(u, c) for u, c in zip(self._roots, self._cotangents, strict=True) if u.requires_grad]
        if pairs:
            torch.autograd.backward([u for u, _ in pairs], [c for _, c in pairs])
        self._roots, self._cotangents = [], []


class _Unroller:
    """One window while it is unrolled; see :func:`unroll`."""

    def __init__(
        self,
        step: Step,
        problem: Optimizee,
        objective: Objective,
        scale: Tensor | None,
        weight: Tensor | float,
        second_order: bool,
    ) -> None:
        if objective not in ("sum", "log"):
            raise ValueError(f"there is no objective {objective}; choose from sum, log")
        self.step, self.problem, self.objective = step, problem, objective
        self.scale, self.weight, self.second_order = scale, weight, second_order

    def true(self, q: Tensor) -> Tensor:
        """Parameters of the optimizee for the policy's coordinates: θ = s ⊙ q."""
        return q if self.scale is None else q * self.scale

    def gradient(self, q: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (…,) and gradients with respect to q (…, P)."""
        lead = q.shape[:-1]
        if self.second_order:
            losses = self.problem.losses(self.true(q).reshape(-1, q.shape[-1]), batch)
            (gradient,) = torch.autograd.grad(losses.sum(), q, create_graph=True)
            return losses.reshape(lead), gradient
        losses, gradient = self.problem.gradients(self.true(q).reshape(-1, q.shape[-1]), batch)
        gradient = gradient.reshape(q.shape)
        return losses.reshape(lead), gradient if self.scale is None else gradient * self.scale

    def start_losses(self, start: Tensor, batch: Batch) -> Tensor:
        """Losses of the window's first parameters on a later batch."""
        with torch.no_grad():
            return self.problem.losses(self.true(start).reshape(-1, start.shape[-1]), batch).reshape(start.shape[:-1])

    def value(self, losses: Tensor, start: Tensor, batch: Batch, steps: int) -> Tensor:
        """One term of the objective, (…,), from the losses (…,) of one update."""
        if self.objective == "sum":
            return losses
        return ((losses + EPS).log() - (self.start_losses(start, batch) + EPS).log()) / steps

    def slope(self, losses: Tensor, gradient: Tensor, steps: int) -> Tensor:
        """Derivative of :meth:`value` with respect to q."""
        slope = gradient if self.objective == "sum" else gradient / ((losses + EPS) * steps).unsqueeze(-1)
        return slope * self.weight.unsqueeze(-1) if isinstance(self.weight, Tensor) else slope * self.weight


def unroll(
    step: Step,
    problem: Optimizee,
    theta: Tensor,
    state: State,
    batches: Iterable[Batch],
    *,
    objective: Objective = "sum",
    boundary: Boundary = "none",
    follow: Follow | None = None,
    scale: Tensor | None = None,
    weight: Tensor | float = 1.0,
    second_order: bool = False,
) -> Window:
    """Unroll a policy over a window, and prepare its meta-gradient.

    Parameters
    ----------
    step : callable
        ``policy.step``, or one with other numbers in their place.
    theta : Tensor
        (…, P): parameters at the start, in the policy's coordinates; any leading axes, the last of them the instances.
    state : State
        The policy's, without history.
    batches : iterable
        One per update, for all instances flattened; with a ``boundary`` loss one more.
    objective : {"sum", "log"}
        Σ ℓ_t, or the mean of log ℓ_t − log ℓ_t(θ at the start) on the same batch, with 1e-10 inside the logarithms.
    boundary : {"post", "pre", "none"}
        A further loss, of the last batch: of the parameters after the last update; or before it, as the code of *Symbolic
        Learning to Optimize* has it, so that the last update has no gradient. Only with the objective ``sum``.
    follow : callable, optional
        A loss on the parameters after each update (imitation); see :data:`Follow`.
    scale : Tensor, optional
        (…, P): random scales s; the optimizee's parameters are s ⊙ θ.
    weight : Tensor or float
        (…,) or broadcast to it: weight of the objective beside what ``follow`` adds. The window reports it unweighted.
    second_order : bool
        Differentiate through the optimizee's gradient too.

    Raises
    ------
    ValueError
        An unknown objective or boundary, a boundary with the objective ``log``, no batch to make a step on.
    """
    if boundary not in ("post", "pre", "none"):
        raise ValueError(f"there is no boundary {boundary}; choose from post, pre, none")
    if boundary != "none" and objective != "sum":
        raise ValueError(f"the boundary {boundary} belongs to the objective sum; use none")
    engine = _Unroller(step, problem, objective, scale, weight, second_order)
    drawn = list(batches)
    last = drawn.pop() if boundary != "none" else None
    if not drawn:
        raise ValueError("a window needs at least one batch to make a step on")
    run = _second_order if second_order else _first_order
    return run(engine, theta.detach(), state, drawn, last, boundary, follow)


def _first_order(
    engine: _Unroller, start: Tensor, state: State, batches: list[Batch], last: Batch, boundary: Boundary, follow: Follow | None
) -> Window:
    steps = len(batches)
    q, alive = start, torch.ones(start.shape[:-1], dtype=torch.bool, device=start.device)
    total, followed = start.new_zeros(start.shape[:-1]), start.new_zeros(start.shape[:-1])
    losses, updates, before, after = [], [], [], []
    for index, batch in enumerate(batches):
        loss, gradient = engine.gradient(q, batch)
        alive = _still(alive, loss, gradient)
        gradient = torch.where(alive.unsqueeze(-1), gradient, 0.0)
        losses.append(loss)
        total = total + torch.where(alive, engine.value(loss, start, batch, steps), 0.0)
        before.append(torch.where(alive.unsqueeze(-1), engine.slope(loss, gradient, steps), 0.0))
        if boundary == "pre" and index == steps - 1:
            extra, slope = engine.gradient(q, last)
            alive = _still(alive, extra, slope)
            total = total + torch.where(alive, extra, 0.0)
            before[-1] = before[-1] + torch.where(alive.unsqueeze(-1), engine.slope(extra, slope, steps), 0.0)
        update, state = engine.step(gradient, state)
        alive = _still(alive, update)
        update = torch.where(alive.unsqueeze(-1), update, 0.0)
        updates.append(update)
        q = (q + update).detach()
        added = follow(index, q, batch) if follow else None
        after.append(None if added is None else torch.where(alive.unsqueeze(-1), added[1], 0.0))
        followed = followed if added is None else followed + torch.where(alive, added[0].detach(), 0.0)
    reached = torch.zeros_like(q)
    if boundary == "post":
        extra, slope = engine.gradient(q, last)
        alive = _still(alive, extra, slope)
        total = total + torch.where(alive, extra, 0.0)
        reached = torch.where(alive.unsqueeze(-1), engine.slope(extra, slope, steps), 0.0)
    cotangents = _suffix_sums(before, after, reached / q.shape[-2], q.shape[-2])
    return Window(q, map_state(Tensor.detach, state), torch.stack(losses), total, followed, alive, updates, cotangents)


def _still(alive: Tensor, *values: Tensor) -> Tensor:
    """Which instances (…,) are alive still: all of their numbers, (…,) or (…, P), are finite."""
    for value in values:
        finite = value.detach().isfinite()
        alive = alive & (finite if finite.ndim == alive.ndim else finite.all(-1))
    return alive


def _suffix_sums(before: list[Tensor], after: list[Tensor | None], reached: Tensor, instances: int) -> list[Tensor]:
    """Cotangents of the updates: what later parameters, and the ones just reached, add."""
    accumulated, cotangents = reached, []
    for own, following in zip(reversed(before), reversed(after), strict=True):
        if following is not None:
            accumulated = accumulated + following / instances
        cotangents.append(accumulated)
        accumulated = accumulated + own / instances
    return cotangents[::-1]


def _second_order(
    engine: _Unroller, start: Tensor, state: State, batches: list[Batch], last: Batch, boundary: Boundary, follow: Follow | None
) -> Window:
    steps = len(batches)
    q = start.clone().requires_grad_()
    alive = torch.ones(start.shape[:-1], dtype=torch.bool, device=start.device)
    total, followed = start.new_zeros(start.shape[:-1]), start.new_zeros(start.shape[:-1])
    losses = []
    for index, batch in enumerate(batches):
        loss, gradient = engine.gradient(q, batch)
        alive = _still(alive, loss, gradient)
        gradient = torch.where(alive.unsqueeze(-1), gradient, 0.0)
        losses.append(loss.detach())
        total = total + torch.where(alive, engine.value(loss, start, batch, steps), 0.0)
        if boundary == "pre" and index == steps - 1:
            extra, slope = engine.gradient(q, last)
            alive = _still(alive, extra, slope)
            total = total + torch.where(alive, extra, 0.0)
        update, state = engine.step(gradient, state)
        alive = _still(alive, update)
        q = q + torch.where(alive.unsqueeze(-1), update, 0.0)
        added = follow(index, q, batch) if follow else None
        followed = followed if added is None else followed + torch.where(alive, added[0], 0.0)
    if boundary == "post":
        extra, slope = engine.gradient(q, last)
        alive = _still(alive, extra, slope)
        total = total + torch.where(alive, extra, 0.0)
    whole = (engine.weight * total + followed).mean(-1).sum()
    ended = map_state(Tensor.detach, state)
    return Window(
        q.detach(), ended, torch.stack(losses), total.detach(), followed.detach(), alive, [whole], [torch.ones_like(whole)]
    )
