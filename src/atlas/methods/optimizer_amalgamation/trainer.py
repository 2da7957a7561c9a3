"""Meta-training of students (and of choice policies): replicates side by side, each with its own curriculum and randomness."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atlas.l2o import Batch, Optimizee, Policy, Replicas, State, Window, map_state, random_scale, stack_states, unroll, warm_up
from atlas.methods.optimizer_amalgamation.descent import StackedAdam
from atlas.methods.optimizer_amalgamation.losses import Lesson
from atlas.methods.optimizer_amalgamation.noise import AdversarialWeightNoise, Perturbation, RandomWeightNoise
from atlas.methods.optimizer_amalgamation.schedule import CurriculumProgress
from atlas.methods.optimizer_amalgamation.settings import Amalgamation, Curriculum, TrainerConfig
from atlas.nn.work import VALIDATION, work

VALIDATION_SEED = 12345


@dataclass
class _Replicate:
    """What belongs to one replicate besides its numbers."""

    gen: torch.Generator
    progress: CurriculumProgress
    reset: int = 0
    window: int = 0
    carried: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    """Numbers from which the present period started."""
    best_repeat: dict[str, Any] = field(default_factory=dict)
    best_stage: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


class Trainer:
    """Meta-trains replicates of a policy, one window of all of them at a time.

    Parameters
    ----------
    policies : sequence of Policy
        The replicates' starts; copied.
    teachers : sequence of Policy
        Frozen; none for plain meta-training.
    method : {"mean", "minmax", "choice"}
        How their distances are amalgamated; with one teacher all are the same.
    seeds : sequence of int
        One per replicate: everything random of it follows from its own.

    Raises
    ------
    ValueError
        The policies have nothing to train.
    """

    def __init__(
        self,
        problem: Optimizee,
        policies: Sequence[Policy],
        teachers: Sequence[Policy],
        curriculum: Curriculum,
        cfg: TrainerConfig,
        seeds: Sequence[int],
        method: Amalgamation = "mean",
        noise: Perturbation | None = None,
    ) -> None:
        self.problem, self.teachers, self.curriculum, self.cfg = problem, list(teachers), curriculum, cfg
        self.method, self.noise = method, noise
        self.replicas = Replicas(policies)
        self.trainable = {name: value for name, value in self.replicas.parameters.items() if value.requires_grad}
        if not self.trainable:
            raise ValueError(f"{type(policies[0]).__name__} has nothing to train: every number of it is fixed or frozen")
        self.meta_optimizer = StackedAdam(self.trainable, cfg.lr, cfg.clip)
        self.replicates = [
            _Replicate(torch.Generator().manual_seed(seed), CurriculumProgress(curriculum, cfg.longest)) for seed in seeds
        ]
        self.windows = 0
        self.history: list[dict[str, float]] = []
        for index, replicate in enumerate(self.replicates):
            replicate.reference = self._checkpoint(index)

    @property
    def done(self) -> bool:
        """Whether every replicate has finished its curriculum."""
        return all(replicate.progress.done for replicate in self.replicates)

    def step(self) -> list[dict[str, float]]:
        """Make one window of every replicate that has not finished; returns their rows of the history."""
        active = [index for index, replicate in enumerate(self.replicates) if not replicate.progress.done]
        for index in active:
            if self.replicates[index].window == 0:
                self._draw(index)
        meta_weight, weight = self._weights(active)
        batches = self._batches(active)
        result, lesson = self._meta_gradient(active, batches, meta_weight, weight)
        gradients = {name: _gradient(value) for name, value in self.trainable.items()}
        skipped = self.meta_optimizer.step(gradients, active)
        self.windows += 1
        rows = []
        for slot, index in enumerate(active):
            row = self._row(index, slot, result, lesson, index in skipped)
            self._carry(index, slot, result, lesson)
            row |= self._advance(index)
            rows.append(row)
        self.history += rows
        return rows

    def _weights(self, active: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(A, 1) each: weights of the meta-loss and of imitation."""
        stages = [self.replicates[index].progress.stage for index in active]
        alphas = torch.tensor([self.curriculum.imitation[stage] for stage in stages], dtype=torch.float64)
        if self.cfg.il_mode == "sum" or not self.teachers:
            return torch.ones(len(active), 1, dtype=torch.float64), alphas.unsqueeze(1)
        drawn = torch.stack([torch.rand((), generator=self.replicates[index].gen) for index in active])
        imitate = (drawn < alphas).double().unsqueeze(1)
        return 1 - imitate, imitate

    def _batches(self, active: Sequence[int]) -> list[Batch]:
        """Mini-batches of the window, each for all instances of all active replicates."""
        streams = [
            list(self.problem.stream(self.cfg.instances, self.curriculum.unroll, self.replicates[index].gen)) for index in active
        ]
        return [map_state(lambda *leaves: torch.cat(leaves), *step) for step in zip(*streams, strict=True)]

    def _meta_gradient(
        self, active: Sequence[int], batches: list[Batch], meta_weight: Tensor, weight: Tensor
    ) -> tuple[Window, Lesson | None]:
        """Unroll the window at perturbed numbers, and leave its gradient at the clean ones."""
        for parameter in self.trainable.values():
            parameter.grad = None
        clean = self.replicas.rows(active)
        gens = [self.replicates[index].gen for index in active]
        numbers = dict(clean)
        if isinstance(self.noise, AdversarialWeightNoise):

            def ascent(moved: dict[str, Tensor]) -> dict[str, Tensor]:
                leaves = {name: value.requires_grad_() for name, value in moved.items()}
                self._unroll(active, batches, leaves, None, meta_weight, weight)[0].backward()
                return {name: _gradient(value) for name, value in leaves.items()}

            shift = self.noise.find(clean, ascent)
            numbers = {name: value + shift[name] for name, value in clean.items()}
        random = gens if isinstance(self.noise, RandomWeightNoise) else None
        result, lesson = self._unroll(active, batches, numbers, random, meta_weight, weight)
        result.backward()
        return result, lesson

    def _unroll(
        self,
        active: Sequence[int],
        batches: list[Batch],
        numbers: Mapping[str, Tensor],
        random: list[torch.Generator] | None,
        meta_weight: Tensor,
        weight: Tensor,
    ) -> tuple[Window, Lesson | None]:
        carried = [self.replicates[index].carried for index in active]
        theta = torch.stack([start["theta"] for start in carried])
        scale = torch.stack([start["scale"] for start in carried]) if self.cfg.spread else None

        def step(g: Tensor, state: State) -> tuple[Tensor, State]:
            perturbed = self.noise.draw(numbers, random) if random and isinstance(self.noise, RandomWeightNoise) else numbers
            return self.replicas.step(g, state, perturbed)

        lesson = self._lesson(carried, scale, weight.to(theta)) if self.teachers else None
        result = unroll(
            step,
            self.problem,
            theta,
            stack_states([start["state"] for start in carried]),
            batches,
            objective="log",
            follow=lesson,
            scale=scale,
            weight=meta_weight.to(theta),
            second_order=self.cfg.second_order,
        )
        return result, lesson

    def _lesson(self, carried: list[dict[str, Any]], scale: Tensor | None, weight: Tensor) -> Lesson:
        thetas = torch.stack([start["teachers"] for start in carried], dim=1)
        states = []
        for index in range(len(self.teachers)):
            own = [start["teacher_states"][index] for start in carried]
            states.append(map_state(lambda *leaves: _join(leaves, self.cfg.instances), *own))
        steps = self.curriculum.unroll
        return Lesson(self.teachers, thetas, states, self.problem, self.method, weight, steps, scale, self.cfg.huber)

    def _draw(self, index: int) -> None:
        """New optimizees for a replicate: starts, scales, warmed up; teachers start where the student does."""
        replicate = self.replicates[index]
        replicate.carried = self._start(index, replicate.gen, taught=True)

    def _start(self, index: int, gen: torch.Generator, taught: bool) -> dict[str, Any]:
        progress, rules = self.replicates[index].progress, self.curriculum
        theta = self.problem.init(self.cfg.instances, gen)
        scale = random_scale(theta, self.cfg.spread, gen) if self.cfg.spread else None
        policies = [self.replicas.member(index), *(self.teachers if taught else [])]
        states = [policy.init_state(theta, self.problem.layout) for policy in policies]
        cold = rules.cold_start and progress.stage == 0 and progress.period == 0
        if rules.warmup and not cold:
            batches = list(self.problem.stream(self.cfg.instances, rules.warmup * rules.unroll, gen))
            theta, states = _warmed(policies, self.problem, theta, states, batches, rules.warmup_lr, scale)
        carried: dict[str, Any] = {"theta": theta if scale is None else theta / scale, "state": states[0]}
        if scale is not None:
            carried["scale"] = scale
        if taught and self.teachers:
            carried |= {"teachers": theta.expand(len(self.teachers), *theta.shape).clone(), "teacher_states": states[1:]}
        return carried

    def _carry(self, index: int, slot: int, result: Window, lesson: Lesson | None) -> None:
        """Keep a replicate's part of what the window reached; ``slot`` is its place among the active ones."""
        carried = self.replicates[index].carried
        carried["theta"] = result.theta[slot]
        carried["state"] = map_state(lambda leaf: leaf[slot], result.state)
        if lesson is not None:
            carried["teachers"] = lesson.thetas[:, slot]
            rows = slice(slot * self.cfg.instances, (slot + 1) * self.cfg.instances)
            carried["teacher_states"] = [map_state(lambda leaf: leaf[rows], state) for state in lesson.states]

    def _row(self, index: int, slot: int, result: Window, lesson: Lesson | None, skipped: bool) -> dict[str, float]:
        """What the window did to one replicate, as a row of the history; ``slot`` is its place among the active ones."""
        progress = self.replicates[index].progress
        meta = float(result.objective[slot].mean()) if bool(result.valid[slot].all()) else float("inf")
        self.replicates[index].losses.append(meta)
        row = {
            "window": float(self.windows),
            "replicate": float(index),
            "stage": float(progress.stage),
            "period": float(progress.period),
            "repeat": float(progress.repeat),
            "meta": meta,
            "loss": float(result.losses[-1, slot].mean()),
            "skipped": float(skipped),
        }
        if lesson is not None:
            row["imitation"] = float(lesson.total[slot].mean())
            if not bool(lesson.alive[:, slot].all()):  # those that diverged are left out of the mean and the largest
                row["fewest_teachers"] = float(lesson.alive[:, slot].sum(0).min())
            for teacher, wins in enumerate(lesson.wins[:, slot].sum(1).tolist() if self.method == "minmax" else []):
                row[f"wins_{teacher}"] = wins / (self.curriculum.unroll * self.cfg.instances)
        return row

    def _advance(self, index: int) -> dict[str, float]:
        """Count a replicate's window; at the end of a period validate it and let its curriculum decide."""
        replicate, rules = self.replicates[index], self.curriculum
        stage = replicate.progress.stage
        replicate.window = (replicate.window + 1) % rules.depth[stage]
        replicate.reset += replicate.window == 0
        if replicate.window or replicate.reset < rules.resets[stage]:
            return {}
        training = sum(replicate.losses) / len(replicate.losses)
        validation = self.validate(index) if rules.validation_resets else training
        replicate.reset, replicate.losses = 0, []
        self._decide(index, training, validation)
        return {"validation": validation}

    def _decide(self, index: int, training: float, validation: float) -> None:
        """Keep the best numbers, and put those in place from which the next period starts."""
        replicate = self.replicates[index]
        progress = replicate.progress
        own = {**self._checkpoint(index), "validation": validation}
        better = not replicate.best_repeat or validation < replicate.best_repeat["validation"]
        replicate.best_repeat = own if better else replicate.best_repeat
        if not replicate.best_stage or validation < replicate.best_stage["validation"]:
            replicate.best_stage = own
        action = progress.ended(training, validation)
        if action == "repeat":
            self._restore(index, replicate.reference)
            return
        ahead = replicate.best_repeat if action == "continue" else replicate.best_stage
        if self.curriculum.validation_resets:
            self._restore(index, ahead)
        replicate.reference = self._checkpoint(index)
        replicate.best_repeat = {}
        if action == "advance":
            replicate.best_stage = {}

    @torch.no_grad()
    def validate(self, index: int) -> float:
        """Mean meta-loss of a replicate on draws that are always the same, at the stage's validation depth."""
        with work(VALIDATION):
            return self._validated(index)

    def _validated(self, index: int) -> float:
        rules, stage = self.curriculum, self.replicates[index].progress.stage
        gen = torch.Generator().manual_seed(VALIDATION_SEED)
        numbers = {name: value[index : index + 1] for name, value in self.replicas.parameters.items()}
        losses = []
        for _ in range(rules.validation_resets):
            carried = self._start(index, gen, taught=False)
            theta, state = carried["theta"].unsqueeze(0), stack_states([carried["state"]])
            scale = carried["scale"].unsqueeze(0) if "scale" in carried else None
            for _ in range(rules.validation_depth[stage]):
                result = unroll(
                    lambda g, before: self.replicas.step(g, before, numbers),
                    self.problem,
                    theta,
                    state,
                    self.problem.stream(self.cfg.instances, rules.unroll, gen),
                    objective="log",
                    scale=scale,
                )
                theta, state = result.theta, result.state
                losses.append(float(result.objective.mean()) if bool(result.valid.all()) else float("inf"))
        return sum(losses) / len(losses)

    def _checkpoint(self, index: int) -> dict[str, Any]:
        return {"numbers": self.replicas.numbers(index), "optimizer": self.meta_optimizer.numbers(index)}

    def _restore(self, index: int, checkpoint: Mapping[str, Any]) -> None:
        self.replicas.assign(index, checkpoint["numbers"])
        self.meta_optimizer.assign(index, checkpoint["optimizer"])

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes from window to window."""
        names = ("reset", "window", "carried", "reference", "best_repeat", "best_stage", "losses")
        changing = {
            "current": [self._checkpoint(index) for index in range(len(self.replicates))],
            "replicates": [
                {
                    "generator": replicate.gen.get_state(),
                    "progress": replicate.progress.state(),
                    **{name: getattr(replicate, name) for name in names},
                }
                for replicate in self.replicates
            ],
            "windows": self.windows,
            "history": self.history,
        }
        return copy.deepcopy(changing)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on, window for window, where :meth:`state_dict` was taken."""
        saved = copy.deepcopy(saved)
        device = next(iter(self.replicas.parameters.values())).device
        for index, (replicate, state) in enumerate(zip(self.replicates, saved["replicates"], strict=True)):
            self._restore(index, saved["current"][index])
            for name, value in state.items():
                if name == "generator":
                    replicate.gen.set_state(value)
                elif name == "progress":
                    replicate.progress.restore(value)
                elif name == "carried":
                    replicate.carried = map_state(lambda leaf: leaf.to(device), value)
                else:
                    setattr(replicate, name, value)
        self.windows, self.history = saved["windows"], saved["history"]


