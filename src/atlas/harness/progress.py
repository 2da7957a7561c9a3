"""Progress of a run: a bar on a terminal, plain lines at a calm pace in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from atlas.nn.bars import Bar, valued

LINE_SECONDS = 10.0


class LoopProgress:
    """Shows how far one loop is; a context manager.

    Parameters
    ----------
    name, phase : str
        What runs, and which part of it.
    total, start : int
        Number of steps, and how many of them an earlier process has done.
    """

    def __init__(self, name: str, phase: str, total: int, start: int = 0) -> None:
        self.name, self.phase, self.total, self.done = name, phase, total, start
        self.values = ""
        self._bar = Bar(f"{name} {phase}", total, done=start)
        self._printed = self._began = time.monotonic()

    def __enter__(self) -> LoopProgress:
        self._bar.__enter__()
        return self

    def describe(self, values: Mapping[str, float]) -> None:
        """Show the latest logged values beside the bar."""
        self.values = valued(values)

    def advance(self) -> None:
        """Count one step, and show it: on the bar, or as a line once enough seconds have passed."""
        self.done += 1
        self._bar.advance(self.values)
        if not self._bar.shown and time.monotonic() - self._printed >= LINE_SECONDS:
            self._line()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, trace)
        if not self._bar.shown and kind is None and self.total:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        spent = self._printed - self._began
        print(
            f"{self.name} {self.phase} {self.done}/{self.total}  {spent:.0f} s  {self.values}",
            file=sys.stderr,
            flush=True,
        )
