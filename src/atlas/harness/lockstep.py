"""Several resumable loops that take their steps together, each with its own state, curves, time and random numbers."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atlas.errors import Interrupted
from atlas.harness import resume
from atlas.harness.progress import LoopProgress
from atlas.harness.provenance import cpu_seconds
from atlas.harness.resume import TrainingLoop, random_state, set_random_state
from atlas.harness.seeds import seed_everything
from atlas.nn.work import work

if TYPE_CHECKING:
    from atlas.harness.run import Run


class Randomness:
    """The process's generators as one run would find them, for runs that take turns in a process.

    Parameters
    ----------
    run : Run
        Its seed is where they begin.
    """

    def __init__(self, run: Run) -> None:
        seed_everything(run.seed, run.resources.threads)
        self.state = random_state()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While the block runs, it is this run's turn."""
        set_random_state(self.state)
        yield
        self.state = random_state()

    def generator(self, device: Any) -> Any:
        """Make a generator that goes on as the process's own for a device (of CUDA: the first) would."""
        import torch

        states = self.state["cuda"] if torch.device(device).type == "cuda" else [self.state["torch"]]
        made = torch.Generator(device=device)
        made.set_state(states[torch.device(device).index or 0])
        return made

    def follow(self, generator: Any) -> None:
        """Go on where a generator of :meth:`generator` is now."""
        if generator.device.type == "cuda":
            self.state["cuda"][generator.device.index or 0] = generator.get_state()
        else:
            self.state["torch"] = generator.get_state()


class Lockstep:
    """Iterates over the steps that several loops have left; their first step, and their number, are the same.

    What a step takes is shared out evenly over the loops. On a stop signal, and at intervals, every loop saves its own state, so
    that each run can go on with the others or without them.

    Parameters
    ----------
    loops : sequence of TrainingLoop
        One for each run.
    randomness : sequence of Randomness
        Of each run.

    Attributes
    ----------
    failed : dict
        Index of a loop to why it takes no further part; it is not saved any more. The others go on.
    """

    def __init__(self, loops: Sequence[TrainingLoop], randomness: Sequence[Randomness]) -> None:
        self.loops, self.randomness = list(loops), list(randomness)
        self.start, self.total, self.phase = loops[0].start, loops[0].total, loops[0].phase
        self.failed: dict[int, Exception] = {}
        if any((loop.start, loop.total, loop.phase) != (self.start, self.total, self.phase) for loop in loops):
            raise ValueError("loops in lockstep must have the same steps left")

    @property
    def alive(self) -> list[int]:
        """Indices of the loops that have not failed."""
        return [index for index in range(len(self.loops)) if index not in self.failed]

    def __iter__(self) -> Iterator[int]:
        """Yield the steps that are left, as :class:`~atlas.harness.resume.TrainingLoop` does, until all loops have failed."""
        first = self.loops[0].run
        name = first.cell + (f" and {len(self.loops) - 1} more" if len(self.loops) > 1 else "")
        with resume.stop_requests() as request, LoopProgress(name, self.phase, self.total, self.start) as progress:
            began, cpu_began = time.monotonic(), cpu_seconds()
            saved = began
            before = [(loop.seconds, loop.cpu_seconds) for loop in self.loops]
            for step in range(self.start, self.total):
                if not self.alive:
                    return
                for loop in self.loops:
                    loop.at(step, progress)
                with work(self.phase):
                    yield step
                progress.advance()
                now, cpu = time.monotonic(), cpu_seconds()
                for loop, (seconds, own) in zip(self.loops, before, strict=True):
                    loop.seconds = seconds + (now - began) / len(self.loops)
                    loop.cpu_seconds = own + (cpu - cpu_began) / len(self.loops)
                done = step + 1
                signal_number = request.signal
                if signal_number and done < self.total:
                    self.save(done)
                    raise Interrupted(
                        f"{name}: stopped by {signal.Signals(signal_number).name} after step {done} of {self.total}; "
                        "the state of each is saved, start them again to go on"
                    )
                if now - saved >= 60 * first.resources.save_minutes:
                    self.save(done)
                    saved = time.monotonic()
            if self.start < self.total:
                self.save(self.total)
            for index in self.alive:
                self.loops[index].history.write()

    def save(self, step: int) -> None:
        """Save the state of every loop as it is after ``step`` completed steps, with its run's randomness."""
        for index in self.alive:
            with self.randomness[index]():
                self.loops[index].save(step)

    def fail(self, index: int, error: Exception) -> None:
        """Let a loop take no further part, and say why."""
        self.failed[index] = error
        print(f"error: {self.loops[index].run.cell}: {error}", file=sys.stderr)
