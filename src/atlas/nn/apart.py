"""Work of a kind of its own inside a computation that is differentiated as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atlas.nn.work import listener, work


class _Boundary(torch.autograd.Function):
    """Passes a tensor on; its gradient on the way back too, after telling so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passed: Callable[[], None]) -> Tensor:  # type: ignore[override]
        ctx.passed = passed
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.passed()
        return gradient, None


def apart(kind: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, as work of a kind; so is what its gradient with respect to ``x`` takes later, within another's backward.

    Parameters
    ----------
    kind : str
        See :mod:`atlas.nn.work`.
    function : callable
        Frozen: whatever it holds asks for no gradient.
    x : Tensor
        (…), whatever the function takes.
    """
    hearer = listener()
    if hearer is None:
        return function(x)
    if not (x.requires_grad and torch.is_grad_enabled()):
        with work(kind):
            return function(x)
    before: list[str] = []
    with work(kind):
        out = function(_Boundary.apply(x, lambda: hearer.change(before.pop())))
    return _Boundary.apply(out, lambda: before.append(hearer.change(kind)))
