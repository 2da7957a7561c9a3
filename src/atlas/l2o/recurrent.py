"""Recurrent policies: a small LSTM, applied to every coordinate alike. L2O-DM and RNNprop, and their building blocks.

M. Andrychowicz et al., *Learning to learn by gradient descent by gradient descent*, NeurIPS 2016; K. Lv et al., *Learning
gradient descent: better generalization and longer horizons*, ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.l2o.features import Features
from atlas.l2o.policies import Layout, Policy, positive
from atlas.l2o.state import State

LOG_SIGN_RANGE = 5.0


class LSTMCell(nn.LSTMCell):
    """torch's cell (gates i, f, g, o) for inputs whose last axis is coordinates: (…, inputs, P) to (…, hidden, P).

    One matrix product, with the bias as a further column, and pointwise kernels on contiguous rows; on the CPU several times as
    fast as the usual layout. It runs under ``vmap`` with weights per replicate, and can be differentiated twice.
    """

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return (h, c). ``x``: (…, inputs, P); ``h`` and ``c``: (…, hidden, P)."""
        h, c = state
        weight = torch.cat([self.weight_ih, self.weight_hh, (self.bias_ih + self.bias_hh).unsqueeze(1)], dim=1)
        gates = weight @ torch.cat([x, h, torch.ones_like(h[..., :1, :])], dim=-2)
        entry, forget, candidate, exit_ = gates.chunk(4, dim=-2)
        c = forget.sigmoid() * c + entry.sigmoid() * candidate.tanh()
        return exit_.sigmoid() * c.tanh(), c


