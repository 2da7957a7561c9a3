"""Aggregation on the server: averages of base networks, and entry-wise averages of prefixes.

Split-Mix: Hong et al., ICLR 2022, Algorithm 1. Prefixes: E. Diao, J. Ding, V. Tarokh, *HeteroFL*, ICLR 2021, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from atlas.methods.split_mix.stacks import ParamStack, TensorDict
from atlas.methods.split_mix.widths import Slicer


def average_bases(server: ParamStack, uploads: Iterable[tuple[int, float, Mapping[str, Tensor]]]) -> ParamStack:
    """Replace each base network by the weighted mean of what clients made of it.

    Parameters
    ----------
    server : ParamStack
        M base networks.
    uploads : iterable of (base, weight, tensors)
        What one client sends for one base; tensors it does not send (statistics that stay at home) keep the server's value.

    Returns
    -------
    ParamStack
        wᵢ = Σₖ pₖ wᵢᵏ / Σₖ pₖ over the clients that trained base i; a base that nobody trained is unchanged bit for bit.

    Raises
    ------
    ValueError
        A base does not exist, or a weight is negative.
    """
    sent = list(uploads)
    if not sent:
        return server
    names = list(sent[0][2])
    tensors = {name: torch.stack([upload[name] for _, _, upload in sent]) for name in names}
    return average_stack(server, [base for base, _, _ in sent], [weight for _, weight, _ in sent], tensors)


def average_stack(
    server: ParamStack, bases: Sequence[int], weights: Sequence[float], tensors: Mapping[str, Tensor]
) -> ParamStack:
    """:func:`average_bases` for uploads that are stacked: ``tensors`` name to (uploads, …)."""
    if any(not 0 <= base < len(server) for base in bases):
        raise ValueError(f"the server has {len(server)} base networks, uploads are of {sorted(set(bases))}")
    if any(weight < 0 for weight in weights):
        raise ValueError(f"weights must not be negative: {min(weights)}")
    device = next(iter(server.tensors.values())).device
    index = torch.as_tensor(bases, device=device)
    share = torch.as_tensor(weights, device=device, dtype=torch.float64)
    total = torch.zeros(len(server), device=device, dtype=torch.float64).index_add_(0, index, share)
    share = share / total[index].clamp(min=torch.finfo(torch.float64).tiny)
    averaged = dict(server.tensors)
    for name, sent in tensors.items():
        shape = (-1, *(1,) * (sent.dim() - 1))
        summed = torch.zeros_like(averaged[name]).index_add_(0, index, sent * share.to(sent.dtype).view(shape))
        averaged[name] = torch.where((total > 0).view(shape), summed, averaged[name])
    return server.replaced(averaged)


class PrefixSum:
    """Weighted sums of prefixes, entry by entry, to which clients add theirs one after the other; none of them is kept.

    Parameters
    ----------
    server : mapping
        The full network's tensors, of any shapes (…).
    slicer : Slicer
        Where the prefix of a width lies in each of them.
    """

    def __init__(self, server: Mapping[str, Tensor], slicer: Slicer) -> None:
        self.server, self.slicer = server, slicer
        self.sums = {name: torch.zeros_like(tensor) for name, tensor in server.items()}
        self.weights = {name: torch.zeros_like(tensor) for name, tensor in server.items()}

    def add(self, width: float, weight: float, tensors: Mapping[str, Tensor]) -> None:
        """Add a prefix of some width, tensors (…) by name, with its weight.

        Raises
        ------
        ValueError
            The weight is negative.
        """
        if weight < 0:
            raise ValueError(f"weights must not be negative: {weight}")
        for name, tensor in tensors.items():
            where = self.slicer.slices(name, width)
            self.sums[name][where] += weight * tensor
            self.weights[name][where] += weight

    def mean(self) -> TensorDict:
        """Return the mean of every entry over what covers it, tensors (…) by name; the server's where nothing does."""
        sums, weights = self.sums, self.weights
        return {name: torch.where(weights[name] > 0, sums[name] / weights[name], own) for name, own in self.server.items()}


def prefix_average(
    server: Mapping[str, Tensor], uploads: Iterable[tuple[float, float, Mapping[str, Tensor]]], slicer: Slicer
) -> TensorDict:
    """Replace each entry by the weighted mean over the clients whose prefix covers it.

    Parameters
    ----------
    server : mapping
        The full network's tensors.
    uploads : iterable of (width, weight, tensors)
        Prefixes of that width.

    Returns
    -------
    dict
        Entries that nobody covers are unchanged bit for bit.

    Raises
    ------
    ValueError
        A weight is negative.
    """
    total = PrefixSum(server, slicer)
    for width, weight, tensors in uploads:
        total.add(width, weight, tensors)
    return total.mean()
