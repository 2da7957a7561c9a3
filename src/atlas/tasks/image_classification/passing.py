"""How a batch goes through a model: in pieces, and on several ranks each with its share of them.

A piece is what one process passes at a time (the protocol's ``micro_batch``); images are mixed inside it. A rank holds the same
number of images of every piece, each with its mirror, and passes its shares of several pieces at once, up to as many images as a
piece has: the same step of the optimiser in as few passes as fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas.errors import UserError
from atlas.nn.ranks import Ranks, Share, here, merged
from atlas.tasks.image_classification.ingredients import Batch

if TYPE_CHECKING:
    from atlas.harness.run import Run
    from atlas.tasks.image_classification.protocol import Protocol


def require_shares(run: Run, protocol: Protocol) -> None:
    """Refuse a batch that cannot be shared out over the ranks.

    Raises
    ------
    UserError
        There are more ranks than images in a batch or a piece of it, or they do not divide, or pairs would be parted.
    """
    ranks = here().size
    if ranks == 1:
        return
    for name in ("batch_size", "micro_batch"):
        size = getattr(protocol, name)
        if size is None:
            continue
        if size < ranks:
            raise UserError(f"{run.cell}: {name} {size} leaves some of {ranks} ranks without an image; take {size} ranks at most")
        unit = ranks if size % 2 else 2 * ranks
        if size % unit:
            why = "" if size % 2 else " in pairs, which are mixed with each other"
            raise UserError(f"{run.cell}: {name} {size} cannot be shared out over {ranks} ranks{why}: a multiple of {unit} can")


class Passing:
    """Passes batches through one model.

    Parameters
    ----------
    model : nn.Module
        What trains; on several ranks it is wrapped, so that its gradients are averaged while backward still runs.
    batch_size : int
        Images of a whole batch, over all ranks.
    micro_batch : int or None
        Images of a piece.
    """

    def __init__(self, model: nn.Module, batch_size: int, micro_batch: int | None) -> None:
        self.ranks: Ranks = here()
        self.model = model
        self.call: Any = self.ranks.parallel(model)
        self.size = min(micro_batch or batch_size, batch_size)
        self._batch_size = batch_size
        self._noise: Any = None
        if self.ranks.size > 1:
            from atlas.nn.rank_noise import Noise

            self._noise = Noise(model)

    def __call__(self, images: Tensor) -> Any:
        """Run the model on this rank's images (batch, channels, height, width); returns what the model does."""
        return self.call(images)

    def passes(self, batch: Batch) -> Iterator[tuple[float, Batch]]:
        """What goes through the model one after the other, each with the factor of its loss.

        The factors of a process add up to one. Those of a rank do too: its gradients, and whatever else it sums, are averaged
        over ranks. Forward and backward pass of each must be done before the next is asked for.
        """
        if self._noise is None:
            for images, labels in zip(batch.images.split(self.size), batch.labels.split(self.size), strict=True):
                yield len(images) / len(batch.images), Batch(images, labels, labels)
            return
        shares = self._shares()
        while shares:
            together = self._together(shares)
            taken, shares = shares[:together], shares[together:]
            yield from self._pass(batch, taken, last=not shares)

    def _shares(self) -> list[tuple[int, Share]]:
        """Return this rank's share of every piece, each with the place in the rank's batch where it begins."""
        shares: list[tuple[int, Share]] = []
        begin = 0
        for first in range(0, self._batch_size, self.size):
            share = self.ranks.share(min(self.size, self._batch_size - first))
            assert share is not None
            shares.append((begin, share))
            begin += len(share.places)
        return shares

    def _together(self, shares: list[tuple[int, Share]]) -> int:
        """How many of the next pieces' shares go through the model at once."""
        if not self._noise.merges:
            return 1
        count, images = 0, 0
        for _, share in shares:
            images += len(share.places)
            if count and images > self.size:
                break
            count += 1
        return count

    def _pass(self, batch: Batch, taken: list[tuple[int, Share]], *, last: bool) -> Iterator[tuple[float, Batch]]:
        own = [share for _, share in taken]
        order = merged([len(share.places) for share in own])
        index = torch.tensor(order, device=batch.images.device) + taken[0][0]
        images, labels = batch.images[index], batch.labels[index]
        with ExitStack() as stack:
            if not last:  # gradients of earlier pieces add up on the rank, and are sent with the last ones
                stack.enter_context(self.call.no_sync())
            stack.enter_context(self._noise.drawn_for(own, order, images.device))
            yield len(images) / len(batch.images), Batch(images, labels, labels)