def _join(leaves: Sequence[Tensor], instances: int) -> Tensor:
    """States of replicates along the instances; a counter becomes a column, since replicates may be at different steps."""
    return torch.cat([leaf if leaf.ndim else leaf.expand(instances, 1) for leaf in leaves])


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _warmed(
    policies: Sequence[Policy],
    problem: Optimizee,
    theta: Tensor,
    states: list[State],
    batches: Sequence[Batch],
    lr: float,
    scale: Tensor | None,
) -> tuple[Tensor, list[State]]:
    """Plain SGD in the optimizee's own coordinates; the student (first) watches gradients of its own, scaled, ones."""
    ended = theta
    watched_states = []
    for index, (policy, state) in enumerate(zip(policies, states, strict=True)):
        watched = policy if index or scale is None else _Scaled(policy, scale)
        ended, state = warm_up(watched, problem, theta, state, batches, lr)
        watched_states.append(state)
    return ended, watched_states


class _Scaled(Policy):
    """Shows a policy gradients with respect to q = θ/s while it watches."""

    def __init__(self, policy: Policy, scale: Tensor) -> None:
        super().__init__()
        self.policy, self.scale = policy, scale

    def observe(self, g: Tensor, state: State) -> State:
        """Let the policy watch s ⊙ g, the gradient (instances, parameters) with respect to q."""
        return self.policy.observe(g * self.scale, state)