class LSTMStack(nn.Module):
    """LSTM cells on top of each other; state is a list of (h, c), zeros at the start.

    Parameters
    ----------
    inputs : int
        Features of the first cell.
    hidden : sequence of int
        Width of each cell.
    init : {"torch", "keras"}
        torch's uniform initialisation; or Glorot-uniform kernels, orthogonal recurrent kernels, zero biases with 1 on the forget
        gate.

    Raises
    ------
    ValueError
        ``hidden`` is empty.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], init: Literal["torch", "keras"] = "torch") -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden names no layer")
        widths = [inputs, *hidden]
        self.hidden = tuple(hidden)
        self.cells = nn.ModuleList(LSTMCell(before, after) for before, after in zip(widths, hidden, strict=False))
        if init == "keras":
            for cell in self.cells:
                keras_init(cell)

    def init_state(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Zeros (instances, width, parameters) for ``theta`` of (instances, parameters)."""
        return [(theta.new_zeros(*theta.shape[:-1], width, theta.shape[-1]),) * 2 for width in self.hidden]

    def forward(self, x: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return (output of the last cell (…, hidden, P), new state). ``x``: (…, inputs, P)."""
        new = []
        for cell, before in zip(self.cells, state, strict=True):
            x, memory = cell(x, before)
            new.append((x, memory))
        return x, new


def across(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the last axis but one: (…, inputs, P) to (…, outputs, P)."""
    return layer.weight @ x + layer.bias.unsqueeze(-1)


@torch.no_grad()
def keras_init(cell: nn.Module) -> None:
    """Initialise an LSTM cell as Keras does: Glorot-uniform per kernel, orthogonal recurrence, forget bias 1."""
    weight, recurrent = cell.weight_ih, cell.weight_hh
    assert isinstance(weight, Tensor)
    assert isinstance(recurrent, Tensor)
    hidden = recurrent.shape[1]
    nn.init.xavier_uniform_(weight)
    nn.init.orthogonal_(recurrent.T)
    for bias in (cell.bias_ih, cell.bias_hh):
        nn.init.zeros_(bias)  # type: ignore[arg-type]
    cell.bias_ih[hidden : 2 * hidden] = 1.0  # type: ignore[index,operator]


class RNNprop(Policy):
    """x = ELU(W_p z + b_p) → LSTM cells → update = lr · tanh(w·h + b).

    Parameters
    ----------
    features : sequence of str
        Of :class:`~atlas.l2o.features.Features`; they take no gradient as long as what is fed in is detached.
    pre : int
        Width of the layer before the cells; 0 leaves it out.
    hidden : sequence of int
        Widths of the cells.
    lr : float
        Largest update, α > 0: 0.01 in *Symbolic Learning to Optimize* and Open-L2O.
    betas : tuple of float
        Decay of the moments.

    Raises
    ------
    ValueError
        An unknown feature, ``lr`` not positive, a β outside [0, 1), no cell.
    """

    coordinatewise = True

    def __init__(
        self,
        features: Sequence[str] = ("m", "g"),
        pre: int = 20,
        hidden: Sequence[int] = (20, 20),
        lr: float = 0.01,
        betas: tuple[float, float] = (0.95, 0.95),
    ) -> None:
        super().__init__()
        self.features = Features(features, betas)
        self.lr = positive("lr", lr)
        self.pre = nn.Linear(len(self.features), pre) if pre else None
        self.cells = LSTMStack(pre or len(self.features), hidden)
        self.head = nn.Linear(hidden[-1], 1)

    def options(self) -> dict[str, object]:
        """Architecture and scale, from which a saved policy is made again."""
        return {
            "features": list(self.features.names),
            "pre": self.pre.out_features if self.pre is not None else 0,
            "hidden": list(self.cells.hidden),
            "lr": self.lr,
            "betas": list(self.features.betas),
        }

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Moments (instances, parameters) and the memories of the cells, all at zero."""
        return {"features": self.features.init_state(theta), "cells": self.cells.init_state(theta)}

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return updates (instances, parameters) of at most ``lr`` in each coordinate, and the new state."""
        z, features = self.features.step(g, state["features"])
        raw, cells = self.respond(z, state["cells"])
        return self.lr * raw, {"features": features, "cells": cells}

    def observe(self, g: Tensor, state: State) -> State:
        """The moments take ``g`` (instances, parameters) in; the memories of the cells stay."""
        return {**state, "features": self.features.step(g, state["features"])[1]}

    def respond(self, z: Tensor, cells: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What the network makes of features (instances, parameters, F): its output before ``lr``, and new cells.

        This is the function that symbolic regression imitates.
        """
        x = z.transpose(-1, -2)
        h, cells = self.cells(x if self.pre is None else functional.elu(across(self.pre, x)), cells)
        return across(self.head, h).squeeze(-2).tanh(), cells


RNNPROP_SIZES: dict[str, dict[str, object]] = {
    "rp": {"pre": 20, "hidden": (20, 20)},
    "rp-small": {"pre": 6, "hidden": (7,)},
    "rp-small-inputs": {"pre": 6, "hidden": (7,), "features": ("m", "g", "n")},
    "rp-five": {"pre": 9, "hidden": (12,), "features": ("m", "g", "ema0.5", "ema0.9", "ema0.99")},
}
"""The sizes of *Symbolic Learning to Optimize*: RP, RP_s, RP_si, and its configuration of five features."""


def rnnprop(size: str = "rp", **options: object) -> RNNprop:
    """Return RNNprop in a named size, with some settings changed.

    Raises
    ------
    ValueError
        There is no such size; the known ones are listed.
    """
    if size not in RNNPROP_SIZES:
        raise ValueError(f"there is no size {size}; choose from {', '.join(RNNPROP_SIZES)}")
    return RNNprop(**{**RNNPROP_SIZES[size], **options})  # type: ignore[arg-type]


class L2ODM(Policy):
    """L2O-DM: the gradient → LSTM cells → update = lr · (w·h + b).

    Parameters
    ----------
    hidden : sequence of int
        Widths of the cells.
    lr : float
        Scale of the output.
    preprocess : {"raw", "log-sign"}
        Feed g as it is, or (log|g|/5 clipped below at −1, g·e⁵ clipped to ±1) as in the paper's appendix A.
    init : {"torch", "keras"}
        See :class:`LSTMStack`.

    Raises
    ------
    ValueError
        ``lr`` not positive, an unknown preprocessing, no cell.
    """

    coordinatewise = True

    def __init__(
        self,
        hidden: Sequence[int] = (20, 20),
        lr: float = 0.01,
        preprocess: Literal["raw", "log-sign"] = "raw",
        init: Literal["torch", "keras"] = "torch",
    ) -> None:
        super().__init__()
        if preprocess not in ("raw", "log-sign"):
            raise ValueError(f"there is no preprocessing {preprocess}; choose from raw, log-sign")
        self.lr = positive("lr", lr)
        self.preprocess = preprocess
        self.cells = LSTMStack(1 if preprocess == "raw" else 2, hidden, init)
        self.head = nn.Linear(hidden[-1], 1)

    def options(self) -> dict[str, object]:
        """Architecture and scale, from which a saved policy is made again."""
        return {"hidden": list(self.cells.hidden), "lr": self.lr, "preprocess": self.preprocess}

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """The memories of the cells at zero, for ``theta`` (instances, parameters)."""
        return {"cells": self.cells.init_state(theta)}

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return updates (instances, parameters), which nothing bounds, and the new state."""
        raw, cells = self.respond(self.inputs(g), state["cells"])
        return self.lr * raw, {"cells": cells}

    def observe(self, g: Tensor, state: State) -> State:
        """The state is the memories of the cells, which stay as they are for any ``g`` (instances, parameters)."""
        return state

    def inputs(self, g: Tensor) -> Tensor:
        """What the cells are fed for gradients (instances, parameters): (instances, parameters, 1), or 2 for ``log-sign``."""
        return g.unsqueeze(-1) if self.preprocess == "raw" else log_and_sign(g)

    def respond(self, z: Tensor, cells: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What the network makes of inputs (instances, parameters, F): its output before ``lr``, and new cells."""
        h, cells = self.cells(z.transpose(-1, -2), cells)
        return across(self.head, h).squeeze(-2), cells


def log_and_sign(g: Tensor, k: float = LOG_SIGN_RANGE) -> Tensor:
    """[max(log(|g| + ε)/k, −1), clip(g eᵏ, −1, 1)] on a new last axis, with ε the type's resolution."""
    logarithm = ((g.abs() + torch.finfo(g.dtype).eps).log() / k).clamp(min=-1)
    sign = (g * math.exp(k)).clamp(-1, 1)
    return torch.stack([logarithm, sign], dim=-1)
