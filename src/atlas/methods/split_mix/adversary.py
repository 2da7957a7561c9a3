"""The attack of the robust federations: projected gradient ascent with the step size of the authors' code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas.nn import attacks
from atlas.nn.examples import require_numbers

PIXEL = 1 / 255
FRESH_STEP = 4 * PIXEL


@dataclass(frozen=True)
class PGD:
    """PGD in ℓ∞ on inputs in a box; the defaults are the paper's training and test attack.

    Attributes
    ----------
    eps : float
        Largest change of a pixel, in the inputs' units.
    steps : int
        Gradient steps; 0 leaves the random start alone.
    step_size : float, optional
        Per step; min(1.25 ε, ε + 4/255) / steps if left out.
    lo, hi : float
        The box.

    Raises
    ------
    TypeError
        One of them is no number.
    ValueError
        ``eps`` is negative, ``steps`` negative or not whole, ``step_size`` not positive, one of these not finite, or the box
        empty.
    """

    eps: float = 8 * PIXEL
    steps: int = 7
    step_size: float | None = None
    lo: float = 0.0
    hi: float = 1.0
    random_start: bool = True

    def __post_init__(self) -> None:
        """Refuse a radius, a number of steps, a step size or a box that no attack can have."""
        given = {} if self.step_size is None else {"step_size": self.step_size}
        require_numbers(eps=self.eps, steps=self.steps, lo=self.lo, hi=self.hi, **given)
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be finite and at least 0, not {self.eps}")
        if not (self.steps >= 0 and float(self.steps).is_integer()):
            raise ValueError(f"steps must be a whole number of at least 0, not {self.steps}")
        if not self.lo < self.hi:
            raise ValueError(f"the box [{self.lo}, {self.hi}] is empty")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be finite and above 0, not {self.step_size}")

    @property
    def step(self) -> float:
        """The step size in use: the one given, or that of the authors' code."""
        if self.step_size is not None:
            return self.step_size
        return min(1.25 * self.eps, self.eps + FRESH_STEP) / max(1, self.steps)

    def __call__(
        self,
        f: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        delta0: Tensor | None = None,
    ) -> Tensor:
        """Return adversarial inputs (batch, …), detached; gradients are taken with respect to the input alone.

        The loss is plain cross-entropy, summed. Which mode and which norm of a network is attacked is the caller's choice.

        Parameters
        ----------
        f : callable
            From inputs to logits; one row of logits per entry of ``y``.
        x, y : Tensor
            Inputs in the box, floating-point numbers, and class indices.
        delta0 : Tensor, optional
            Where to start, as a change of ``x``.

        Raises
        ------
        TypeError, ValueError
            As :class:`atlas.nn.attacks.PGD`: inputs are no floating-point numbers or outside the box, or labels are no classes.
        """
        attack = attacks.PGD(
            self.eps,
            self.step or 1.0,
            max(1, self.steps),
            random_start=self.random_start,
            bounds=(self.lo, self.hi),
            loss=attacks.summed_cross_entropy if self.steps else _flat,
        )
        return attack(f, x, y, delta0=delta0, generator=generator)


PGD3, PGD4 = PGD(4 * PIXEL, 3), PGD(4 * PIXEL, 4)
PGD20, PGD100 = PGD(steps=20), PGD(steps=100)


def _flat(logits: Tensor, y: Tensor) -> Tensor:
    """Nothing to ascend: a step along its gradient stays where the attack starts."""
    return 0 * logits.sum()
