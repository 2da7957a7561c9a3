"""Plain meta-training by truncated back-propagation through time, one window after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas.l2o.optimizees import Optimizee, require_problem
from atlas.l2o.policies import Policy, require_policy
from atlas.l2o.settings import MetaConfig
from atlas.l2o.windows import unroll
from atlas.nn.bars import track
from atlas.nn.kinds import require_kind

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
        cfg = self.cfg
        if self.done % cfg.depth == 0:
            self._restart()
        batches = self.problem.stream(cfg.instances, cfg.unroll + (cfg.boundary != "none"), self.gen)
        result = unroll(
            self.policy.step,
            self.problem,
            self._carried["theta"],
            self._carried["state"],
            batches,
            objective=cfg.objective,
            boundary=cfg.boundary,
            scale=self._carried.get("scale"),
            second_order=cfg.second_order,
        )
        self.optimizer.zero_grad()
        result.backward()
        if all(p.grad is None or bool(p.grad.isfinite().all()) for g in self.optimizer.param_groups for p in g["params"]):
            self.optimizer.step()
        else:
            self.skipped += 1
        self._carried |= {"theta": result.theta, "state": result.state}
        self.done += 1
        row = {
            "window": float(self.done),
            "objective": float(result.objective.mean() / (cfg.unroll if cfg.objective == "sum" else 1)),
            "loss": float(result.losses[-1].mean()),
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
        """Everything that changes from window to window, the policy's numbers included."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.gen.get_state(),
            "carried": self._carried,
            "done": self.done,
            "skipped": self.skipped,
            "history": self.history,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on, window for window, where :meth:`state_dict` was taken."""
        self.policy.load_state_dict(saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.gen.set_state(saved["generator"])
        self._carried = saved["carried"]
        self.done, self.skipped, self.history = saved["done"], saved["skipped"], saved["history"]


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
