"""When meta-training goes on, repeats a period, or passes to the next stage: the curriculum as a state machine.

A *stage* has a depth (windows on one draw of optimizees) and a weight of imitation; a *period* is a number of draws ("resets"),
then a validation with the next stage's depth. What happened decides what comes next:

1. *repeat* the period from the reference's numbers if its loss exceeds the reference by more than a share of its size, at most
   ``max_repeats`` times. Loss and reference are validation losses of this period and of the previous one of the stage (each the
   best of its repeats); for a stage's first period they are its training loss and the previous stage's best validation loss.
2. else *continue* with a further period while fewer than ``min_periods`` + 1 were made or the best is less than ``chances`` old;
3. else *advance* to the next stage, from the best period's numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["repeat", "continue", "advance", "finish"]


@dataclass(frozen=True)
class Curriculum:
    """Stages of meta-training.

    Attributes
    ----------
    depth, validation_depth : tuple of int
        Windows per draw, in training and in validation, of each stage.
    imitation : tuple of float
        Weight α of the imitation loss in each stage.
    resets : tuple of int
        Draws per period of each stage.
    unroll : int
        Updates per window, U.
    min_periods, chances : int
        How long a stage lasts at least, and how long it waits for an improvement.
    repeat_threshold, max_repeats : float, int
        When a period is repeated, and how often at most.
    fixed : bool
        One period per stage, whatever the validation says.
    compare : {"train", "validation"}
        Whose loss a stage's first period compares with the previous stage's validation.
    validation_resets : int
        Draws of a validation; 0 leaves validation out, and with it repeats.
    warmup : int
        Windows of plain SGD before each draw's first window, with rate ``warmup_lr``; none in the first period if ``cold_start``.

    Raises
    ------
    ValueError
        Lists of unequal length or none, a number out of range.
    """

    depth: tuple[int, ...] = (1, 2, 5, 10)
    validation_depth: tuple[int, ...] = (2, 5, 10, 20)
    imitation: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02)
    resets: tuple[int, ...] = (10, 10, 10, 10)
    unroll: int = 100
    min_periods: int = 5
    chances: int = 5
    repeat_threshold: float = 0.5
    max_repeats: int = 4
    fixed: bool = False
    compare: Literal["train", "validation"] = "train"
    validation_resets: int = 10
    warmup: int = 1
    warmup_lr: float = 0.05
    cold_start: bool = False

    def __post_init__(self) -> None:
        lengths = {len(self.depth), len(self.validation_depth), len(self.imitation), len(self.resets)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"depth, validation_depth, imitation and resets must have one length, not {sorted(lengths)}")
        if min(*self.depth, *self.validation_depth, *self.resets, self.unroll) < 1:
            raise ValueError("depth, validation_depth, resets and unroll must be at least 1")
        if min(self.imitation) < 0:
            raise ValueError("weights of imitation must not be negative")
        if min(self.min_periods, self.chances, self.max_repeats, self.validation_resets, self.warmup) < 0:
            raise ValueError("min_periods, chances, max_repeats, validation_resets and warmup must not be negative")
        if not (self.warmup_lr > 0 and self.repeat_threshold >= 0):
            raise ValueError("warmup_lr must be positive and repeat_threshold not negative")
        if not self.fixed and not self.validation_resets:
            raise ValueError("a curriculum that waits for improvements needs validation: validation_resets, or fixed")

    @classmethod
    def paper(cls) -> Curriculum:
        """The published curriculum of students: at least 6 periods in each of 4 stages, 1,080 windows of 100 steps or more."""
        return cls()

    @classmethod
    def choice(cls) -> Curriculum:
        """The published schedule of choice policies: five periods of depth 1, 2, 5, 5, 5, repeated while much worse."""
        return cls(
            depth=(1, 2, 5, 5, 5),
            validation_depth=(10,) * 5,
            imitation=(0.0,) * 5,
            resets=(10,) * 5,
            repeat_threshold=0.9,
            fixed=True,
            compare="validation",
            cold_start=True,
        )

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.depth)

    def windows_at_least(self) -> int:
        """Meta-steps if nothing is repeated and nothing improves after the first periods."""
        periods = 1 if self.fixed else self.min_periods + 1
        return sum(periods * resets * depth for resets, depth in zip(self.resets, self.depth, strict=True))

    def windows_at_most(self, longest: int = 20) -> int:
        """A bound on meta-steps: every period repeated, and at most ``longest`` periods per stage."""
        periods = (1 if self.fixed else longest) * (self.max_repeats + 1)
        return sum(periods * resets * depth for resets, depth in zip(self.resets, self.depth, strict=True))


@dataclass
class Progress:
    """Where one replicate is in its curriculum. Numbers of policies are named, not held: the trainer keeps them.

    Attributes
    ----------
    stage, period, repeat : int
        Counted from 0.
    best : dict
        ``(stage, period)`` as text to [validation, repeat] of the best repeat.
    trace : list
        What happened: (stage, period, repeat, training loss, validation loss, action).
    """

    curriculum: Curriculum
    longest: int = 20
    stage: int = 0
    period: int = 0
    repeat: int = 0
    done: bool = False
    best: dict[str, list[float]] = field(default_factory=dict)
    trace: list[list[Any]] = field(default_factory=list)

    def ended(self, training: float, validation: float) -> Action:
        """Say what follows the period that just ended, and go there.

        A loss that is not finite counts as infinite: a run that diverged is never the best.
        """
        validation = validation if math.isfinite(validation) else math.inf
        training = training if math.isfinite(training) else math.inf
        key = self._key(self.stage, self.period)
        if key not in self.best or validation < self.best[key][0]:
            self.best[key] = [validation, self.repeat]
        action = self._action(training)
        self.trace.append([self.stage, self.period, self.repeat, training, validation, action])
        if action == "repeat":
            self.repeat += 1
        elif action == "continue":
            self.period, self.repeat = self.period + 1, 0
        elif action == "advance":
            self.stage, self.period, self.repeat = self.stage + 1, 0, 0
        else:
            self.done = True
        return action

    def best_period(self, stage: int) -> int:
        """The period of a stage with the smallest validation loss; the earliest of equals."""
        periods = [int(key.split("/")[1]) for key in self.best if key.split("/")[0] == str(stage)]
        return min(sorted(periods), key=lambda period: self.best[self._key(stage, period)][0])

    def _action(self, training: float) -> Action:
        rules = self.curriculum
        if rules.validation_resets and self.repeat < rules.max_repeats and self._too_bad(training):
            return "repeat"
        more = self.period < rules.min_periods or self.period - self.best_period(self.stage) < rules.chances
        if not rules.fixed and more and self.period + 1 < self.longest:
            return "continue"
        return "advance" if self.stage + 1 < rules.stages else "finish"

    def _too_bad(self, training: float) -> bool:
        """Whether the period that ended is much worse than what it started from."""
        own = self.best[self._key(self.stage, self.period)][0]
        if self.period:
            reference = self.best[self._key(self.stage, self.period - 1)][0]
        elif self.stage:
            reference = self.best[self._key(self.stage - 1, self.best_period(self.stage - 1))][0]
            own = training if self.curriculum.compare == "train" else own
        else:
            return False
        if math.isinf(reference):
            return False
        return own > reference + self.curriculum.repeat_threshold * abs(reference)

    @staticmethod
    def _key(stage: int, period: int) -> str:
        return f"{stage}/{period}"

    def state(self) -> dict[str, Any]:
        """Plain values, for saved states."""
        names = ("stage", "period", "repeat", "done", "best", "trace")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name, value in saved.items():
            setattr(self, name, value)
