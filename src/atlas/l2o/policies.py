"""Policies: what turns a gradient into an update. Analytic optimizers, learned ones, teachers and students are all this.

Everything acts on flattened parameters: ``theta`` and ``gradient`` are (instances, parameters), and an update is *added*,
``theta + update``. Most policies are coordinate-wise; those with a view of tensors learn the layout when their state is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atlas.l2o.state import State, detach_state
from atlas.nn.examples import require_numbers
from atlas.nn.kinds import require_kind, require_sequence


@dataclass(frozen=True)
class Layout:
    """How flattened parameters divide into tensors, in the order of ``named_parameters``."""

    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shapes: Iterable[Iterable[int]]) -> Layout:
        """The layout of parameters that divide into tensors of these shapes."""
        return cls(tuple(tuple(int(size) for size in shape) for shape in shapes))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of scalars of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def parameters(self) -> int:
        """Number of scalars in all tensors together."""
        return sum(self.sizes)

    def tensor_index(self) -> Tensor:
        """(parameters,) of int64: the tensor to which each coordinate belongs."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))

    def ranks(self) -> Tensor:
        """(parameters,) of int64: number of axes of each coordinate's tensor."""
        ranks = torch.tensor([len(shape) for shape in self.shapes])
        return torch.repeat_interleave(ranks, torch.tensor(self.sizes))


class Policy(nn.Module):
    """Base of every update rule. To write one: override :meth:`init_state` and :meth:`step`.

    ``lr`` is the scale of the update: doubling it doubles every update. State is explicit, so that the same object serves any
    number of trajectories at once, and trainable numbers are ordinary parameters of the module. ``coordinatewise`` says that a
    coordinate's update depends on its own gradients and state alone, and that leaves of the state are (…, parameters) or shared
    by all: such a policy can step large networks block by block.
    """

    lr: float | Tensor = 1.0
    coordinatewise: ClassVar[bool] = False

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        theta : Tensor
            (instances, parameters), whose shape, type and device the state takes on.
        layout : Layout, optional
            Tensors of the parameters; without one they count as a single vector.
        """
        raise NotImplementedError

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return (update, new state) for a gradient; all of (instances, parameters). Changes nothing in place."""
        raise NotImplementedError

    def observe(self, g: Tensor, state: State) -> State:
        """Take a gradient (instances, parameters) in without acting on it: statistics advance, memories of cells stay."""
        return self.step(g, state)[1]

    def forward(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """The same as :meth:`step`, for gradients (instances, parameters), so that functional calls reach it."""
        return self.step(g, state)

    def options(self) -> dict[str, object]:
        """What the constructor needs to make this policy again, apart from trained numbers: plain values, for saved files."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is made again")

    def describe(self) -> str:
        """One line that tells this policy from others, apart from its scale ``lr`` and its trained numbers.

        States of optimizers are saved with it, and one of another policy is refused.
        """
        known = type(self).options is not Policy.options
        return described(self, self.options() if known else {})

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        """The policy as a ``torch.optim.Optimizer`` on parameters or groups, with ``state_bytes_per_parameter``."""
        from atlas.l2o.optimizer import LearnedOptimizer

        return LearnedOptimizer(params, self)

    def detach(self, state: State) -> State:
        """The state without history, for the start of the next window."""
        return detach_state(state)


def described(policy: Policy, settings: Mapping[str, object]) -> str:
    """A policy's kind with its settings, but for the scale ``lr``."""
    return f"{type(policy).__name__}({', '.join(f'{name}={value}' for name, value in settings.items() if name != 'lr')})"


def counter(theta: Tensor) -> Tensor:
    """A step counter at 0: a tensor without axes, of the parameters' type."""
    return torch.zeros((), dtype=theta.dtype, device=theta.device)


def positive(name: str, value: float | Tensor) -> float | Tensor:
    """Check that a setting, a number or a tensor (…) of them, is positive, and return it.

    Raises
    ------
    ValueError
        It is not.
    """
    require_numbers(**{name: value})
    smallest = float(value.min()) if isinstance(value, Tensor) else value
    if not smallest > 0:
        raise ValueError(f"{name} must be positive, not {smallest}")
    return value


def not_negative(name: str, value: float | Tensor) -> float | Tensor:
    """Check that a setting, a number or a tensor without axes, is not negative, and return it.

    Raises
    ------
    ValueError
        It is.
    """
    require_numbers(**{name: value})
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, not {value}")
    return value


def decay(name: str, value: float) -> float:
    """Check that a decay rate is in [0, 1).

    Raises
    ------
    ValueError
        It is not.
    """
    require_numbers(**{name: value})
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value}")
    return value


def decays(name: str, values: Sequence[float]) -> tuple[float, float]:
    """Check that a setting is a pair of decay rates, each in [0, 1).

    Raises
    ------
    ValueError
        It is not.
    """
    require_sequence("a pair of decay rates", **{name: values})
    if len(values) != 2:
        raise ValueError(f"{name} must be two decay rates, not {values}")
    return decay(f"{name}[0]", values[0]), decay(f"{name}[1]", values[1])


def require_policy(**values: Any) -> None:
    """Refuse, by their names, what is no policy.

    Raises
    ------
    TypeError
        One is of another type; says of which.
    """
    require_kind(Policy, "a Policy, such as Adam(0.01) or load_policy(path),", **values)
