"""The choice policy: a small network that weighs the updates of a pool, coordinate by coordinate (optimal choice, §3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.l2o import Layout, LSTMStack, Policy
from atlas.l2o.policies import counter
from atlas.l2o.recurrent import across
from atlas.l2o.state import State
from atlas.methods.optimizer_amalgamation.settings import ChoiceConfig
from atlas.methods.optimizer_amalgamation.student import keras_linear
from atlas.methods.optimizer_amalgamation.teachers import check_pool

DEFAULT = ChoiceConfig()
TIME_SCALE = 2000.0
RANKS = 3


class ChoicePolicy(Policy):
    """Update = Σ_j c_j T_j(g) with c = softmax over the pool of what two LSTM cells say.

    Inputs per coordinate are the steps of the k members along which they descend (with their step sizes), t/2000 (t = 0 at the
    first step), and one-hot(1, 2 or 3 axes of the coordinate's tensor; a tensor of four has zeros). Members always advance with
    the true gradient.

    Parameters
    ----------
    pool : sequence of Policy
        At least two frozen members.
    hidden : sequence of int
        Widths of the cells.

    Raises
    ------
    ValueError
        The pool has fewer than two members, or a member is not frozen.
    """

    def __init__(self, pool: Sequence[Policy], hidden: Sequence[int] = DEFAULT.hidden) -> None:
        super().__init__()
        check_pool(pool, 2)
        self.pool = nn.ModuleList(pool)
        self.cells = LSTMStack(len(pool) + 1 + RANKS, hidden, init="keras")
        self.head = keras_linear(hidden[-1], len(pool))

    def describe(self) -> str:
        """Describe the policy by its members and the widths of its cells."""
        members = ", ".join(member.describe() for member in self._members())
        return f"ChoicePolicy([{members}], hidden={list(self.cells.hidden)})"

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Members' states, cells at zero, and what the network is told of coordinates of ``theta`` (instances, parameters)."""
        ranks = (layout or Layout.of([theta.shape[1:]])).ranks()
        one_hot = torch.stack([(ranks == rank).to(theta.dtype) for rank in range(1, RANKS + 1)]).to(theta.device)
        return {
            "members": [member.init_state(theta, layout) for member in self._members()],
            "cells": self.cells.init_state(theta),
            "step": counter(theta),
            "ranks": one_hot.expand(len(theta), *one_hot.shape).contiguous(),
        }

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the weighted sum of the members' updates, (instances, parameters), and the new state."""
        weights, updates, new = self.choose(g, state)
        return (weights * updates).sum(-2), new

    def choose(self, g: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Return (weights (instances, k, P), the members' updates (instances, k, P), new state)."""
        stepped = [member.step(g, before) for member, before in zip(self._members(), state["members"], strict=True)]
        updates = torch.stack([update for update, _ in stepped], dim=-2)
        time = (state["step"] / TIME_SCALE).expand(g.shape).unsqueeze(-2)
        h, cells = self.cells(torch.cat([-updates, time, state["ranks"]], dim=-2), state["cells"])
        weights = functional.softmax(across(self.head, h), dim=-2)
        members = [after for _, after in stepped]
        return weights, updates, {**state, "members": members, "cells": cells, "step": state["step"] + 1}

    def observe(self, g: Tensor, state: State) -> State:
        """The members advance with the gradients ``g`` (instances, parameters); cells and time stay."""
        members = [member.observe(g, before) for member, before in zip(self._members(), state["members"], strict=True)]
        return {**state, "members": members}

    @torch.no_grad()
    def weights(self, history: Tensor | Iterable[Tensor], layout: Layout | None = None, per_tensor: bool = False) -> Tensor:
        """Mean weight of every member over time, on a history of gradients.

        Parameters
        ----------
        history : Tensor or iterable of Tensor
            Gradients (T, instances, P), or (T, P) for one instance.
        layout : Layout, optional
            Tensors of the coordinates.
        per_tensor : bool
            Means per tensor of the layout rather than over all coordinates.

        Returns
        -------
        Tensor
            (T, k), or (T, tensors, k).
        """
        stream = [g if g.ndim == 2 else g.unsqueeze(0) for g in history]
        layout = layout or Layout.of([stream[0].shape[1:]])
        index = layout.tensor_index().to(stream[0].device)
        counts = torch.bincount(index).to(stream[0].dtype)
        state = self.init_state(torch.zeros_like(stream[0]), layout)
        rows = []
        for g in stream:
            weights, _, state = self.choose(g, state)
            means = weights.mean(0)
            if per_tensor:
                zeros = means.new_zeros(len(means), len(counts))
                rows.append((zeros.index_add_(1, index, means) / counts).T)
            else:
                rows.append(means.mean(1))
        return torch.stack(rows)

    def _members(self) -> Iterable[Policy]:
        return self.pool  # type: ignore[return-value]
