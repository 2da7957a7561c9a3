"""The whole method: train a choice policy, amalgamate a pool into students, and find the teachers' step sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from atlas.l2o import Optimizee, Policy, TunedLR, tune
from atlas.l2o.optimizees import require_problem
from atlas.l2o.policies import require_policy
from atlas.l2o.settings import Tuning
from atlas.methods.optimizer_amalgamation.choice import ChoicePolicy
from atlas.methods.optimizer_amalgamation.noise import Perturbation
from atlas.methods.optimizer_amalgamation.settings import Amalgamation, ChoiceConfig, Curriculum, StudentSettings, TrainerConfig
from atlas.methods.optimizer_amalgamation.student import Student
from atlas.methods.optimizer_amalgamation.teachers import check_pool
from atlas.methods.optimizer_amalgamation.trainer import Trainer
from atlas.nn.bars import Bar
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_callable, require_kind, require_sequence, require_whole

MEMORY_LIMIT_GIB = 64.0
FUNCTION_EPOCH = 100
METHODS = get_args(Amalgamation)
TUNING, DEFAULT = Tuning(), StudentSettings()
LAYERS_KEPT = 14
"""Tensors of a cell's width that autograd keeps per cell and step: gates and their activations, memory, output, inputs."""


@dataclass
class AmalgamationResult:
    """What amalgamation leaves.

    Attributes
    ----------
    students : list of Policy
        One per replicate, frozen.
    history : list of dict
        One row per window and replicate: stage, period, repeat, meta-loss, imitation loss, validation loss at the end of a
        period, and for min-max how often each teacher was the farthest.
    choice : ChoicePolicy, optional
        The frozen choice policy, for the method ``choice``.
    """

    students: list[Policy]
    history: list[dict[str, float]]
    choice: ChoicePolicy | None = None


def draw_seeds(gen: torch.Generator, count: int) -> list[int]:
    """Draw a seed for each of ``count`` replicates from one generator."""
    return torch.randint(2**62, (count,), generator=gen).tolist()


def seeded(make: Callable[[], Policy], seed: int) -> Policy:
    """Make a policy with random numbers of its own, leaving the process's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def device_of(problem: Optimizee) -> torch.device:
    """Return where an optimizee's parameters are, and with them what is meta-trained on it."""
    return problem.init(1, torch.Generator()).device


