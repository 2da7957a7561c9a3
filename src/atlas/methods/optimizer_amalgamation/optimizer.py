"""A trained student as a ``torch.optim.Optimizer``, with the warm-up that it was trained with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from atlas.l2o import Layout, LearnedOptimizer, Policy, load_policy
from atlas.l2o.policies import counter, positive, require_policy
from atlas.l2o.saving import POLICIES
from atlas.l2o.state import State
from atlas.methods.optimizer_amalgamation.settings import Curriculum
from atlas.methods.optimizer_amalgamation.student import Student
from atlas.nn.kinds import require_kind, require_whole

PUBLISHED = Curriculum.paper()
WARMUP_STEPS, WARMUP_LR = PUBLISHED.warmup * PUBLISHED.unroll, PUBLISHED.warmup_lr


class WarmStart(Policy):
    """Plain SGD for some steps while a policy watches, then the policy.

    Raises
    ------
    ValueError
        ``steps`` is negative or ``lr`` not positive.
    """

    def __init__(self, policy: Policy, steps: int, lr: float) -> None:
        super().__init__()
        require_policy(student=policy)
        require_whole(warmup_steps=steps)
        if steps < 0:
            raise ValueError(f"warmup_steps must not be negative, not {steps}")
        self.policy, self.steps, self.rate = policy, steps, float(positive("warmup_lr", lr))
        self.lr = policy.lr

    def describe(self) -> str:
        """Describe the policy that follows the warm-up; the warm-up itself may be another one."""
        return self.policy.describe()

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """The policy's state for ``theta`` (instances, parameters), and a counter of the warm-up's steps."""
        return {"policy": self.policy.init_state(theta, layout), "step": counter(theta)}

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return −η g during the warm-up, then the policy's update; updates are (instances, parameters), as ``g`` is."""
        if int(state["step"]) < self.steps:
            return -self.rate * g, {"policy": self.policy.observe(g, state["policy"]), "step": state["step"] + 1}
        update, inner = self.policy.step(g, state["policy"])
        return update, {"policy": inner, "step": state["step"]}


class AmalgamatedOptimizer(LearnedOptimizer):
    """Steps parameters by a student, after the SGD steps with which it was meta-trained.

    Parameters
    ----------
    params : iterable
        Parameters or groups with ``lr`` and ``weight_decay`` of their own, as for :class:`atlas.l2o.LearnedOptimizer`. A
        group's ``lr`` takes the place of the student's largest update; the warm-up's rate changes in proportion.
    student : Policy
        A trained student (or a choice policy).
    warmup_steps, warmup_lr : int, float
        Plain SGD at the start; 0 leaves it out. Only the student's moments take notice of it.

    Raises
    ------
    ValueError
        ``warmup_steps`` negative or ``warmup_lr`` not positive.
    """

    def __init__(self, params: Any, student: Policy, *, warmup_steps: int = WARMUP_STEPS, warmup_lr: float = WARMUP_LR) -> None:
        super().__init__(params, WarmStart(student, warmup_steps, warmup_lr))


def load(
    path: Path | str, *, warmup_steps: int = WARMUP_STEPS, warmup_lr: float = WARMUP_LR
) -> Callable[[Any], AmalgamatedOptimizer]:
    """Return the optimizer that a saved student is: ``optimizer = load(path)(model.parameters())``.

    Parameters
    ----------
    path : Path
        Written by :func:`atlas.l2o.save_policy`; training runs leave ``student.safetensors``.

    Raises
    ------
    ValueError
        The file holds no policy of a kind that is known here.
    """
    require_kind((str, Path), "a path", path=path)
    student = load_policy(path, {**POLICIES, "Student": Student})
    return partial(AmalgamatedOptimizer, student=student, warmup_steps=warmup_steps, warmup_lr=warmup_lr)
