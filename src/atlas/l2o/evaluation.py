"""Judging optimizers: whole trajectories on optimizees, and step sizes from a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atlas.l2o.optimizees import Batch, DataOptimizee, Optimizee
from atlas.l2o.policies import Policy
from atlas.l2o.settings import Criterion, Tuning
from atlas.l2o.state import State, map_state
from atlas.nn.work import VALIDATION, WARM_UP, work

DEFAULT = Tuning()
GRID = DEFAULT.grid
"""{1, 2, 5} × 10ᵏ from 5e-4 to 1."""
EXTRA_POINTS = 2
BLOCK = 1 << 22
"""Coordinates, at most, that are stepped at once: what a policy computes on the way is many times as large."""


@dataclass
class Curves:
    """What a rollout recorded; n instances.

    Attributes
    ----------
    stream : Tensor
        (steps, n): mini-batch loss before each update.
    steps : list of int
        Updates after which whole splits were measured.
    measured : dict
        ``"<split>_<measure>"`` (``val_loss``, ``val_accuracy``) to (len(steps), n).
    theta : Tensor
        (n, P): what was reached.
    best : Tensor
        (n, P): the parameters with the smallest loss of the first measured split.
    """

    stream: Tensor
    steps: list[int]
    measured: dict[str, Tensor]
    theta: Tensor = field(repr=False)
    best: Tensor = field(repr=False)


def warm_up(
    policy: Policy, problem: Optimizee, theta: Tensor, state: State, batches: Sequence[Batch], lr: float = 0.05
) -> tuple[Tensor, State]:
    """Make plain SGD steps while the policy only watches: its statistics advance, its recurrent memory does not.

    Returns the parameters (n, P) after one step per batch, and the policy's state.
    """
    with work(WARM_UP):
        for batch in batches:
            _, gradient = problem.gradients(theta, batch)
            state = policy.observe(gradient, state)
            theta = theta - lr * gradient
    return theta, map_state(Tensor.detach, state)


def advance(policy: Policy, g: Tensor, state: State) -> tuple[Tensor, State]:
    """Step a policy without gradients, block by block where it is coordinatewise and there are many parameters.

    Parameters
    ----------
    policy : Policy
        What is asked.
    g : Tensor
        Gradients (instances, parameters).
    state : State
        Written over where the step is taken by blocks: it must be this trajectory's own, see :func:`own_state`.

    Returns
    -------
    tuple
        The update (instances, parameters), and the new state.
    """
    if not in_blocks(policy, g):
        return policy.step(g, state)
    count, update, new = g.shape[-1], torch.empty_like(g), state

    def of_coordinates(leaf: Tensor) -> bool:
        return leaf.shape[-1:] == (count,)

    for begin in range(0, count, BLOCK):
        block = slice(begin, begin + BLOCK)
        own = map_state(lambda leaf, block=block: leaf[..., block] if of_coordinates(leaf) else leaf, state)
        update[..., block], new = policy.step(g[..., block], own)
        map_state(lambda leaf, old, fresh: old.copy_(fresh) if of_coordinates(leaf) else leaf, state, own, new)
    return update, map_state(lambda leaf, fresh: leaf if of_coordinates(leaf) else fresh, state, new)


def in_blocks(policy: Policy, theta: Tensor) -> bool:
    """Whether parameters (instances, parameters), or their gradients, are stepped block by block."""
    return policy.coordinatewise and theta.shape[-1] > BLOCK


def own_state(state: State) -> State:
    """The same numbers with memory of its own for each tensor (…): states begin with one zero under several names."""
    return map_state(Tensor.clone, state)


@torch.no_grad()
def rollout(
    policy: Policy,
    problem: Optimizee,
    *,
    n: int,
    steps: int,
    gen: torch.Generator,
    every: int = 0,
    start: bool = False,
    splits: Sequence[str] = ("val",),
    warmup_steps: int = 0,
    warmup_lr: float = 0.05,
    copies: int = 1,
) -> Curves:
    """Let a policy optimize n instances, and record their losses.

    Parameters
    ----------
    n, steps : int
        Instances and updates.
    gen : torch.Generator
        Starts and data order: two policies with generators of the same seed see the same.
    every : int
        Measure the ``splits`` every so many updates, and after the last; 0 measures after the last only.
    start : bool
        Measure before the first update too.
    warmup_steps : int
        Steps of plain SGD before, see :func:`warm_up`; not recorded.
    copies : int
        Run every instance this often, with the same start and data: for policies whose step size differs by instance. The
        instances are then (copies · n), copy by copy.
    """
    theta = problem.init(n, gen).repeat(copies, 1)
    state = policy.init_state(theta, problem.layout)
    if in_blocks(policy, theta):
        state = own_state(state)
    repeated = [_repeat(batch, copies) for batch in problem.stream(n, warmup_steps, gen)] if warmup_steps else []
    theta, state = warm_up(policy, problem, theta, state, repeated, warmup_lr)
    stream: list[Tensor] = []
    marks: list[int] = []
    measured: dict[str, list[Tensor]] = {}

    best = theta
    lowest = torch.full((len(theta),), torch.inf, dtype=torch.float64, device=theta.device)

    def measure(done: int) -> None:
        nonlocal best, lowest
        marks.append(done)
        with work(VALIDATION):
            for split in splits:
                for name, values in _measures(problem, theta, split, copies).items():
                    measured.setdefault(f"{split}_{name}", []).append(values)
        loss = measured[f"{splits[0]}_loss"][-1]
        best = torch.where((loss < lowest).unsqueeze(1), theta, best)
        lowest = torch.fmin(lowest, loss.double())

    if start:
        measure(0)
    for index, batch in enumerate(problem.stream(n, steps, gen), start=1):
        losses, gradient = problem.gradients(theta, _repeat(batch, copies))
        update, state = advance(policy, gradient, state)
        theta = theta + update
        stream.append(losses)
        if (every and index % every == 0) or index == steps:
            measure(index)
    return Curves(torch.stack(stream), marks, {name: torch.stack(values) for name, values in measured.items()}, theta, best)


def _measures(problem: Optimizee, theta: Tensor, split: str, copies: int) -> dict[str, Tensor]:
    """Whole-split measures of all copies; instance i of every copy has the function of instance i."""
    if isinstance(problem, DataOptimizee):
        return problem.evaluate(theta, split)
    measured = [problem.evaluate(part, split) for part in theta.chunk(copies)]
    return {name: torch.cat([part_measures[name] for part_measures in measured]) for name in measured[0]}


def _repeat(batch: Batch, copies: int) -> Batch:
    return batch if copies == 1 else map_state(lambda leaf: leaf.repeat(copies, *[1] * (leaf.ndim - 1)), batch)


@dataclass(frozen=True)
class TunedLR:
    """The best step size of a grid.

    Attributes
    ----------
    lr : float
        The winner.
    table : dict
        Step size to the mean score over seeds (lower is better; infinite where a run diverged), ascending.
    on_edge : bool
        Whether the winner is the smallest or largest that was tried.
    """

    lr: float
    table: dict[float, float]
    on_edge: bool


def tune(
    policy_factory: Callable[[Tensor], Policy],
    problem: Optimizee,
    grid: Sequence[float] = GRID,
    *,
    steps: int,
    every: int,
    seeds: int = DEFAULT.seeds,
    gen: torch.Generator,
    criterion: Criterion = DEFAULT.criterion,
    extend: bool = True,
) -> TunedLR:
    """Find a step size: the whole grid times all seeds in one batched run.

    Parameters
    ----------
    policy_factory : callable
        Makes the policy for step sizes of (instances, 1).
    steps, every : int
        Updates, and how often the criterion is measured.
    criterion : {"best-val", "final"}
        Smallest log loss on ``val`` along the run; or log loss of the whole ``train`` split at its end. Mean over seeds.
    extend : bool
        Two further points where the best is on the edge, twice at most.

    Raises
    ------
    ValueError
        The grid is empty, or one of its points is not positive.
    """
    if not grid or min(grid) <= 0:
        raise ValueError("the grid must hold positive step sizes")
    seed = int(torch.randint(2**62, (1,), generator=gen))
    table: dict[float, float] = {}
    pending = sorted(set(map(float, grid)))
    for attempt in range(3 if extend else 1):
        table |= _scores(policy_factory, problem, pending, steps, every, seeds, seed, criterion)
        ordered = sorted(table)
        best = min(ordered, key=lambda lr: (table[lr], lr))
        pending = _beyond(ordered, best)
        if not pending or attempt == 2:
            break
    return TunedLR(best, {lr: table[lr] for lr in ordered}, best in (ordered[0], ordered[-1]))


def _scores(
    policy_factory: Callable[[Tensor], Policy],
    problem: Optimizee,
    grid: Sequence[float],
    steps: int,
    every: int,
    seeds: int,
    seed: int,
    criterion: Criterion,
) -> dict[float, float]:
    """Mean score of every step size; all see the same starts and data."""
    theta = problem.init(1, torch.Generator().manual_seed(0))
    sizes = torch.tensor(grid, dtype=theta.dtype, device=theta.device).repeat_interleave(seeds).unsqueeze(1)
    split = "val" if criterion == "best-val" else "train"
    curves = rollout(
        policy_factory(sizes),
        problem,
        n=seeds,
        steps=steps,
        gen=torch.Generator().manual_seed(seed),
        every=every if criterion == "best-val" else 0,
        splits=(split,),
        copies=len(grid),
    )
    losses = curves.measured[f"{split}_loss"]
    diverged = ~(losses.isfinite().all(0) & curves.stream.isfinite().all(0))
    logs = losses.log().amin(0) if criterion == "best-val" else losses[-1].log()
    scores = torch.where(diverged | logs.isnan(), torch.inf, logs).reshape(len(grid), seeds).mean(1)
    return dict(zip(grid, scores.tolist(), strict=True))


def _beyond(ordered: Sequence[float], best: float) -> list[float]:
    """Two further points of {1, 2, 5} × 10ᵏ past the edge on which the best is; none where it is inside."""
    ladder = sorted(float(f"{digit}e{power}") for power in range(-9, 6) for digit in (1, 2, 5))
    if best == ordered[-1]:
        return [point for point in ladder if point > best * 1.001][:EXTRA_POINTS]
    if best == ordered[0]:
        return [point for point in ladder if point < best * 0.999][-EXTRA_POINTS:]
    return []
