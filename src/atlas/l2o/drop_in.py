"""What optimizers that take Adam's place share: options of groups, copies, saved states, complex and broken gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from atlas.l2o.policies import not_negative
from atlas.l2o.state import alike, leaves, map_state
from atlas.nn.kinds import require_whole

NOTES = frozenset(
    ("params", "param_names", "name", "initial_lr", "lr_scale", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum")
)
"""What torch, schedulers and training loops note down in a group for themselves; they act on it, an optimizer need not."""


class DropIn(torch.optim.Optimizer):
    """Base of optimizers on groups of parameters. To write one: override :meth:`_step`, :meth:`_fresh` and :meth:`rule`.

    Complex parameters are stepped as pairs of real ones (:func:`torch.view_as_real`), as torch's optimizers do. Decay of the
    weights is decoupled, as AdamW's: parameters shrink by lr · weight_decay before the update. A copy
    (``copy.deepcopy``, ``pickle``) goes on exactly as the original does.

    Attributes
    ----------
    options : mapping
        What a group may set for its parameters, with a check of its name and value. Other options are refused: one that is
        not known would have no effect.
    patience : int
        A tensor whose gradient is not finite keeps its value and its state for that step; as many such steps in a row raise.
    """

    options: ClassVar[Mapping[str, Callable[[str, Any], object]]] = {"lr": not_negative, "weight_decay": not_negative}

    def __init__(self, params: Any, defaults: dict[str, Any], patience: int) -> None:
        if isinstance(params, torch.nn.Module):
            raise TypeError(f"params is a {type(params).__name__}; its parameters are needed: model.parameters()")
        require_whole(patience=patience)
        self.patience = patience
        super().__init__(params, defaults)

    def _step(self, group: dict[str, Any], usable: list[Tensor]) -> None:
        """Make one step on the parameters of a group that have a finite gradient, at least one."""
        raise NotImplementedError

    def _fresh(self, group: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        """The state before its first step of each parameter of a group that has one; of the tensors only the shapes count."""
        raise NotImplementedError

    def rule(self) -> str:
        """One line that tells what this optimizer steps by; a state of another rule is refused."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step; with a closure, evaluate it first and return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            usable = [parameter for parameter in group["params"] if self._usable(parameter)]
            if not usable:
                continue
            shrink = 1 - float(group["lr"]) * float(group["weight_decay"])
            if shrink != 1:
                torch._foreach_mul_([as_real(parameter) for parameter in usable], shrink)
            self._step(group, usable)
        return loss

    def _usable(self, parameter: Tensor) -> bool:
        """Whether a tensor has a finite gradient; counts the steps in a row in which it has one that is not."""
        if parameter.grad is None:
            return False
        if parameter.grad.layout != torch.strided:
            raise RuntimeError("sparse gradients are not supported")
        gradient = as_real(parameter.grad)
        # a sum is finite if its terms are, but for overflow: look closer only if it is not
        finite = bool(gradient.sum().isfinite()) or bool(gradient.isfinite().all())
        store = self.state[parameter]
        if finite:
            store.pop("skipped", None)
            return True
        store["skipped"] = store.get("skipped", 0) + 1
        if store["skipped"] >= self.patience:
            shape = tuple(parameter.shape)
            raise RuntimeError(f"the gradient of a tensor {shape} was not finite for {store['skipped']} steps in a row")
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises
        ------
        ValueError
            It sets an option that is not in :attr:`options` (the known ones are listed), or one to a value out of range; or a
            parameter is a conjugate view, whose real and imaginary part are not in memory as they are.
        """
        if isinstance(param_group, dict):
            self._check_options(param_group)
        super().add_param_group(param_group)
        if any(parameter.is_conj() for parameter in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("a conjugate view cannot be a parameter; make it of tensor.resolve_conj()")

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for name, value in group.items():
            if name in self.options:
                self.options[name](name, value)
            elif name not in NOTES:
                known = ", ".join(self.options)
                raise ValueError(f"{name} is not an option of the groups of {type(self).__name__}; choose from {known}")

    def state_dict(self) -> dict[str, Any]:
        """The state as torch has it, with :meth:`rule` under the key ``rule``."""
        return {**super().state_dict(), "rule": self.rule()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, also of parameters of another precision: it takes the types that a state here has.

        Raises
        ------
        ValueError
            The state belongs to another rule or to parameters of other sizes, or its groups have an option that is not known.
            Nothing has changed then.
        """
        self._check_saved(state_dict)
        super().load_state_dict(state_dict)
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            held = [index for index in saved["params"] if index in state_dict["state"]]
            fresh = self._fresh(group) if held else {}
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                if index in held:
                    self.state[parameter] = _moved(state_dict["state"][index], fresh.get(parameter, {}), parameter.device)

    def _check_saved(self, saved: Mapping[str, Any]) -> None:
        own = self.rule()
        if saved.get("rule", own) != own:
            raise ValueError(f"the state was saved by {saved['rule']}; this optimizer steps by {own}")
        sizes, here = ([len(group["params"]) for group in groups] for groups in (saved["param_groups"], self.param_groups))
        if sizes != here:
            raise ValueError(f"the state was saved of groups of {sizes} parameters; here are groups of {here}")
        for held, group in zip(saved["param_groups"], self.param_groups, strict=True):
            self._check_options(held)
            stores = {
                parameter: {name: value for name, value in saved["state"].get(index, {}).items() if name != "skipped"}
                for index, parameter in zip(held["params"], group["params"], strict=True)
            }
            fresh = self._fresh(group) if any(stores.values()) else {}
            for parameter, store in stores.items():
                if store and not alike(store, fresh.get(parameter)):
                    shape = tuple(parameter.shape)
                    reason = "another rule, other sizes, or an earlier version of Atlas"
                    raise ValueError(f"the saved state of a tensor {shape} here does not fit {own}: {reason}")

    def state_bytes_per_parameter(self) -> float:
        """Bytes of state per real scalar of the parameters; 0 before the first step."""
        held = sum(leaf.numel() * leaf.element_size() for store in self.state.values() for leaf in leaves(store))
        return held / sum(as_real(p).numel() for group in self.param_groups for p in group["params"])

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: torch's part and this class's attributes, without hooks and methods put on the object."""

        def own(name: str) -> bool:
            return not name.startswith("_") and not callable(getattr(type(self), name, None))

        return {**super().__getstate__(), **{name: value for name, value in vars(self).items() if own(name)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, or take on a saved state; options that a group lacks are the defaults."""
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch notes it down, and it would become an option of later groups
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as real and imaginary parts on a new last axis, (…, 2), in the same memory; another as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def wide(tensor: Tensor) -> torch.dtype:
    """The type in which the steps of a tensor (…) are computed: float64 for such a one (or complex128), else float32."""
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32


def _moved(store: dict[str, Any], fresh: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A copy of a parameter's state on a device, in the types of a fresh one; of what that does not have, as it is."""

    def moved(leaf: Any, like: Any) -> Any:
        return leaf.to(device, like.dtype, copy=True) if isinstance(leaf, Tensor) else leaf

    return {name: map_state(moved, value, fresh.get(name, value)) for name, value in store.items()}
