"""A workflow as it goes: which row runs, how long it will take by earlier runs' seconds, when all is over, and what failed.

A handler of Snakemake's own log. On a terminal rows that run have a line each, with a clock; in a file there is a line when a row
begins and one when it ends. What went wrong with a job is said in one line before Snakemake's block about it.
"""

from __future__ import annotations

import atexit
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from atlas.harness.agenda import Agenda
from atlas.harness.run import Run
from atlas.harness.stale import read_json

START_SECONDS = 8.0
"""What starting a process and loading its libraries takes."""
PRIOR_SECONDS = 60.0
"""Weight of the earlier runs' seconds against those of the jobs that have ended: this machine may be faster or slower."""
RULES = ("train", "evaluate")
Key = tuple[str, str]
"""A job: its rule, and its row or run."""


@dataclass
class Forecast:
    """How many seconds are left, from what jobs are expected to take and what they took.

    Attributes
    ----------
    expected : dict
        Job to seconds, by earlier runs.
    workers : int
        How many jobs run at a time.
    """

    expected: Mapping[Key, float]
    workers: int = 1
    began: dict[Key, float] = field(default_factory=dict)
    took: dict[Key, float] = field(default_factory=dict)
    share: float = 1.0

    @property
    def pace(self) -> float:
        """What a job takes, relative to what it was expected to."""
        known = [key for key in self.took if key in self.expected]
        spent, foreseen = sum(self.took[key] for key in known), sum(self.expected[key] for key in known)
        return (spent + PRIOR_SECONDS) / (foreseen + PRIOR_SECONDS)

    def begin(self, key: Key, now: float) -> None:
        """Note that a job starts, ``now`` in seconds."""
        self.began[key] = now

    def end(self, key: Key, now: float) -> float:
        """A job ends; return how long it took."""
        self.took[key] = now - self.began.pop(key, now)
        return self.took[key]

    def left(self, now: float) -> float:
        """Seconds until everything is over; ``nan`` where nothing is known of earlier runs."""
        if not self.expected:
            return math.nan
        pace = self.pace
        running = [max(pace * self.expected.get(key, 0.0) - (now - began), 0.0) for key, began in self.began.items()]
        waiting = sum(seconds for key, seconds in self.expected.items() if key not in self.began and key not in self.took)
        done = sum(self.expected[key] for key in self.took if key in self.expected)
        whole = self.share * sum(self.expected.values())
        waiting = min(waiting, max(whole - done - sum(self.expected.get(key, 0.0) for key in self.began), 0.0))
        return max([(pace * waiting + sum(running)) / max(self.workers, 1), *running])


def jobs_of(agenda: Agenda) -> dict[Key, list[Run]]:
    """The jobs that will train and evaluate, with their runs: a row with all its seeds, or single runs."""
    jobs: dict[Key, list[Run]] = {}
    for run in agenda.study.runs:
        name = job_name(run, agenda.study.batch_seeds)
        if run.cell in agenda.training:
            jobs.setdefault(("train", name), []).append(run)
    for run in agenda.study.runs:
        name = job_name(run, agenda.study.batch_seeds)
        if run.cell in agenda.evaluation and ("train", name) not in jobs:
            jobs.setdefault(("evaluate", name), []).append(run)
    return jobs


def job_name(run: Run, batched: bool) -> str:
    """What a job is called: its row where it computes all seeds, else its run."""
    return run.cell.rpartition("/")[0] if batched else run.cell


def expectations(jobs: Mapping[Key, Iterable[Run]]) -> dict[Key, float]:
    """Seconds of every job, from the provenance of earlier runs of the same cells; where there are none, as their task's others.

    Empty where no earlier run left its seconds.
    """
    known: dict[Key, float] = {}
    by_task: dict[str, list[float]] = {}
    for key, runs in jobs.items():
        seconds = [_seconds(run, key[0]) for run in runs]
        timed = [each for each in seconds if each is not None]
        if timed:
            known[key] = START_SECONDS + statistics.fmean(timed) * len(seconds)
            by_task.setdefault(key[1].partition("/")[0], []).append(known[key])
    if not known:
        return {}
    every = statistics.median(known.values())
    usual = {task: statistics.median(values) for task, values in by_task.items()}
    return {key: known.get(key, usual.get(key[1].partition("/")[0], every)) for key in jobs}


