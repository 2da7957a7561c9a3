"""Which kind of work is going on: what a rehearsal multiplies by how often the whole run does it.

A run does most of its work over and over: a training loop's step, a validation. The code that does it says so with
:func:`work`; every loop of :func:`atlas.harness.resume.training` does so for its steps. All other work is done :data:`ONCE`.
Somebody who counts costs, as :class:`atlas.nn.meter.Meter` does, listens with :func:`listening`; else nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

ONCE = "once"
"""Work that a whole run does as often as a rehearsal: building models, counting their operations."""
TRAIN = "train"
"""A step of the training loop."""
VALIDATION = "validation"
"""Looking at how good the model is, while training goes on."""
WARM_UP = "warm-up"
"""Plain steps that bring what is trained on to where the work proper begins."""
AVERAGING = "averaging"
"""Combining what clients of a federation have trained, whatever the number of their images."""
ENCODING = "encoding"
"""Looking at an image with a frozen encoder, forth and back, whatever it took to render the image."""


@dataclass
class Spent:
    """What work of one kind took: floating-point operations, and operations dispatched (a kernel launch each at the least)."""

    flops: float = 0.0
    launches: float = 0.0


class Listener(Protocol):
    """Is told when work of another kind begins."""

    def change(self, kind: str) -> str:
        """Take note that the work is of this kind from now on; return the kind that it was of before."""
        ...

    def shared(self, gradient_bytes: int) -> None:
        """Take note that ranks which share a step of this work would exchange so many bytes of gradients."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(to: Listener) -> Iterator[None]:
    """Tell a listener about the work in a ``with`` block."""
    token = _listener.set(to)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Listener | None:
    """Return who is told of work at present, or ``None``."""
    return _listener.get()


@contextmanager
def work(kind: str) -> Iterator[None]:
    """Say of which kind the work in a ``with`` block is; the innermost block counts."""
    hearer = listener()
    if hearer is None:
        yield
        return
    before = hearer.change(kind)
    try:
        yield
    finally:
        hearer.change(before)
