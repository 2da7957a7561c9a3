"""Training with fixed masks: weights and the optimiser's memory stay zero where no weight exists.

Weights are stored masked, and gradients stay dense: dynamic methods read them to decide what to grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atlas.methods.sparse_robust.masks import Masks, check_masks, density_of
from atlas.nn.kinds import require_kind
from atlas.nn.precision import forget_casts

OTHER_MODEL = "the optimizer steps no weight that is masked: is it another model's? make it of model.parameters()"


def not_stepped(model: nn.Module, optimizer: torch.optim.Optimizer, names: Iterable[str]) -> list[str]:
    """Return those of the model's parameters, by name, that an optimizer does not step.

    Raises
    ------
    TypeError
        It is no optimizer.
    """
    require_kind(torch.optim.Optimizer, "a torch.optim.Optimizer", optimizer=optimizer)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    return [name for name in names if id(parameters[name]) not in held]


class SparseTraining:
    """Wraps a model and its optimiser so that masked weights stay zero.

    Parameters
    ----------
    model : nn.Module
        Its weights are masked at once, in place. A copy of them as they were is held until the first step or
        :meth:`load_state_dict`, which may find that they belonged to other masks.
    optimizer : torch.optim.Optimizer
        Any that steps parameters of the model; every tensor of its state that has a masked parameter's shape is masked too.
    masks : mapping
        Parameter name to a bool tensor of its shape.

    Raises
    ------
    TypeError
        An argument is of another type; says what would be right.
    KeyError, ValueError
        A mask's name or shape does not fit the model, with its name; or the optimiser steps none of the masked weights, as one
        of another model's parameters does. Nothing has changed then.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor]) -> None:
        checked = check_masks(model, masks)
        if not set(checked) - set(not_stepped(model, optimizer, checked)):
            raise ValueError(OTHER_MODEL)
        self.model, self.optimizer = model, optimizer
        self.masks: Masks = checked
        parameters = dict(model.named_parameters())
        self.weights = {name: parameters[name] for name in self.masks}
        whole = [(name, value, value.detach().clone()) for name, weight in self.weights.items() for value in self._masked(weight)]
        self.apply()
        self._whole = [(name, value, value._version, before) for name, value, before in whole]

    def step(self, scaler: Any = None) -> object:
        """Take the optimiser's step (through a ``GradScaler`` if one is given), then mask again."""
        self._optimizer_step(scaler)
        self.apply()
        return None

    def _optimizer_step(self, scaler: Any) -> None:
        self._whole.clear()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        forget_casts()

    @torch.no_grad()
    def apply(self) -> None:
        """Zero weights and matching state of the optimiser where no weight exists."""
        for name, weight in self.weights.items():
            self._apply_to(name, weight)

    def _apply_to(self, name: str, weight: nn.Parameter) -> None:
        mask = self.masks[name]
        numbers = mask.to(weight.dtype)  # once: multiplying by booleans would convert them every time
        for value in self._masked(weight):
            value.mul_(numbers if value.dtype == weight.dtype else mask)

    def _clear(self, name: str, weight: nn.Parameter, gone: Tensor) -> None:
        """Mask a weight that was masked before, where only the entries at flat indices (k,) exist no longer."""
        for value in self._masked(weight):
            if value.is_contiguous():
                flat = value.view(-1)
                flat.index_copy_(0, gone, flat.index_select(0, gone).mul_(0))  # keeps the signs of zeros, as a mask does
            else:
                value.mul_(self.masks[name])

    def _masked(self, weight: nn.Parameter) -> Iterator[Tensor]:
        """The weight, and what the optimiser keeps for each of its entries."""
        yield weight
        for value in self.optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                yield value

    def end_epoch(self, *, train_ra: float, val_ra: float, val_loss: float) -> None:
        """Be told how the epoch went; a fixed mask has no use for it."""

    @property
    def density(self) -> float:
        """Share of the maskable weights that exist."""
        return density_of(self.masks)

    @property
    def layer_density(self) -> dict[str, float]:
        """Share of the weights that exist, by parameter."""
        return {name: float(mask.count_nonzero()) / mask.numel() for name, mask in self.masks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes while training, besides the model's and the optimiser's own state."""
        return {"masks": {name: mask.clone() for name, mask in self.masks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the model and the optimiser are restored by their own, before or after.

        What the constructor masked and nobody has written since is whole again first, so that weights which were loaded before it
        lose nothing to masks that never were theirs.

        Raises
        ------
        KeyError, ValueError
            The state's masks do not fit the model.
        """
        masks = check_masks(self.model, state["masks"])
        if set(masks) != set(self.masks):
            missing = sorted(set(self.masks) ^ set(masks))[0]
            raise KeyError(f"the state and this training differ in the masks that they have: {missing}")
        with torch.no_grad():
            for name, value, version, before in self._whole:
                # writing through ``.data`` leaves no version, only other numbers
                if value._version == version and torch.equal(value, before * self.masks[name]):
                    value.copy_(before)
        self._whole.clear()
        self.masks = masks
        self.apply()
