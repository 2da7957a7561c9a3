"""Batches of padded sequences: which steps count, which entries carry a label, and what no method can learn from.

Tensors are (batch, steps, …). What lies at or behind a sequence's length is padding: it may hold anything and is never looked at.
Everything that is refused is refused with one line that says what is wrong, how often, and where first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas.nn.kinds import require_kind


def valid_steps(lengths: Tensor | None, steps: int) -> Tensor | None:
    """(B, T) booleans of the steps before each length, or ``None`` without lengths."""
    return None if lengths is None else torch.arange(steps, device=lengths.device) < lengths[:, None]


def first_place(wrong: Tensor) -> tuple[int, ...]:
    """Index of the first true entry of a tensor (…) that has one."""
    return tuple(wrong.nonzero()[0].tolist())


def check_lengths(lengths: Tensor | None, batch: int, steps: int) -> None:
    """Refuse lengths that are not (batch,) whole numbers, one per sequence, from 1 to the number of steps.

    Raises
    ------
    TypeError
        They are no tensor.
    ValueError
        They are not.
    """
    if lengths is None:
        return
    require_kind(Tensor, f"a tensor of shape ({batch},)", lengths=lengths)
    wanted = f"lengths must be {batch} numbers from 1 to {steps}"
    if lengths.shape != (batch,) or lengths.dtype == torch.bool:
        raise ValueError(f"{wanted}, not of shape {tuple(lengths.shape)} and type {lengths.dtype}")
    wrong = ~((lengths >= 1) & (lengths <= steps) & _whole(lengths))
    if bool(wrong.any()):
        index = first_place(wrong)
        raise ValueError(f"{wanted}; {int(wrong.sum())} of another kind, the first is {lengths[index].item()} at {list(index)}")


def check_complete(name: str, values: Tensor, read: Tensor | None = None, *, remedy: str = "") -> None:
    """Refuse NaN and infinity in values (…) that are read.

    Parameters
    ----------
    name : str
        What the values are called where they come from.
    read : Tensor, optional
        Booleans that broadcast with the values: those that are looked at; by default all.
    remedy : str
        What would be right, as the end of the line.

    Raises
    ------
    ValueError
        A value that is looked at is not finite.
    """
    wrong = ~values.isfinite()
    wrong = wrong if read is None else wrong & read
    if bool(wrong.any()):
        places = f"there are {int(wrong.sum())}, the first at {list(first_place(wrong))}"
        raise ValueError(f"{name} must hold no NaN or infinity where it is read; {places}{remedy}")


def labelled(y: Tensor, valid: Tensor | None, ignore_index: int = -1) -> Tensor:
    """Entries that carry a label: neither ``ignore_index`` nor padding.

    Parameters
    ----------
    y : Tensor
        (B, T) classes, or (B, T, C) of several labels.
    valid : Tensor, optional
        (B, T) booleans, false for padding.
    """
    known = y != ignore_index
    if valid is None:
        return known
    return known & (valid if y.ndim == 2 else valid[..., None])


def check_labels(y: Tensor, known: Tensor, classes: int) -> None:
    """Refuse labels that mean nothing, in whatever type they come.

    Parameters
    ----------
    y : Tensor
        (B, T) classes from 0 to ``classes`` − 1; or (B, T, C) of 0 and 1 for several labels.
    known : Tensor
        Entries that count, of :func:`labelled`.

    Raises
    ------
    ValueError
        A label that counts is out of range, not a whole number, or NaN.
    """
    if y.ndim == 2:
        right, wanted = (y >= 0) & (y < classes) & _whole(y), f"classes must lie from 0 to {classes - 1}"
    else:
        right, wanted = (y == 0) | (y == 1), "several labels must be 0 or 1"
    wrong = known & ~right
    if bool(wrong.any()):
        index = first_place(wrong)
        raise ValueError(
            f"{wanted}, with −1 (or ignore_index) where there is no label; y holds {int(wrong.sum())} other, "
            f"the first is {y[index].item()} at {list(index)}"
        )


def _whole(values: Tensor) -> Tensor:
    """Whether values are whole numbers; NaN is not."""
    return values == values.floor() if values.is_floating_point() else torch.ones_like(values, dtype=torch.bool)
