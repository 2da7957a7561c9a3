"""Any policy as a ``torch.optim.Optimizer``: a trained optimizer drops into a training loop where Adam stood."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from atlas.l2o.drop_in import DropIn, as_real, wide
from atlas.l2o.policies import Layout, Policy, not_negative, positive, require_policy
from atlas.l2o.state import select_state
from atlas.nn.examples import require_numbers


class LearnedOptimizer(DropIn):
    """Steps parameters by a policy.

    All parameters of a group are one flattened vector in float32, so that a coordinate-wise network sees one large batch,
    whatever the tensors' types; in float64 where the policy's numbers are, or, if it has none, where a parameter is. Complex
    parameters count as two real ones each.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for any optimizer. A group may set ``lr`` and ``weight_decay`` for its parameters; another
        option is refused.
    policy : Policy
        Not changed.
    lr : float, optional
        Scale of the updates in place of the policy's own; schedulers act on it.
    patience : int
        A tensor whose gradient is not finite keeps its value and its state for that step; as many such steps in a row raise.
    weight_decay : float
        Decoupled, as AdamW's: parameters shrink by lr · weight_decay before the update.

    Raises
    ------
    ValueError
        ``lr`` is not positive, ``weight_decay`` is negative, or a group has an option that is not known. From
        :meth:`load_state_dict`: the state belongs to another policy, or to parameters of other sizes.
    RuntimeError
        From :meth:`step`: a gradient is sparse, or not finite for ``patience`` steps in a row.
    """

    def __init__(
        self, params: Any, policy: Policy, lr: float | None = None, patience: int = 10, *, weight_decay: float = 0.0
    ) -> None:
        require_policy(policy=policy)
        if lr is not None:
            require_numbers(lr=lr)
        scale = float(policy.lr) if lr is None else float(lr)
        self.policy = policy
        defaults = {"lr": positive("lr", scale), "weight_decay": not_negative("weight_decay", weight_decay)}
        super().__init__(params, defaults, patience)

    def _step(self, group: dict[str, Any], usable: list[Tensor]) -> None:
        parameters: list[Tensor] = group["params"]
        moving = {id(parameter) for parameter in usable}
        gradient = self._flat([p.grad if id(p) in moving else None for p in parameters], parameters)
        store = self.state[parameters[0]]
        if "policy" not in store:
            store.update(self._fresh(group)[parameters[0]])
        update, new = self.update(gradient, store["policy"], group)
        reals = [as_real(parameter) for parameter in parameters]
        sizes = [real.numel() for real in reals]
        if len(usable) < len(parameters):
            keep = torch.tensor([id(p) in moving for p in parameters], device=gradient.device)
            mask = keep.repeat_interleave(torch.tensor(sizes, device=gradient.device)).unsqueeze(0)
            update, new = torch.where(mask, update, 0.0), select_state(mask, new, store["policy"])
        store["policy"] = new
        parts = update[0].split(sizes)
        torch._foreach_add_(reals, [part.view_as(real).to(real.dtype) for part, real in zip(parts, reals, strict=True)])

    def update(self, gradient: Tensor, state: Any, group: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return what is added to a group's flattened parameters (1, P), and the policy's new state."""
        update, new = self.policy.step(gradient, state)
        factor = float(group["lr"]) / float(self.policy.lr)
        return (update if factor == 1 else update * factor), new

    def _fresh(self, group: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        """The first tensor of a group holds the state of all."""
        parameters: list[Tensor] = group["params"]
        theta = self._flat([parameter.detach() for parameter in parameters], parameters)
        return {parameters[0]: {"policy": self.policy.init_state(theta, Layout.of(as_real(p).shape for p in parameters))}}

    def _flat(self, tensors: list[Tensor | None], parameters: list[Tensor]) -> Tensor:
        """(1, P) of real scalars; zeros where there is no tensor."""
        numbers = [number.dtype for number in self.policy.parameters()] or [wide(parameter) for parameter in parameters]
        double = torch.float64 in numbers
        parts = [
            as_real(torch.zeros_like(parameter) if tensor is None else tensor).reshape(-1)
            for tensor, parameter in zip(tensors, parameters, strict=True)
        ]
        return torch.cat([part.to(torch.float64 if double else torch.float32) for part in parts]).unsqueeze(0)

    def rule(self) -> str:
        """The policy, and a digest of its trained numbers."""
        return f"{self.policy.describe()}, numbers {_digest(self.policy)}"


def _digest(module: nn.Module) -> str:
    """A short text that changes with any number of a module, but not with its type or device."""
    numbers = hashlib.sha256()
    for name, value in module.state_dict().items():
        numbers.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
    return numbers.hexdigest()[:12]