def _seconds(run: Run, rule: str) -> float | None:
    provenance = read_json(run.metrics).get("provenance") or read_json(run.record).get("provenance")
    if not isinstance(provenance, Mapping):
        return None
    names = ("train_seconds", "evaluate_seconds") if rule == "train" else ("evaluate_seconds",)
    values = [provenance.get(name) for name in names]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) if numbers else None


class Watch(logging.Handler):
    """Follows Snakemake's jobs of an agenda.

    Parameters
    ----------
    agenda : Agenda
        What there is to do.
    workers : int
        How many jobs run at a time at most.
    stream : TextIO, optional
        Where lines go: the standard error stream.
    clock : callable
        Seconds.
    """

    def __init__(
        self, agenda: Agenda, workers: int = 1, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.agenda, self.clock = agenda, clock
        self.jobs = jobs_of(agenda)
        self.forecast = Forecast(expectations(self.jobs), workers)
        self.planned = len(self.jobs)
        self.running: dict[int, tuple[Key, str]] = {}
        self.seen: dict[int, tuple[Key, str]] = {}
        self.failed: set[int] = set()
        self.display = _display(stream or sys.stderr)
        atexit.register(self.display.stop)

    def before(self, logger: logging.Logger) -> None:
        """Attach to a logger before its other handlers, so that what matters is said first."""
        others = list(logger.handlers)
        for handler in others:
            logger.removeHandler(handler)
        logger.addHandler(self)
        for handler in others:
            logger.addHandler(handler)
        self.display.start(others)

    def summary(self) -> str:
        """How long all will take, in a line; empty where nothing is known."""
        left = self.forecast.left(self.clock())
        return f"{self.planned} jobs, about {duration(left)} by earlier runs" if self.jobs and not math.isnan(left) else ""

    def emit(self, record: logging.LogRecord) -> None:
        """Act on an event that Snakemake logs: a plan, a job that begins or ends, an error."""
        try:
            event = str(getattr(record, "event", "") or "")
            actions: dict[str, Callable[[Any], None]] = {
                "run_info": self._plan,
                "job_info": self._begin,
                "job_finished": self._end,
                "error": self._broken,
                "job_error": self._fail,
            }
            act = actions.get(event)
            if act is not None:
                act(record)
        except Exception:
            self.handleError(record)

    def _plan(self, record: Any) -> None:
        """Fewer jobs than the agenda has may be asked for: those of one table."""
        stats = getattr(record, "stats", None)
        if isinstance(stats, Mapping) and self.jobs:
            self.planned = min(len(self.jobs), sum(int(stats.get(rule, 0)) for rule in RULES)) or len(self.jobs)
            self.forecast.share = self.planned / len(self.jobs)

    def _begin(self, record: Any) -> None:
        log = ", ".join(getattr(record, "log", None) or ())
        name = _name(record)
        self.seen[record.jobid] = ((record.rule_name, name or record.rule_name), log)
        if record.rule_name not in RULES or not name:
            return
        key = (record.rule_name, name)
        self.running[record.jobid] = (key, log)
        self.forecast.begin(key, self.clock())
        expected = self.forecast.expected.get(key)
        seeds = len(self.jobs.get(key, ()))
        parts = [f"{seeds} seeds"] if seeds > 1 else []
        parts += [f"about {duration(self.forecast.pace * expected)}"] if expected is not None else []
        verb = {"train": "training", "evaluate": "evaluating"}[record.rule_name]
        number = len(self.forecast.took) + len(self.running)
        self.display.begin(record.jobid, name, expected)
        self.display.line(f"[{number}/{self.planned}] {verb} {name}{_bracket(parts)}{f', log {log}' if log else ''}")

    def _end(self, record: Any) -> None:
        started = self.running.pop(record.job_id, None)
        if started is None:
            return
        key, _ = started
        seconds = self.forecast.end(key, self.clock())
        self.display.end(record.job_id)
        left = self.forecast.left(self.clock())
        done = len(self.forecast.took)
        rest = "" if done >= self.planned or math.isnan(left) else f", about {duration(left)} left, over at {_hour(left)}"
        self.display.line(f"[{done}/{self.planned}] done {key[1]} in {duration(seconds)}{rest}")

    def _broken(self, record: Any) -> None:
        """An exception that Snakemake prints ahead of its block about the job: the job's log is named in its command."""
        text = record.getMessage()
        for job in [job for job, (_, log) in self.seen.items() if log and log in text]:
            self._told_failure(job)

    def _fail(self, record: Any) -> None:
        if record.jobid not in self.seen:
            self.seen[record.jobid] = ((record.rule_name, record.rule_name), ", ".join(getattr(record, "log", None) or ()))
        self._told_failure(record.jobid)

    def _told_failure(self, job: int) -> None:
        """Say once why a job failed."""
        if job in self.failed:
            return
        self.failed.add(job)
        self.running.pop(job, None)
        key, log = self.seen[job]
        self.forecast.end(key, self.clock())
        self.display.end(job)
        why = reason(self.jobs.get(key, ()), log.split(", ")[0])
        self.display.line(f"failed {key[1]}: {why}{f' (log {log})' if log else ''}")


def reason(runs: Iterable[Run], log: str) -> str:
    """Why a job failed, in a line: as its runs wrote it down, or as the last line of its log that says so."""
    for run in runs:
        failure = read_json(run.failure)
        if failure.get("error"):
            return f"{run.cell.rpartition('/')[2]}: {failure['error']}"
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return errors[-1].removeprefix("error: ") if errors else "it left no reason"


def _name(record: Any) -> str:
    """Row or run of a job, from its wildcards; empty for others."""
    parts = dict(getattr(record, "wildcards", None) or {})
    if not {"task", "dataset", "method"} <= parts.keys():
        return ""
    seed = [f"seed{parts['seed']}"] if "seed" in parts else []
    return "/".join([parts["task"], parts["dataset"], parts["method"], *seed])


def _bracket(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def _hour(seconds: float) -> str:
    """When so many seconds will have passed; with the day where it is another."""
    now = datetime.now().astimezone()
    then = now + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%a %H:%M}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(value) for value in (4.2, 75, 3700)]
    ['4 s', '1 min 15 s', '1 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s" if seconds < 600 else f"{round(seconds / 60)} min"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"


class Lines:
    """A display for files: plain lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def start(self, others: Iterable[logging.Handler]) -> None:
        """Prepare the display; plain lines need no preparation."""

    def stop(self) -> None:
        """Take the display away; plain lines leave nothing behind."""

    def begin(self, job: int, name: str, expected: float | None) -> None:
        """Show that a job has begun, which is expected to take some seconds; plain lines do not."""

    def end(self, job: int) -> None:
        """Show that a job no longer runs; plain lines do not."""

    def line(self, text: str) -> None:
        """Print a line of text at once, without a buffer."""
        print(text, file=self.stream, flush=True)


class Live(Lines):
    """A display for terminals: a clock for every row that runs, below the lines that say what happened."""

    def start(self, others: Iterable[logging.Handler]) -> None:
        """Begin to draw; other handlers of the log write above it."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("  {task.description}"), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.fields[of]}"))
        self.console = Console(file=self.stream, highlight=False, soft_wrap=True)
        self.bars = Progress(*columns, console=self.console, transient=True, refresh_per_second=2)
        self.tasks: dict[int, Any] = {}
        self.bars.start()
        for handler in others:
            if isinstance(handler, logging.StreamHandler) and handler.stream is self.stream:
                handler.setStream(sys.stderr)  # rich has put a stream there that writes above the display

    def stop(self) -> None:
        """Take the clocks off the terminal, if they were ever drawn."""
        if hasattr(self, "bars"):
            self.bars.stop()

    def begin(self, job: int, name: str, expected: float | None) -> None:
        """Start the clock of a job, with the seconds that it is expected to take."""
        of = "" if expected is None else f"of about {duration(expected)}"
        self.tasks[job] = self.bars.add_task(name, total=None, of=of)

    def end(self, job: int) -> None:
        """Take the clock of a job that no longer runs off the terminal."""
        if job in self.tasks:
            self.bars.remove_task(self.tasks.pop(job))

    def line(self, text: str) -> None:
        """Print a line of text above the clocks."""
        from rich.text import Text

        self.console.print(Text(text))


def _display(stream: TextIO) -> Lines:
    return Live(stream) if stream.isatty() else Lines(stream)
