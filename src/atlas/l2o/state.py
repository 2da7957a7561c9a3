"""Explicit state of policies: nested mappings of tensors, and the few operations on them.

A state is passed, never hidden. Leaves that belong to coordinates are shaped ``(instances, …, parameters)``; what all instances
share (a step counter) is a tensor too, so that ``torch.func.vmap`` and saved files treat all leaves alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def map_state(change: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """Apply a function to every tensor (…) of a state (and to the corresponding ones of states of the same structure)."""
    if isinstance(state, Mapping):
        return {key: map_state(change, value, *(other[key] for other in others)) for key, value in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(map_state(change, *values) for values in zip(state, *others, strict=True))
    return change(state, *others)


def detach_state(state: Any) -> Any:
    """The same numbers without the history that gradients would follow."""
    return map_state(torch.Tensor.detach, state)


def stack_states(states: Sequence[Any]) -> Any:
    """States of several replicates as one, with a leading axis."""
    return map_state(lambda *leaves: torch.stack(leaves), states[0], *states[1:])


def select_state(mask: Tensor, chosen: Any, other: Any) -> Any:
    """Take coordinates from ``chosen`` where the mask is true, else from ``other``.

    Parameters
    ----------
    mask : Tensor
        (instances, parameters) of bool. Leaves that are neither (instances, …, parameters) nor (instances, parameters, …) are
        taken from ``chosen``.
    """

    def pick(new: Tensor, old: Tensor) -> Tensor:
        between = [1] * (new.ndim - 2)
        if new.ndim >= 2 and (new.shape[0], new.shape[-1]) == mask.shape:
            return torch.where(mask.reshape(len(mask), *between, -1), new, old)
        if new.shape[:2] == mask.shape:
            return torch.where(mask.reshape(*mask.shape, *between), new, old)
        return new

    return map_state(pick, chosen, other)


def leaves(state: Any) -> Iterator[Tensor]:
    """Iterate over every tensor (…) of a state, in the order of its names."""
    if isinstance(state, Mapping):
        state = list(state.values())
    if isinstance(state, tuple | list):
        for value in state:
            yield from leaves(value)
    elif isinstance(state, Tensor):
        yield state


def alike(state: Any, other: Any) -> bool:
    """Whether two states have the same names and shapes."""
    if isinstance(state, Mapping) and isinstance(other, Mapping):
        return state.keys() == other.keys() and all(alike(value, other[name]) for name, value in state.items())
    if isinstance(state, tuple | list) and isinstance(other, tuple | list):
        return len(state) == len(other) and all(map(alike, state, other))
    if isinstance(state, Tensor) and isinstance(other, Tensor):
        return state.shape == other.shape
    return type(state) is type(other)


def state_elements(state: Any) -> int:
    """Number of scalars that a state holds."""
    return sum(leaf.numel() for leaf in leaves(state))
