"""Random draws inside a model's forward pass, for ranks that each see a part of a batch: the draws of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from atlas.nn.draws import UniformDraws
from atlas.nn.ranks import Share


class Noise:
    """Stochastic depth, dropout and other draws of a model, drawn for whole pieces of a batch.

    A process that trains alone draws, piece by piece of a batch, a number for each image at every layer with stochastic depth,
    and for each activation at a dropout or at :class:`atlas.nn.draws.UniformDraws`. Here a rank draws the same numbers from the
    same generator, and takes those of its own images; so the numbers do not depend on how many ranks there are, and the
    generators of all of them stay alike.

    Draws for images cost nothing. Where they are all there is, a rank may pass its shares of several pieces at once: the order
    of a forward pass's draws is noted at the first one, and kept. With draws that are as many as activations, pieces go one by
    one.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.paths: list[Any] = [module for module in modules if isinstance(module, DropPath) and module.drop_prob]
        self.dropouts: list[Any] = [module for module in modules if isinstance(module, nn.Dropout) and module.p]
        self.draws: list[Any] = [module for module in modules if isinstance(module, UniformDraws)]
        self._calls: list[int] = []
        self._order: list[int] = []

    @property
    def merges(self) -> bool:
        """Whether several pieces may go through the model at once."""
        return not self.dropouts and not self.draws and (not self.paths or bool(self._order))

    @contextmanager
    def drawn_for(self, pieces: Sequence[Share], order: Sequence[int], device: torch.device) -> Iterator[None]:
        """While the block runs, the model's training pass draws for whole pieces.

        Parameters
        ----------
        pieces : sequence of Share
            This rank's shares of the pieces that go through the model together.
        order : sequence of int
            Where each image of that pass is found in the shares, one after the other.
        device : torch.device
            Where the model draws.

        Raises
        ------
        RuntimeError
            The pass draws in another order than the first one did, or pieces with draws for activations are passed together.
        """
        if not self.paths and not self.dropouts and not self.draws:
            yield
            return
        if len(pieces) > 1 and not self.merges:
            raise RuntimeError(
                "pieces of a batch must go one by one through a model that draws for activations, or at its first pass"
            )
        planned = self._planned(pieces, order, device) if len(pieces) > 1 else None
        self._calls = []
        for index, module in enumerate(self.paths):
            module.forward = partial(self._path, index, pieces[0], planned)
        for module in self.dropouts:
            module.forward = partial(_dropout, module, pieces[0])
        for module in self.draws:
            module.forward = partial(_uniform, pieces[0])
        try:
            yield
        finally:
            for module in (*self.paths, *self.dropouts, *self.draws):
                del module.forward
        if planned is not None and self._calls != self._order:
            raise RuntimeError("a forward pass drew its random numbers in another order than the first one")
        self._order = self._calls

    def _path(self, index: int, share: Share, planned: list[Tensor] | None, x: Tensor) -> Tensor:
        """What timm's DropPath does, with the draws of the whole piece."""
        module = self.paths[index]
        if not module.training:
            return x
        keep = 1 - module.drop_prob
        call = len(self._calls)
        self._calls.append(index)
        if planned is None:
            kept = x.new_empty(share.total).bernoulli_(keep)[share.places.to(x.device)]
        else:
            kept = planned[call].to(x)
        if keep > 0 and module.scale_by_keep:
            kept = kept.div(keep)
        return x * kept.view(-1, *(1,) * (x.ndim - 1))

    def _planned(self, pieces: Sequence[Share], order: Sequence[int], device: torch.device) -> list[Tensor]:
        """What each call of the forward pass will take, drawn in the order of a process that goes piece by piece."""
        draws: list[list[Tensor]] = [[] for _ in self._order]
        for share in pieces:
            places = share.places.to(device)
            for call, index in enumerate(self._order):
                keep = 1 - self.paths[index].drop_prob
                draws[call].append(torch.empty(share.total, device=device).bernoulli_(keep)[places])
        turned = torch.tensor(order, device=device)
        return [torch.cat(parts)[turned] for parts in draws]


def _dropout(module: nn.Dropout, share: Share, x: Tensor) -> Tensor:
    """Dropout of a rank's images, with the mask of the whole piece."""
    if not module.training:
        return x
    mask = functional.dropout(x.new_ones(share.total, *x.shape[1:]), module.p)
    return x * mask[share.places.to(x.device)]


def _uniform(share: Share, like: Tensor) -> Tensor:
    """Uniform numbers for a rank's images, of those for the whole piece."""
    return torch.rand(share.total, *like.shape[1:], device=like.device)[share.places.to(like.device)]
