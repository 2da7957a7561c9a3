"""Several policies of one architecture as one batched computation: replicates for the price of little more than one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from atlas.l2o.policies import Layout, Policy
from atlas.l2o.state import State, map_state, stack_states


class Replicas:
    """R policies that share an architecture, with their trainable numbers stacked along a first axis.

    Attributes
    ----------
    parameters : dict
        Name to a leaf tensor (R, …), trainable where the first policy's is.

    Parameters
    ----------
    policies : sequence of Policy
        At least one; all of the same architecture. They are copied, not changed; see :meth:`member`.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.base = policies[0]
        stores = [dict(policy.named_parameters()) for policy in policies]
        self.parameters: dict[str, Tensor] = {
            name: torch.stack([store[name].detach() for store in stores]).requires_grad_(own.requires_grad)
            for name, own in self.base.named_parameters()
        }
        self.count = len(policies)

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """State for ``theta`` of (R, instances, P)."""
        return stack_states([self.base.init_state(own_theta, layout) for own_theta in theta])

    def step(self, g: Tensor, state: State, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, State]:
        """Return (updates, new state) for gradients (R, instances, P).

        ``parameters`` stand in for the replicas' own: a part of them, or perturbed ones.
        """
        return self._call(g, state, dict(self.parameters if parameters is None else parameters))

    def _call(self, g: Tensor, state: State, parameters: dict[str, Tensor]) -> tuple[Tensor, State]:
        def step_one(own: dict[str, Tensor], gradient: Tensor, before: State) -> Any:
            return functional_call(self.base, own, (gradient, before))

        if len(g) > 1:
            return vmap(step_one)(parameters, g, state)
        single = {name: value[0] for name, value in parameters.items()}
        update, new = step_one(single, g[0], map_state(lambda leaf: leaf[0], state))
        return update.unsqueeze(0), map_state(lambda leaf: leaf.unsqueeze(0), new)

    def observe(self, g: Tensor, state: State) -> State:
        """Let statistics take gradients (R, instances, P) in; see :meth:`.Policy.observe`."""
        return stack_states(
            [self.member(r).observe(gradient, map_state(lambda leaf, r=r: leaf[r], state)) for r, gradient in enumerate(g)]
        )

    def member(self, replica: int) -> Policy:
        """One replica as a policy of its own, with copies of its present numbers; buffers are the first policy's."""
        own = copy.deepcopy(self.base)
        own.load_state_dict({**own.state_dict(), **self.numbers(replica)})
        return own

    def rows(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The parameters (replicas, …) of some replicas, with their history: gradients reach :attr:`parameters`."""
        if list(index) == list(range(self.count)):
            return self.parameters
        chosen = torch.as_tensor(index)
        return {name: value[chosen.to(value.device)] for name, value in self.parameters.items()}

    def numbers(self, replica: int) -> dict[str, Tensor]:
        """A copy of one replica's trainable numbers, tensors (…) as its policy's ``state_dict`` names them."""
        return {name: value[replica].detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def assign(self, replica: int, numbers: Mapping[str, Tensor]) -> None:
        """Put a copy of trainable numbers, tensors (…) by name, in a replica's place."""
        for name, value in self.parameters.items():
            value[replica] = numbers[name]


class Ensemble(Policy):
    """R replicates as one policy whose instances are (R · n), replicate by replicate: for judging them all in one run."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        super().__init__()
        self.members = nn.ModuleList(policies)
        self.replicas = Replicas(policies)

    def init_state(self, theta: Tensor, layout: Layout | None = None) -> State:
        """State of every replicate, for ``theta`` of (R · n, P), replicate by replicate."""
        return self.replicas.init_state(self._grouped(theta), layout)

    def step(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Return every replicate's updates, (R · n, P), and the new state."""
        update, state = self.replicas.step(self._grouped(g), state)
        return update.flatten(0, 1), state

    def observe(self, g: Tensor, state: State) -> State:
        """Let every replicate watch its part of the gradients (R · n, P)."""
        return self.replicas.observe(self._grouped(g), state)

    def _grouped(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (self.replicas.count, -1))
