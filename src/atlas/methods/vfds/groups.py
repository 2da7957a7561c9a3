"""Which features are acquired together, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atlas.nn.selection import check_cost


class FeatureGroups:
    """Features that one gate acquires together (a sensor, a channel), and the cost of each gate.

    Parameters
    ----------
    groups : LongTensor
        (D,): the group of every feature, 0 … G − 1, none left out.
    cost : Tensor
        (G,): non-negative cost of acquiring each group for one step, in any unit; only ratios matter.
    names : sequence of str, optional
        What the groups are called.

    Raises
    ------
    ValueError
        The groups are not numbered 0 … G − 1; a cost is negative or not finite, or all are zero; or lengths differ.
    """

    def __init__(
        self, groups: Tensor | Sequence[int], cost: Tensor | Sequence[float], names: Sequence[str] | None = None
    ) -> None:
        self.groups = torch.as_tensor(groups)
        self.cost = torch.as_tensor(cost, dtype=torch.get_default_dtype())
        if self.groups.ndim != 1 or not len(self.groups) or self.groups.is_floating_point():
            raise ValueError(f"groups must be a vector of whole numbers, not of shape {tuple(self.groups.shape)}")
        self.groups = self.groups.long()
        numbers = torch.unique(self.groups)
        count = len(numbers)
        if not torch.equal(numbers, torch.arange(count)):
            raise ValueError(f"groups must be numbered 0 … G − 1 without a gap, not {numbers.tolist()}")
        if self.cost.shape != (count,):
            raise ValueError(f"there are {count} groups, but costs of shape {tuple(self.cost.shape)}")
        check_cost(self.cost)
        self.names = [f"group{index}" for index in range(count)] if names is None else list(names)
        if len(self.names) != count:
            raise ValueError(f"there are {count} groups, but {len(self.names)} names")

    @classmethod
    def per_feature(cls, n_features: int) -> FeatureGroups:
        """Every feature by itself, at cost 1."""
        names = [f"feature{index}" for index in range(n_features)]
        return cls(torch.arange(n_features), torch.ones(n_features), names)

    @property
    def n_features(self) -> int:
        """How many features there are: D."""
        return len(self.groups)

    @property
    def n_groups(self) -> int:
        """How many gates there are: G, one per group."""
        return len(self.cost)

    @property
    def trivial(self) -> bool:
        """Whether every feature has a gate of its own, in the features' order."""
        return torch.equal(self.groups, torch.arange(self.n_features))

    def expand(self, gates: Tensor) -> Tensor:
        """Give every feature the gate of its group: (…, G) to (…, D)."""
        return gates if self.trivial else gates[..., self.groups.to(gates.device)]
