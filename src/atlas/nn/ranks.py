"""The processes that train one run together, called ranks as in MPI, and what one of them must know of the others.

Most runs are one process, which is :data:`ALONE`: sums over all ranks are its own numbers, and a batch is all its own. Where a
run has several, :mod:`atlas.nn.rank_group` puts a group in that place before anything else happens, and code asks :func:`here`
what part of the work is its own. Nothing in this module imports ``torch.distributed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas.nn.work import listener

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """A rank's part of a batch.

    Attributes
    ----------
    places : Tensor
        (own,) positions of the rank's images in the whole batch, on the CPU, in the order in which the rank holds them.
    total : int
        Number of images of the whole batch.
    """

    places: Tensor
    total: int


class Agreed(NamedTuple):
    """What all ranks have agreed on at the end of a step.

    Attributes
    ----------
    stop : int
        Number of the signal that asked one of them to stop; 0 if none was asked.
    save : bool
        Whether the first rank's clock says that the state is to be saved.
    """

    stop: int
    save: bool


class Ranks:
    """One process that trains by itself, and the base of a group of them.

    Attributes
    ----------
    rank, size : int
        Number of this process from 0, and how many there are.
    local : int
        Number of this process among those on its node.
    """

    rank = 0
    size = 1
    local = 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks for all."""
        return self.rank == 0

    def share(self, total: int, group: int | None = None) -> Share | None:
        """Return this rank's part of a batch of ``total`` images; ``None`` where all of it is its own.

        Parameters
        ----------
        total : int
            Images of the whole batch.
        group : int, optional
            Images that one process passes through the model at a time; all by default. Inside a group an image may be mixed
            with its mirror (the first with the last), so a rank holds both.
        """
        return None

    def rows(self, total: int) -> Share | None:
        """Return this rank's part of a batch in a row; parts differ in size by one at most, and may be empty."""
        return None

    def slice(self, total: int) -> slice:
        """Return this rank's part of things in a row, without regard to pairs; parts differ in size by one at most."""
        return slice(0, total)

    def parallel(self, model: nn.Module, *, whole_batch: bool = True) -> Any:
        """Return what is called in the model's place, so that backward passes leave the mean of all ranks' gradients.

        Batch normalisation in the model, in place, uses the statistics of the whole batch from then on, unless ``whole_batch``
        is false: then those of what a rank passes, which is right for a batch in :class:`atlas.nn.rank_units.Units`.
        """
        hearer = listener()
        if hearer is not None:
            hearer.shared(sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad))
        return model

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor (…) over ranks; not differentiable."""
        return value

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor (…) over ranks; not differentiable."""
        return value

    def joined(self, rows: Tensor) -> Tensor:
        """All ranks' rows (n, …), on the CPU, one rank's after the other's."""
        return rows

    def gathered(self, values: list[Any]) -> list[Any]:
        """All ranks' plain values, one rank's after the other's, on the first rank; none on the others."""
        return values

    def agree(self, stop: int, save: bool) -> Agreed:
        """Tell the others what this rank was asked; return what is agreed. All ranks stop after the same step."""
        return Agreed(stop, save)

    def settle(self) -> None:
        """Hear the answer to the last :meth:`agree`, which nobody asks for: after the last step of a loop."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def same(self, value: int, what: str) -> None:
        """Refuse to go on where ranks differ in something that they must share."""

    def device(self) -> torch.device | None:
        """The device that was given to this rank; ``None`` where it may choose."""
        return None


ALONE = Ranks()
_here: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def here() -> Ranks:
    """Return this process's place among the ranks of the run."""
    return _here.get()


@contextmanager
def joined(ranks: Ranks) -> Iterator[Ranks]:
    """Be one of these ranks while the block runs."""
    token = _here.set(ranks)
    try:
        yield ranks
    finally:
        _here.reset(token)


def mean_of(values: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Mean of scalars over ranks, by name, in one message; alone, the very tensors."""
    if ranks.size == 1 or not values:
        return dict(values)
    import torch

    stacked = ranks.mean(torch.stack([value.detach().double() for value in values.values()]))
    return dict(zip(values, stacked.unbind(), strict=True))


def mirrored(total: int, group: int, rank: int, size: int) -> list[int]:
    """Positions in a batch that a rank holds: of every group the same number of images, and with each its mirror in the group.

    Of a group 0 … 7, the first of two ranks holds 0, 1, 6, 7 and the second one 2, 3, 4, 5: reversed, as mixing reverses a
    batch, what a rank holds still meets its own mirrors. A group with an odd share for each rank is cut in a row, for nothing
    in it can be mixed.

    Raises
    ------
    ValueError
        A group does not divide by the number of ranks.
    """
    places: list[int] = []
    for first in range(0, total, group):
        count = min(group, total - first)
        if count % size:
            raise ValueError(f"{count} images do not divide by {size} ranks")
        own = count // size
        if own % 2:
            places += range(first + rank * own, first + (rank + 1) * own)
            continue
        half = own // 2
        front = range(rank * half, (rank + 1) * half)
        places += [first + offset for offset in front]
        places += [first + count - 1 - offset for offset in reversed(front)]
    return places


def merged(sizes: Sequence[int]) -> list[int]:
    """Order in which the shares of several groups, held one after the other, become one batch that is its own mirror's.

    ``sizes`` are the images of each share. The front halves come first, then the back halves in reverse order, so that the batch
    turned round pairs each image with the same one as its group did.
    """
    firsts, seconds, begin = [], [], 0
    for size in sizes:
        half = size // 2 if not size % 2 else size
        firsts.append(list(range(begin, begin + half)))
        seconds.append(list(range(begin + half, begin + size)))
        begin += size
    return [example for part in [*firsts, *reversed(seconds)] for example in part]
