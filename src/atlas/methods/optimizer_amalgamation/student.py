"""The student: RNNprop as Optimizer Amalgamation trains it. §3 and appendix; initialised as the official code is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atlas.l2o import Layout, LSTMStack, Policy
from atlas.l2o.policies import positive
from atlas.l2o.recurrent import across
from atlas.l2o.state import State
from atlas.methods.optimizer_amalgamation.settings import StudentSettings
from atlas.methods.optimizer_amalgamation.teachers import BETAS, EPS, first_moment, second_moment

DEFAULT, LARGEST_UPDATE = StudentSettings(), 0.1


class Student(Policy):
    """x = [m̂/√(v̂+ε), g/√(v̂+ε)] → LSTM cells → update = lr · tanh(w·h + b), moments as in the Adam teacher.

    Unlike :class:`atlas.l2o.RNNprop` there is no layer before the cells, the bias of the moments is corrected by constants, and
    the largest update is 0.1.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the cells; (20, 20) in the paper.
    lr : float
        Largest update per coordinate.

    Raises
    ------
    ValueError
        ``lr`` is not positive, or there is no cell.
    """

    def __init__(self, hidden: Sequence[int] = DEFAULT.hidden, lr: float = LARGEST_UPDATE) -> None:
        super().__init__()
        self.lr = positive("lr", lr)
        self.cells = LSTMStack(2, hidden, init="keras")
        self.head = keras_linear(hidden[-1], 1)

    def options(self) -> dict[str, object]:
        """Widths of the cells and largest update, from which a saved student is made again."""
        return {"hidden": list(self.cells.hidden), "lr": self.lr}

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Moments (instances, parameters) and the memories of the cells, all at zero."""
        return {"m": torch.zeros_like(theta), "v": torch.zeros_like(theta), "cells": self.cells.init_state(theta)}

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return updates (instances, parameters) of at most ``lr`` in each coordinate, and the new state."""
        new = dict(state)
        x = moments(g, new)
        h, new["cells"] = self.cells(x, state["cells"])
        return -self.lr * across(self.head, h).squeeze(-2).tanh(), new

    def observe(self, g: Tensor, state: State) -> State:
        """The moments take ``g`` (instances, parameters) in; the memories of the cells stay."""
        new = dict(state)
        first_moment(g, new)
        second_moment(g, new)
        return new


def moments(g: Tensor, state: State) -> Tensor:
    """Update m and v in ``state``, and return [m̂/√(v̂+ε), g/√(v̂+ε)], (instances, 2, parameters)."""
    mean, square = first_moment(g, state), second_moment(g, state)
    root = (square / (1 - BETAS[1]) + EPS).sqrt()
    return torch.stack([mean / (1 - BETAS[0]) / root, g / root], dim=-2)


def keras_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer initialised as Keras does: Glorot-uniform weights, zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
