"""Progress of a run: a bar on a terminal, plain lines at a calm pace in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

LINE_SECONDS = 10.0


class Progress:
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
        self._bar: Any = None
        self._task: Any = None
        self._printed = self._began = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and self.total > self.done:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            values = TextColumn("{task.fields[values]}")
            self._bar = RichProgress(*columns, values, console=Console(stderr=True), transient=True)
            self._bar.start()
            label = f"{self.name} {self.phase}"
            self._task = self._bar.add_task(label, total=self.total, completed=self.done, values="")
        return self

    def describe(self, values: Mapping[str, float]) -> None:
        """Show the latest logged values beside the bar."""
        self.values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())

    def advance(self) -> None:
        """Count one step."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, values=self.values)
        elif time.monotonic() - self._printed >= LINE_SECONDS:
            self._line()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.total:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        spent = self._printed - self._began
        print(
            f"{self.name} {self.phase} {self.done}/{self.total}  {spent:.0f} s  {self.values}",
            file=sys.stderr,
            flush=True,
        )
