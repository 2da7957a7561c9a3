"""Data as people have it: tensors, NumPy arrays, datasets and loaders, as the tensors that library calls work with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

FORMS = "a pair (inputs, labels) of tensors or NumPy arrays, a Dataset of such pairs, or a DataLoader"


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor (…) as it is, or a NumPy array or nested list of numbers as a tensor.

    Raises
    ------
    TypeError
        It is none of these; says what would be right.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return torch.stack(value)
        if hasattr(value, "__array__") or isinstance(value, list | tuple):
            return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is a {_kind(value)} that cannot become a tensor: {str(error).splitlines()[0]}") from None
    raise TypeError(f"{name} is a {_kind(value)}; a tensor or a NumPy array is needed")


def in_type_of(model: nn.Module, value: Any, name: str) -> Tensor:
    """A tensor or NumPy array (…) as a tensor, which must have the type of a model's weights; under autocast any will do.

    Raises
    ------
    TypeError
        It is neither, or of another type; says what would be right.
    """
    tensor = as_tensor(value, name)
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if weight is None or tensor.dtype == weight.dtype or torch.is_autocast_enabled(weight.device.type):
        return tensor
    remedy = f"bring {name} to {weight.dtype}" + (", divided by 255" if tensor.dtype == torch.uint8 else "")
    raise TypeError(f"{name} is {tensor.dtype}, and the model's weights are {weight.dtype}: {remedy}")


def require_tensors(**values: Any) -> None:
    """Refuse, by their names, what is no floating-point tensor.

    Raises
    ------
    TypeError
        One is of another type; says of which.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {_kind(value)}; a tensor is needed")
        if not value.is_floating_point():
            raise TypeError(f"{name} is {value.dtype}; a floating-point tensor is needed")


def require_numbers(**values: Any) -> None:
    """Refuse, by their names, what is no number: text from a command line or a file above all.

    Raises
    ------
    TypeError
        One is of another type; says of which.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise TypeError(f"{name} must be a number, not {value!r}")


def require_labels(labels: Any, count: int, classes: int, name: str) -> None:
    """Refuse what names no class of ``count`` examples: whole numbers (count,) from 0 to classes − 1, or shares (count, classes).

    Raises
    ------
    TypeError, ValueError
        They are of another type or shape, or out of range; says what would be right.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} is a {_kind(labels)}; a tensor is needed")
    if len(labels) != count:
        raise ValueError(f"{name} has {len(labels)} entries for {count} inputs")
    if labels.ndim == 2 and labels.shape[1] == classes and labels.is_floating_point():
        return
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
        given = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise TypeError(f"{name} is {given}; class numbers ({count},), or floating-point shares ({count}, {classes}) are needed")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"{name} must be from 0 to {classes - 1}, not from {int(labels.min())} to {int(labels.max())}")


def gathered(data: Any, name: str = "data") -> tuple[Tensor, Tensor]:
    """All examples of some data as two tensors: inputs (n, …) and labels (n, …).

    Parameters
    ----------
    data : pair, Dataset or DataLoader
        A pair of arrays; a dataset with numbered entries that are pairs of one shape each; or a loader, passed over once, whose
        batches are joined in the order in which they come.

    Raises
    ------
    TypeError
        It is none of these, or its entries are no sequences.
    ValueError
        Entries are no pairs or differ in their shapes, or there are none.
    """
    if is_pair(data):
        return as_tensor(data[0], f"{name}'s inputs"), as_tensor(data[1], f"{name}'s labels")
    if isinstance(data, DataLoader):
        return _columns(data, name, torch.cat)
    if not isinstance(data, IterableDataset | str) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _columns((data[index] for index in range(len(data))), name, torch.stack)
    raise TypeError(f"{name} is a {_kind(data)}; give {FORMS}")


def as_loader(data: Any, batch_size: int = 64, *, shuffle: bool = True, seed: int = 0, name: str = "data") -> Iterable[Any]:
    """Something to pass over once per epoch: a loader, or any other iterable of batches that begins anew, as it is.

    A pair of arrays or a dataset becomes a loader, shuffled in an order that follows from ``seed``.

    Raises
    ------
    TypeError
        It is none of these, or an iterator, which can be passed over only once.
    ValueError
        A pair has more of one than of the other, or none at all.
    """
    if is_pair(data):
        inputs, labels = gathered(data, name)
        if len(inputs) != len(labels):
            raise ValueError(f"{name} has {len(inputs)} inputs and {len(labels)} labels")
        if not len(inputs):
            raise ValueError(f"{name} holds no examples")
        data = TensorDataset(inputs, labels)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size, shuffle=shuffle, generator=torch.Generator().manual_seed(seed))
    if hasattr(data, "__next__"):
        raise TypeError(f"{name} is a {_kind(data)}, which can be passed over once only; give a list of batches, or {FORMS}")
    if isinstance(data, Iterable) and not isinstance(data, Tensor | str | dict) and not hasattr(data, "__array__"):
        return data
    raise TypeError(f"{name} is a {_kind(data)}; give {FORMS}")


def is_pair(data: Any) -> bool:
    """Whether this is (inputs, labels) as two arrays, and not a list of two batches."""
    return isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "__array__") for part in data)


def _columns(entries: Iterable[Any], name: str, join: Any) -> tuple[Tensor, Tensor]:
    columns: tuple[list[Tensor], list[Tensor]] = ([], [])
    for entry in entries:
        if not isinstance(entry, tuple | list):
            raise TypeError(f"{name} must be made of pairs (inputs, labels), not of a {_kind(entry)}")
        if len(entry) != 2:
            raise ValueError(f"{name} must be made of pairs (inputs, labels), not of {len(entry)} parts")
        for column, value, what in zip(columns, entry, ("inputs", "labels"), strict=True):
            column.append(torch.as_tensor(value) if isinstance(value, int | float) else as_tensor(value, f"{name}'s {what}"))
    if not columns[0]:
        raise ValueError(f"{name} holds no examples")
    for column, what in zip(columns, ("inputs", "labels"), strict=True):
        shapes = {tuple(value.shape[1 if join is torch.cat else 0 :]) for value in column}
        if len(shapes) > 1:
            raise ValueError(f"{name} has {what} of different shapes: {', '.join(map(str, sorted(shapes)))}")
    return join(columns[0]), join(columns[1])


def _kind(value: Any) -> str:
    return type(value).__name__
