"""The smallest weights and the largest gradients of a layer, found by selection rather than by sorting.

A layer of PreAct-ResNet-18 has up to 2.4 million weights. ``torch.topk`` and ``torch.kthvalue`` take some 10 to 30 ns for each of
them on a CPU; comparing all of them and sorting the few that can matter takes 1 to 2. On a GPU a layer is sorted whole, because
an update by selection took four times as long there (docs/performance.md).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SAMPLE = 4096
"""About so many values tell where a value of a given rank lies."""
SLACK = 4
"""By so many standard deviations of its rank in the sample it may be off."""


def count(mask: Tensor) -> int:
    """How many entries of (…) are not 0; NumPy counts booleans ten times as fast as PyTorch does on a CPU."""
    plain = mask.device.type == "cpu" and mask.dtype == torch.bool
    return int(np.count_nonzero(mask.numpy()) if plain else mask.count_nonzero())


def places(mask: Tensor) -> Tensor:
    """Indices of the booleans of (n,) that are true, ascending; NumPy finds them in a sixth of PyTorch's time on a CPU."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.nonzero()[:, 0]


def above_kth(values: Tensor, k: int) -> Tensor:
    """Booleans (n,): where values, not negative, exceed the ``k``-th smallest of them (from 1); ties at it do not."""
    if values.device.type != "cpu":
        return values > values.sort().values[k - 1]
    return values > float(kth_smallest(_array(values), k))


def largest(scores: Tensor, number: int, taken: Tensor) -> Tensor:
    """Indices of the scores of largest magnitude that are still free, in no order; of equal ones at the border the first.

    A sorted sample tells what none of them is likely to fall below, so that one comparison leaves few to choose from; if it
    leaves too few, all that are free are looked at. On a GPU which of equal scores is taken is up to ``torch.topk``.

    Parameters
    ----------
    scores : Tensor
        (n,), finite.
    number : int
        How many, at most as many as are free.
    taken : Tensor
        (n,) booleans: what cannot be chosen.

    Returns
    -------
    Tensor
        (number,)
    """
    if scores.device.type != "cpu":
        return scores.abs().masked_fill_(taken, -1.0).topk(number).indices
    if number == 0:
        return torch.empty(0, dtype=torch.long)
    values, free = _array(scores), ~taken.numpy()
    for least in (_likely_bound(values, number, free), 0):
        eligible = np.abs(values) >= least
        chosen = np.flatnonzero(np.logical_and(eligible, free, out=eligible))
        if len(chosen) >= number:
            break
    sizes = np.abs(values.take(chosen))
    border = kth_smallest(sizes, len(sizes) - number + 1)
    above = chosen[sizes > border]
    level = chosen[sizes == border][: number - len(above)]
    return torch.from_numpy(np.concatenate([above, level]))


def _likely_bound(values: np.ndarray, number: int, free: np.ndarray) -> np.floating | int:
    """What the ``number`` largest magnitudes that are free most likely reach, from a sample; 0 where it cannot tell."""
    stride = len(values) // SAMPLE
    if stride < 4:
        return 0
    sample = np.abs(values[::stride][free[::stride]])
    expected = number / stride
    rank = math.ceil(expected + SLACK * math.sqrt(expected + 1))
    return np.partition(sample, len(sample) - rank)[len(sample) - rank] if rank < len(sample) else 0


def kth_smallest(values: np.ndarray, k: int) -> np.floating:
    """The ``k``-th smallest (from 1) of (n,) values.

    Two values of a sorted sample most likely have it between them; only what lies there is partitioned. If they have not,
    everything is sorted, which is what NumPy does fast: its partition of values of which many are equal is slower than its sort.
    """
    stride = len(values) // SAMPLE
    if stride >= 4:
        sample = np.sort(values[::stride])
        rank = k * len(sample) / len(values)
        slack = SLACK * math.sqrt(rank * (1 - rank / len(sample)) + 1)
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
