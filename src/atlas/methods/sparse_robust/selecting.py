"""The smallest weights and the largest gradients of a layer, found by selection rather than by sorting.

A layer of PreAct-ResNet-18 has up to 2.4 million weights. ``torch.topk`` and ``torch.kthvalue`` take some 10 to 30 ns for each of
them on a CPU; comparing all of them and sorting the few that can matter takes 2. On a GPU a layer is sorted whole, because an
update by selection took four times as long there (docs/performance.md).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SAMPLE = 4096  # about so many values tell where a value of a given rank lies


def count(mask: Tensor) -> int:
    """How many booleans of (…) are true; NumPy counts them ten times as fast as PyTorch does on a CPU."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


def above_kth(values: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Booleans (n,): where values exceed the ``k``-th smallest of them; ties at it do not.

    Parameters
    ----------
    values : Tensor
        (n,), not negative.
    k : int
        From 1 to n.
    among : Tensor, optional
        (n,) booleans: where values may differ from 0. The others are then the smallest, and need not be looked at.
    """
    if values.device.type != "cpu":
        return values > values.sort().values[k - 1]
    array = _array(values)
    inside = array if among is None else array[np.flatnonzero(among.numpy())]
    outside = len(array) - len(inside)
    if outside and np.count_nonzero(inside) != np.count_nonzero(array):
        inside, outside = array, 0  # something outside is not 0 after all
    if k <= outside:
        return values > 0
    return values > float(kth_smallest(inside, k - outside))


def largest(scores: Tensor, number: int) -> Tensor:
    """Indices (number,) of the largest scores (n,), in no order; of equal ones at the border the first.

    On a GPU which of equal scores is taken is up to ``torch.topk``.
    """
    if scores.device.type != "cpu":
        return scores.topk(number).indices
    if number == 0:
        return torch.empty(0, dtype=torch.long)
    values = _array(scores)
    least = kth_smallest(values, len(values) - number + 1)
    above = np.flatnonzero(values > least)
    level = np.flatnonzero(values == least)[: number - len(above)]
    return torch.from_numpy(np.concatenate([above, level]))


def kth_smallest(values: np.ndarray, k: int) -> np.floating:
    """The ``k``-th smallest (from 1) of (n,) values.

    Two values of a sorted sample most likely have it between them; only what lies there is partitioned. If they have not,
    everything is sorted, which is what NumPy does fast: its partition of values of which many are equal is slower than its sort.
    """
    stride = len(values) // SAMPLE
    if stride >= 4:
        sample = np.sort(values[::stride])
        rank = k * len(sample) / len(values)
        slack = 4 * math.sqrt(rank * (1 - rank / len(sample)) + 1)
        low = sample[max(math.floor(rank - slack), 0)]
        high = sample[min(math.ceil(rank + slack), len(sample) - 1)]
        below = int(np.count_nonzero(values < low))
        between = values[(values >= low) & (values <= high)]
        if below < k <= below + len(between):
            return low if low == high else np.sort(between)[k - below - 1]
    return np.sort(values)[k - 1]


def _array(values: Tensor) -> np.ndarray:
    """NumPy's view of values; it has no bfloat16."""
    values = values.detach()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
