"""A batch in units that no rank cuts: examples in a row that one rank passes through the model together.

Where a pass looks at more than single examples (batch normalisation over a few pictures, losses over the regions that were drawn
of them), its numbers depend on which examples pass together. So units are the same however many ranks there are; each rank takes
some of them in a row, and the gradients that it averages with the others are those of one process that passes them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atlas.nn.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Units:
    """How a batch is cut into units, and which of them are this rank's.

    Attributes
    ----------
    total : int
        Examples of the whole batch.
    size : int
        Examples of a unit; the last one may have fewer.
    ranks : Ranks
        This process among those that share the batch. Ranks differ by one unit at most.
    """

    total: int
    size: int
    ranks: Ranks = ALONE

    @property
    def count(self) -> int:
        """Number of units of the whole batch."""
        return -(-self.total // self.size)

    @property
    def own(self) -> list[range]:
        """Units of this rank: positions in the whole batch."""
        whole = [range(first, min(first + self.size, self.total)) for first in range(0, self.total, self.size)]
        return whole[self.ranks.slice(self.count)]

    @property
    def places(self) -> slice:
        """Positions in the whole batch of all examples of this rank."""
        own = self.ranks.slice(self.count)
        return slice(own.start * self.size, min(own.stop * self.size, self.total))

    def factor(self, unit: range) -> float:
        """Weight of a unit's mean loss, so that the ranks' sums have the whole batch's loss as their mean."""
        return self.ranks.size * len(unit) / self.total

    @contextmanager
    def statistics(self, model: nn.Module) -> Iterator[None]:
        """While the block passes this rank's units, let batch normalisation keep what one process would of all units.

        One process forgets a share ``m`` (the momentum) of its running statistics with every unit, and adds ``m`` times the
        unit's own. So a rank adds its own up from zero, what n later units of other ranks forget is a factor (1 - m)^n, and the
        ranks' sums are added up.

        Raises
        ------
        ValueError
            A batch normalisation averages over all that it has seen, without momentum.
        """
        norms = _tracking(model) if self.ranks.size > 1 else []
        if not norms:
            yield
            return
        own = self.ranks.slice(self.count)
        before = _gathered(norms)
        _write(norms, torch.zeros_like(before))
        yield
        kept = 1 - torch.cat([torch.full_like(buffer, norm.momentum) for norm in norms for buffer in _buffers(norm)])
        added = self.ranks.total(kept ** (self.count - own.stop) * _gathered(norms))
        _write(norms, kept**self.count * before + added)
        for norm in norms:
            norm.num_batches_tracked += self.count - (own.stop - own.start)


def _tracking(model: nn.Module) -> list[Any]:
    """Batch normalisations of a model that keep running statistics."""
    norms: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            if module.momentum is None:
                raise ValueError(f"{name}: batch normalisation without momentum has no running statistics in units; give it one")
            norms.append(module)
    return norms


def _buffers(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var


def _gathered(norms: list[Any]) -> Tensor:
    """All running statistics in a row, as they are now."""
    return torch.cat([buffer for norm in norms for buffer in _buffers(norm)])


def _write(norms: list[Any], values: Tensor) -> None:
    """Put values in a row where :func:`_gathered` found them."""
    buffers = [buffer for norm in norms for buffer in _buffers(norm)]
    for buffer, value in zip(buffers, values.split([len(buffer) for buffer in buffers]), strict=True):
        buffer.copy_(value)
