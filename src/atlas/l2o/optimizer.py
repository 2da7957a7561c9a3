"""Any policy as a ``torch.optim.Optimizer``: a trained optimizer drops into a training loop where Adam stood."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atlas.l2o.policies import Layout, Policy, positive
from atlas.l2o.state import map_state, select_state, state_elements


class LearnedOptimizer(torch.optim.Optimizer):
    """Steps parameters by a policy.

    All parameters of a group are one flattened vector in float32 (or float64 where a parameter is), so that a coordinate-wise
    network sees one large batch, whatever the tensors' types.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for any optimizer.
    policy : Policy
        Not changed.
    lr : float, optional
        Scale of the updates in place of the policy's own; schedulers act on it.
    patience : int
        A tensor whose gradient is not finite keeps its value and its state for that step; as many such steps in a row raise.

    Raises
    ------
    ValueError
        ``lr`` is not positive.
    RuntimeError
        From :meth:`step`: a gradient is sparse, or not finite for ``patience`` steps in a row.
    """

    def __init__(self, params: Any, policy: Policy, lr: float | None = None, patience: int = 10) -> None:
        scale = float(policy.lr) if lr is None else float(lr)
        self.policy, self.patience = policy, patience
        super().__init__(params, {"lr": positive("lr", scale)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step; with a closure, evaluate it first and return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if any(parameter.grad is not None for parameter in group["params"]):
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = group["params"]
        usable = self._usable(parameters)
        gradient = self._flat([_gradient(p) if use else None for p, use in zip(parameters, usable, strict=True)], parameters)
        store = self.state[parameters[0]]
        if "policy" not in store:
            theta = self._flat([p.detach() for p in parameters], parameters)
            store["policy"] = self.policy.init_state(theta, Layout.of(p.shape for p in parameters))
        update, new = self.update(gradient, store["policy"], group)
        if not all(usable):
            keep = torch.tensor(usable, device=gradient.device)
            sizes = torch.tensor([p.numel() for p in parameters], device=gradient.device)
            mask = keep.repeat_interleave(sizes).unsqueeze(0)
            update, new = torch.where(mask, update, 0.0), select_state(mask, new, store["policy"])
        store["policy"] = new
        parts = update[0].split([p.numel() for p in parameters])
        torch._foreach_add_(parameters, [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)])

    def update(self, gradient: Tensor, state: Any, group: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return what is added to a group's flattened parameters (1, P), and the policy's new state."""
        update, new = self.policy.step(gradient, state)
        factor = group["lr"] / float(self.policy.lr)
        return (update if factor == 1 else update * factor), new

    def _usable(self, parameters: list[Tensor]) -> list[bool]:
        """Whether each tensor has a finite gradient; counts those that have a gradient which is not."""
        usable = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                usable.append(False)
                continue
            if gradient.is_sparse:
                raise RuntimeError("sparse gradients are not supported")
            finite = bool(gradient.isfinite().all())
            usable.append(finite)
            if finite and "skipped" not in self.state[parameter]:
                continue
            count = 0 if finite else self.state[parameter].get("skipped", 0) + 1
            self.state[parameter]["skipped"] = count
            if count >= self.patience:
                raise RuntimeError(f"the gradient of a tensor {tuple(parameter.shape)} was not finite for {count} steps in a row")
        return usable

    @staticmethod
    def _flat(tensors: list[Tensor | None], parameters: list[Tensor]) -> Tensor:
        """(1, P) in at least single precision; zeros where there is no tensor."""
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        parts = [
            torch.zeros(p.numel(), dtype=dtype, device=p.device) if tensor is None else tensor.reshape(-1).to(dtype)
            for tensor, p in zip(tensors, parameters, strict=True)
        ]
        return torch.cat(parts).unsqueeze(0)

    def state_bytes_per_parameter(self) -> float:
        """Bytes of state per scalar parameter; 0 before the first step."""
        held = sum(state_elements(store["policy"]) * 4 for store in self.state.values() if "policy" in store)
        return held / sum(p.numel() for group in self.param_groups for p in group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; keeps the state's own precision, whatever the parameters' types."""
        saved = copy.deepcopy(state_dict)
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, store in saved["state"].items():
            if "policy" in store:
                device = parameters[index].device
                self.state[parameters[index]]["policy"] = map_state(lambda leaf, device=device: leaf.to(device), store["policy"])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
