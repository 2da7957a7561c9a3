"""Plain meta-training by truncated back-propagation through time, one window after the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from atlas.l2o.optimizees import Batch, Optimizee, require_problem
from atlas.l2o.policies import Policy, require_policy
from atlas.l2o.replicas import Replicas
from atlas.l2o.settings import MetaConfig
from atlas.l2o.state import State, map_state
from atlas.l2o.windows import Step, Window, unroll
from atlas.nn.bars import track
from atlas.nn.kinds import require_kind
from atlas.nn.precision import forget_casts

History = list[dict[str, float]]
"""One row per window: ``window`` (from 1), ``objective`` per update, ``loss`` of the last update."""


class MetaTrainer:
    """Plain meta-training, one window at a time; its full state can be saved and restored between windows.

    Parameters
    ----------
    policy : Policy
        Trained in place.
    problem : Optimizee
        What it is trained on.
    gen : torch.Generator
        Source of all randomness, on the CPU.
    """

    def __init__(self, policy: Policy, problem: Optimizee, cfg: MetaConfig, gen: torch.Generator) -> None:
        require_policy(policy=policy)
        require_problem(problem=problem)
        require_kind(MetaConfig, "a MetaConfig", cfg=cfg)
        require_kind(torch.Generator, "a torch.Generator", gen=gen)
        self.policy, self.problem, self.cfg, self.gen = policy, problem, cfg, gen
        parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        if cfg.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=cfg.lr)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=cfg.lr, momentum=cfg.momentum)
        self.done = 0
        self.skipped = 0
        self.history: History = []
        self._carried: dict[str, Any] = {}

    def window(self) -> dict[str, float]:
        """Unroll one window and make one meta-step; skipped where its gradient is not finite. Returns the history's row."""
        batches = self._draw()
        result = _unrolled(self.policy.step, self, self._carried, batches)
        self.optimizer.zero_grad()
        result.backward()
        return self._advance(result.theta, result.state, result.objective, result.losses[-1])

    def _draw(self) -> list[Batch]:
        """Mini-batches of the next window; its optimizees are new where the last ones have had theirs."""
        if self.done % self.cfg.depth == 0:
            self._restart()
        return list(self.problem.stream(self.cfg.instances, self.cfg.unroll + (self.cfg.boundary != "none"), self.gen))

    def _advance(self, theta: Tensor, state: State, objective: Tensor, losses: Tensor) -> dict[str, float]:
        """Make the meta-step that the policy's gradients ask for, and go on from (instances, parameters) of the window's end."""
        cfg = self.cfg
        if all(p.grad is None or bool(p.grad.isfinite().all()) for g in self.optimizer.param_groups for p in g["params"]):
            self.optimizer.step()
            forget_casts()
        else:
            self.skipped += 1
        self._carried |= {"theta": theta, "state": state}
        self.done += 1
        row = {
            "window": float(self.done),
            "objective": float(objective.mean() / (cfg.unroll if cfg.objective == "sum" else 1)),
            "loss": float(losses.mean()),
        }
        self.history.append(row)
        return row

    def _restart(self) -> None:
        """Draw new optimizees, and scales where they are asked for."""
        theta = self.problem.init(self.cfg.instances, self.gen)
        self._carried = {}
        if self.cfg.spread:
            self._carried["scale"] = random_scale(theta, self.cfg.spread, self.gen)
            theta = theta / self._carried["scale"]
        state = self.policy.init_state(theta, self.problem.layout)
        self._carried |= {"theta": theta, "state": state}

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes from window to window, the policy's numbers included."""
        changing = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.gen.get_state(),
            "carried": self._carried,
            "done": self.done,
            "skipped": self.skipped,
            "history": self.history,
        }
        return copy.deepcopy(changing)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on, window for window, where :meth:`state_dict` was taken."""
        saved = copy.deepcopy(saved)
        self.policy.load_state_dict(saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.gen.set_state(saved["generator"])
        device = next(self.policy.parameters()).device
        self._carried = map_state(lambda leaf: leaf.to(device), saved["carried"])
        self.done, self.skipped, self.history = saved["done"], saved["skipped"], saved["history"]


def windows_at_once(trainers: Sequence[MetaTrainer]) -> list[dict[str, float]]:
    """Take one window of each of several trainers as one batched computation; returns a row of every one's history.

    Small policies cost their overhead, and share it, as replicates do (:class:`.replicas.Replicas`): each with its own
    optimizees, mini-batches and meta-optimizer. The numbers are those of :meth:`MetaTrainer.window` to rounding.

    Parameters
    ----------
    trainers : sequence of MetaTrainer
        At least one; with the same settings, on the same problem, and of policies that differ in their trainable numbers alone.

    Raises
    ------
    ValueError
        They differ otherwise, in their settings or in what their policies are.
    """
    first = trainers[0]
    for other in trainers[1:]:
        if other.cfg != first.cfg or not same_kind(other.policy, first.policy):
            raise ValueError("trainers that take their windows at once need the same settings, and policies of one kind")
    drawn = [trainer._draw() for trainer in trainers]
    batches = [map_state(lambda *leaves: torch.cat(leaves), *step) for step in zip(*drawn, strict=True)]
    starts = [trainer._carried for trainer in trainers]
    carried = map_state(lambda *leaves: torch.stack(leaves), *starts)
    replicas = Replicas([trainer.policy for trainer in trainers])
    result = _unrolled(replicas.step, first, carried, batches)
    result.backward()
    rows = []
    for index, trainer in enumerate(trainers):
        for name, parameter in trainer.policy.named_parameters():
            gradient = replicas.parameters[name].grad
            parameter.grad = None if gradient is None else gradient[index].clone()
        state = map_state(lambda leaf, index=index: leaf[index], result.state)
        rows.append(trainer._advance(result.theta[index], state, result.objective[index], result.losses[-1, index]))
    return rows


def same_kind(policy: Policy, other: Policy) -> bool:
    """Whether two policies differ in their trainable numbers alone: one class, the same shapes, and the same buffers."""
    shapes = [{name: value.shape for name, value in one.named_parameters()} for one in (policy, other)]
    buffers = [dict(one.named_buffers()) for one in (policy, other)]
    return (
        type(policy) is type(other)
        and shapes[0] == shapes[1]
        and buffers[0].keys() == buffers[1].keys()
        and all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())
    )


def _unrolled(step: Step, trainer: MetaTrainer, carried: Mapping[str, Any], batches: list[Batch]) -> Window:
    """A window from what is carried over: the trainer's own, or that of several with a leading axis."""
    cfg = trainer.cfg
    return unroll(
        step,
        trainer.problem,
        carried["theta"],
        carried["state"],
        batches,
        objective=cfg.objective,
        boundary=cfg.boundary,
        scale=carried.get("scale"),
        second_order=cfg.second_order,
    )


def random_scale(theta: Tensor, spread: float, gen: torch.Generator) -> Tensor:
    """Exp U(−spread, spread) per coordinate, of the shape of ``theta`` (instances, parameters); exactly 1 for a spread of 0."""
    uniform = torch.rand(theta.shape, generator=gen, dtype=theta.dtype).to(theta.device)
    return ((2 * uniform - 1) * spread).exp()


def meta_train(
    policy: Policy, problem: Optimizee, cfg: MetaConfig, gen: torch.Generator, *, progress: bool | None = None
) -> History:
    """Meta-train a policy in place; returns one row per window. See :class:`MetaTrainer` for training that can be interrupted.

    ``progress`` says whether to draw a bar; by default on a terminal.
    """
    trainer = MetaTrainer(policy, problem, cfg, gen)
    for _ in track(range(cfg.windows), "meta-train", cfg.windows, progress):
        trainer.window()
    return trainer.history
