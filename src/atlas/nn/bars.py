"""Progress of library calls that take minutes: a bar on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")


class Bar:
    """A bar with what is done, what is left and the latest values; a context manager.

    Parameters
    ----------
    label : str
        What runs.
    total : int
        Number of steps.
    shown : bool, optional
        Whether to draw it. By default where the standard error stream is a terminal.
    done : int
        Steps that an earlier process has done.
    """

    def __init__(self, label: str, total: int, shown: bool | None = None, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self.shown = (sys.stderr.isatty() if shown is None else shown) and total > done
        self._bar: Any = None

    def __enter__(self) -> Bar:
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = Console(stderr=True)
            self._bar = Progress(*columns, TextColumn("{task.fields[values]}"), console=console, transient=console.is_terminal)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, values="")
        return self

    def advance(self, values: Mapping[str, float] | str = "") -> None:
        """Count one step, and show the latest values."""
        self.done += 1
        if self._bar is not None:
            text = values if isinstance(values, str) else valued(values)
            self._bar.update(self._task, advance=1, values=text)

    def reach(self, done: int) -> None:
        """Say how far it is, where what is counted does not go step by step."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def track(items: Iterable[Item], label: str, total: int, shown: bool | None = None) -> Iterator[Item]:
    """Yield items with a :class:`Bar` that counts them."""
    with Bar(label, total, shown) as bar:
        for item in items:
            yield item
            bar.advance()


def valued(values: Mapping[str, float]) -> str:
    """Return values by name as the text that stands beside a bar."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
