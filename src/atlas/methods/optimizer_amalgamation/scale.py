"""L2O-Scale, a learned baseline with recurrences at three levels: parameters, tensors, and the whole network.

O. Wichrowska et al., *Learned optimizers that scale and generalize*, ICML 2017, in the form in which Optimizer Amalgamation
compares with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atlas.l2o import Layout, Policy
from atlas.l2o.policies import positive
from atlas.l2o.recurrent import across
from atlas.l2o.state import State
from atlas.methods.optimizer_amalgamation.settings import L2OScaleSettings

DEFAULT = L2OScaleSettings()
EPS = 1e-10
SCALES = 4
"""Time scales: decay rates β, β^½, β^¼, β^⅛."""
START_LOG_RATE = math.log(1e-3)
SLOWEST = 0.01


class GRUCell(nn.GRUCell):
    """torch's cell (gates r, z, n; the reset acts after the recurrent product) for coordinates on the last axis."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        """(…, inputs, P) and (…, hidden, P) to (…, hidden, P)."""
        entered = self.weight_ih @ x + self.bias_ih.unsqueeze(-1)
        recurred = self.weight_hh @ h + self.bias_hh.unsqueeze(-1)
        (reset_x, update_x, new_x), (reset_h, update_h, new_h) = entered.chunk(3, dim=-2), recurred.chunk(3, dim=-2)
        update = (update_x + update_h).sigmoid()
        candidate = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return update * h + (1 - update) * candidate


def zero_head(inputs: int, bias: float = 0.0) -> nn.Linear:
    """A linear layer to one number that ignores its inputs at first."""
    layer = nn.Linear(inputs, 1)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def logit(probability: float) -> float:
    """The number whose sigmoid is the given probability."""
    return math.log(probability / (1 - probability))


class L2OScale(Policy):
    """Hierarchical GRUs; update = −lr (e^η + 0.01) d.

    Per coordinate, decay rates β_g, β_λ come from its memory, and gradients and their squares are averaged at four time scales;
    μ_k = ḡ_k/√(λ_k + ε) and γ_k = log(λ_k + ε) less its mean over k, the relative log rate, and the memories of the tensor and of
    the network feed the coordinate's cell. η is its output plus a slow mean of η; d is its output plus a linear map of μ. A
    tensor's cell sees the mean memory of its coordinates, the network's cell the mean memory of its tensors. All heads start at
    zero.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the cells of coordinates, tensors, and the network.
    lr : float
        Scale of the update.

    Raises
    ------
    ValueError
        ``lr`` is not positive.
    """

    def __init__(self, hidden: tuple[int, int, int] = DEFAULT.hidden, lr: float = DEFAULT.scale) -> None:
        super().__init__()
        self.lr = positive("lr", lr)
        self.hidden = tuple(hidden)
        own, tensor, network = self.hidden
        self.own_cell = GRUCell(2 * SCALES + 1 + tensor + network, own)
        self.tensor_cell = GRUCell(own + network, tensor)
        self.network_cell = GRUCell(tensor, network)
        self.gradient_decay = zero_head(own, logit(0.9))
        self.square_decay = zero_head(own, logit(0.999))
        self.rate = zero_head(own)
        self.direction = zero_head(own)
        self.shortcut = nn.Linear(SCALES, 1, bias=False)
        nn.init.zeros_(self.shortcut.weight)
        self.rate_decay = nn.Parameter(torch.tensor(3.2))

    def options(self) -> dict[str, object]:
        """Widths of the cells and scale of the update, from which a saved policy is made again."""
        return {"hidden": list(self.hidden), "lr": self.lr}

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """Zeros, a log rate of log 1e-3, and which coordinate of ``theta`` (instances, parameters) belongs to which tensor."""
        index = (layout or Layout.of([theta.shape[1:]])).tensor_index().to(theta.device)
        belongs = nn.functional.one_hot(index).to(theta.dtype)
        own, tensor, network = self.hidden
        count, size = theta.shape
        return {
            "belongs": belongs,
            "gradients": theta.new_zeros(count, SCALES, size),
            "squares": theta.new_zeros(count, SCALES, size),
            "own": theta.new_zeros(count, own, size),
            "tensor": theta.new_zeros(count, tensor, belongs.shape[1]),
            "network": theta.new_zeros(count, network, 1),
            "log_rate": torch.full_like(theta, START_LOG_RATE),
            "relative": torch.zeros_like(theta),
        }

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Move every coordinate, (instances, parameters), then the memories of tensors and of the network."""
        belongs = state["belongs"]
        shares = belongs / belongs.sum(0)
        gradients, squares = self._averages(g, state)
        mean = gradients / (squares + EPS).sqrt()
        logarithm = (squares + EPS).log()
        context = [state["tensor"] @ belongs.T, state["network"].expand(*g.shape[:-1], -1, g.shape[-1])]
        inputs = [mean, logarithm - logarithm.mean(-2, keepdim=True), state["relative"].unsqueeze(-2), *context]
        own = self.own_cell(torch.cat(inputs, dim=-2), state["own"])
        eta = across(self.rate, own).squeeze(-2) + state["log_rate"]
        kept = self.rate_decay.sigmoid()
        direction = (across(self.direction, own) + self.shortcut.weight @ mean).squeeze(-2)
        around = state["network"].expand(*g.shape[:-1], -1, belongs.shape[1])
        tensor = self.tensor_cell(torch.cat([own @ shares, around], dim=-2), state["tensor"])
        new = {
            **state,
            "gradients": gradients,
            "squares": squares,
            "own": own,
            "tensor": tensor,
            "network": self.network_cell(tensor.mean(-1, keepdim=True), state["network"]),
            "log_rate": kept * state["log_rate"] + (1 - kept) * eta,
            "relative": eta - (eta @ shares) @ belongs.T,
        }
        return -self.lr * (eta.exp() + SLOWEST) * direction, new

    def observe(self, g: Tensor, state: State) -> State:
        """The averages of gradients (instances, parameters) advance; the memories of all cells stay."""
        gradients, squares = self._averages(g, state)
        return {**state, "gradients": gradients, "squares": squares}

    def _averages(self, g: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Means of gradients and squares at four time scales: (instances, 4, P) each."""
        powers = torch.tensor([2.0**-k for k in range(SCALES)], dtype=g.dtype, device=g.device).unsqueeze(-1)
        averages = []
        for name, head, value in (("gradients", self.gradient_decay, g), ("squares", self.square_decay, g.square())):
            decay = across(head, state["own"]).sigmoid() ** powers
            averages.append(decay * state[name] + (1 - decay) * value.unsqueeze(-2))
        return averages[0], averages[1]