def amalgamate(
    problem: Optimizee,
    pool: Sequence[Policy],
    *,
    method: Amalgamation = "choice",
    student: Policy | None = None,
    schedule: Curriculum = DEFAULT.schedule,
    noise: Perturbation | None = None,
    second_order: bool | None = None,
    replicates: int = DEFAULT.replicates,
    gen: torch.Generator,
    trainer: TrainerConfig | None = None,
    choice: ChoicePolicy | ChoiceConfig | None = None,
    memory_limit_gib: float = MEMORY_LIMIT_GIB,
    progress: bool | None = None,
) -> AmalgamationResult:
    """Distil a pool of optimizers into one student (or several replicates of it).

    Parameters
    ----------
    problem : Optimizee
        What is meta-trained on.
    pool : sequence of Policy
        Frozen teachers: at least two.
    method : {"mean", "minmax", "choice"}
        The mean over teachers, the farthest teacher at every step, or one teacher: a choice policy over the pool.
    student : Policy, optional
        Where all replicates start; without one, each is a fresh :class:`Student`.
    schedule : Curriculum
        Windows, depths and weights of imitation.
    noise : RandomWeightNoise or AdversarialWeightNoise, optional
        Perturbation of the student's weights in meta-steps.
    second_order : bool, optional
        Differentiate through the optimizee's gradient; by default as ``trainer`` says, which does not.
    replicates : int
        Students trained side by side, each with randomness of its own.
    gen : torch.Generator
        Source of all randomness, on the CPU.
    trainer : TrainerConfig, optional
        Meta-optimizer, instances, scaling.
    choice : ChoicePolicy or ChoiceConfig, optional
        A trained choice policy, or how to train it.
    memory_limit_gib : float
        Refuse what is estimated to need more.
    progress : bool, optional
        Whether to show a bar; by default where the standard error stream is a terminal.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    ValueError
        A pool of fewer than two, or with trainable parameters; an unknown method; fewer than one replicate.
    MemoryError
        The estimate exceeds the limit; it says by how much.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method}; choose from {', '.join(METHODS)}")
    require_problem(problem=problem)
    require_kind(Curriculum, "a Curriculum, such as Curriculum.paper(),", schedule=schedule)
    require_kind(torch.Generator, "a torch.Generator", gen=gen)
    require_whole(replicates=replicates)
    require_numbers(memory_limit_gib=memory_limit_gib)
    if student is not None:
        require_policy(student=student)
    if noise is not None:
        require_kind(get_args(Perturbation), "a RandomWeightNoise or AdversarialWeightNoise", noise=noise)
    if choice is not None:
        require_kind((ChoicePolicy, ChoiceConfig), "a ChoicePolicy or ChoiceConfig", choice=choice)
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, not {replicates}")
    check_pool(pool, 2)
    cfg = TrainerConfig.chosen(trainer, **({} if second_order is None else {"second_order": second_order}))
    sample = student or Student()
    teachers = 1 if method == "choice" else len(pool)
    check_memory(problem, sample, teachers, schedule.unroll, cfg, replicates, memory_limit_gib)
    chosen: ChoicePolicy | None = None
    if method == "choice":
        given = choice or ChoiceConfig()
        chosen = given if isinstance(given, ChoicePolicy) else train_choice(problem, pool, given, gen, progress=progress)
        chosen.requires_grad_(False)
    seeds = draw_seeds(gen, replicates)
    where = device_of(problem)
    starts = [copy.deepcopy(student) if student is not None else seeded(Student, seed).to(where) for seed in seeds]
    run = Trainer(problem, starts, [chosen] if chosen else pool, schedule, cfg, seeds, method, noise)
    _carry_out(run, "amalgamate", progress)
    return AmalgamationResult(finished(run, starts), run.history, chosen)


def train_choice(
    problem: Optimizee,
    pool: Sequence[Policy],
    cfg: ChoiceConfig | None = None,
    gen: torch.Generator | None = None,
    *,
    progress: bool | None = None,
) -> ChoicePolicy:
    """Train a choice policy over a pool with the meta-loss alone; returns it frozen. ``progress`` is that of :func:`amalgamate`.

    Raises
    ------
    ValueError
        A pool of fewer than two, or with trainable parameters.
    """
    require_problem(problem=problem)
    if cfg is not None:
        require_kind(ChoiceConfig, "a ChoiceConfig", cfg=cfg)
    if gen is not None:
        require_kind(torch.Generator, "a torch.Generator", gen=gen)
    cfg = cfg or ChoiceConfig()
    (seed,) = draw_seeds(gen or torch.Generator().manual_seed(0), 1)
    start = seeded(lambda: ChoicePolicy(pool, cfg.hidden), seed).to(device_of(problem))
    run = Trainer(problem, [start], [], cfg.schedule, cfg.trainer, [seed])
    _carry_out(run, "train choice", progress)
    (policy,) = finished(run, [start])
    assert isinstance(policy, ChoicePolicy)
    return policy


def _carry_out(run: Trainer, label: str, progress: bool | None) -> None:
    """Train to the end, with a bar over the windows that the curriculum has at least."""
    with Bar(label, run.curriculum.windows_at_least(), progress) as bar:
        while not run.done:
            run.step()
            bar.advance()


def finished(run: Trainer, policies: Sequence[Policy]) -> list[Policy]:
    """Put what a trainer reached into its policies, and freeze them."""
    for index, policy in enumerate(policies):
        policy.load_state_dict({**policy.state_dict(), **run.replicas.numbers(index)})
        policy.requires_grad_(False).eval()
    return list(policies)


def memory_gib(problem: Optimizee, student: Policy, teachers: int, unroll: int, cfg: TrainerConfig, replicates: int) -> float:
    """Estimate of what a window keeps, in GiB: activations of the student's cells, and trajectories.

    With ``second_order`` the optimizee's own graph is kept too, at about four times its parameters per step.
    """
    hidden = getattr(getattr(student, "cells", None), "hidden", (20, 20))
    coordinates = problem.P * cfg.instances * replicates
    per_step = LAYERS_KEPT * sum(hidden) + 8 + (4 if cfg.second_order else 0) + 3
    return 4 * coordinates * (per_step * unroll + 6 * teachers) / 2**30


def check_memory(
    problem: Optimizee, student: Policy, teachers: int, unroll: int, cfg: TrainerConfig, replicates: int, limit: float
) -> None:
    """Refuse what needs more memory than there is.

    Raises
    ------
    MemoryError
        With the estimate, and what would make it smaller.
    """
    need = memory_gib(problem, student, teachers, unroll, cfg, replicates)
    if need > limit:
        raise MemoryError(
            f"a window needs about {need:.3g} GiB, more than the limit of {limit:g} GiB: "
            "fewer replicates or instances, a shorter unroll or a smaller optimizee need less"
        )


def tune_lr(
    policy_factory: Callable[[Tensor], Policy],
    problem: Optimizee,
    grid: Sequence[float] = TUNING.grid,
    epochs: int = TUNING.epochs,
    seeds: int = TUNING.seeds,
    gen: torch.Generator | None = None,
) -> TunedLR:
    """Find a teacher's step size: smallest log validation loss within some epochs, mean over seeds.

    The whole grid times all seeds is one batched run, so ``policy_factory`` is given step sizes of (instances, 1). Where the best
    is on the grid's edge, two further points are tried, twice at most. Runs that diverge score infinity.

    Raises
    ------
    ValueError
        The grid is empty, or holds a step size that is not positive; ``epochs`` or ``seeds`` is less than 1.
    """
    require_callable("a class of teachers, or a function of step sizes,", policy_factory=policy_factory)
    require_problem(problem=problem)
    require_sequence("a sequence of step sizes", grid=grid)
    require_whole(epochs=epochs, seeds=seeds)
    if min(epochs, seeds) < 1:
        raise ValueError("epochs and seeds must be at least 1")
    data = getattr(problem, "data", None)
    every = data.steps_per_epoch if data is not None else FUNCTION_EPOCH
    gen = gen or torch.Generator().manual_seed(0)
    return tune(policy_factory, problem, grid, steps=epochs * every, every=every, seeds=seeds, gen=gen)
