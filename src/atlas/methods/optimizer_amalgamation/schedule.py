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

from atlas.methods.optimizer_amalgamation.settings import Curriculum

Action = Literal["repeat", "continue", "advance", "finish"]


@dataclass
class CurriculumProgress:
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
        """Where the replicate is, as plain values, for saved states."""
        names = ("stage", "period", "repeat", "done", "best", "trace")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from where a replicate was, as :meth:`state` told it."""
        for name, value in saved.items():
            setattr(self, name, value)
