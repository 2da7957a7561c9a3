"""The frame of ``gpu.py``: sections in a registry, interleaved and synchronised timing, and a table written after every section.

Times are wall-clock times between two synchronisations, launches from Python included: what a training loop waits for. A ratio is
the median over rounds of plain ÷ own of the same round, so that above 1 the row's own form is the faster one.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

Run = Callable[[], object]
Choice = TypeVar("Choice")
FEWEST = 3
"""Rounds of a comparison, whatever its budget."""


@dataclass
class Row:
    """One line of the table; ``flagged`` rows are listed again at its end, and make the script fail."""

    section: str
    unit: str
    plain: str = ""
    plain_ms: float | None = None
    ms: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    note: str = ""
    flagged: bool = False

    def cells(self) -> list[str]:
        """The line's cells as text."""
        spread = f" ({self.quartiles[0]:.2f}–{self.quartiles[1]:.2f})" if self.quartiles else ""
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}{spread}"
        return [self.unit, self.plain, milliseconds(self.plain_ms), milliseconds(self.ms), ratio, self.note]


def milliseconds(value: float | None) -> str:
    """Three significant digits, or nothing."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def one_line(error: BaseException) -> str:
    """An error's type and the first line that says something, and where in this project or benchmark it was raised."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "atlas" in frame.filename or "benchmarks" in frame.filename
    ]
    where = f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else ""
    return f"{type(error).__name__}: {said[:200]}{where}".replace("|", "/")


class Bench:
    """What a section needs: the device, sizes, timing, and where rows go."""

    def __init__(self, device: torch.device, quick: bool, output: Path, limit: float) -> None:
        self.device, self.quick, self.output = device, quick, output
        self.began, self.limit = time.perf_counter(), limit
        self.rows: list[Row] = []
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, str] = {}
        self.head = machine(device)
        self.peak: dict[str, float] = {}
        self.section, self.ends = "", 0.0

    @property
    def left(self) -> float:
        """Seconds until the whole script's limit."""
        return self.limit - (time.perf_counter() - self.began)

    @property
    def over(self) -> bool:
        """Whether the section's budget is spent."""
        return time.perf_counter() > self.ends

    @property
    def cuda(self) -> bool:
        """Whether there is something to synchronise."""
        return self.device.type == "cuda"

    def pick(self, full: Choice, quick: Choice) -> Choice:
        """A size: of the measurement, or of a trial on the CPU."""
        return quick if self.quick else full

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds_of(self, run: Run) -> float:
        """Wall-clock seconds of one call, synchronised."""
        self.synchronise()
        began = time.perf_counter()
        run()
        self.synchronise()
        return time.perf_counter() - began

    def warm(self, run: Run, times: int = 2) -> float:
        """Call a few times; returns the seconds of the first call, which compiles and selects algorithms."""
        first = self.seconds_of(run)
        for _ in range(times - 1):
            run()
        return first

    def interleaved(self, runs: Mapping[str, Run], seconds: float, rounds: int, warmup: int) -> dict[str, list[float]]:
        """Seconds of every round of every competitor; fewer rounds where the budget ends, but never below three."""
        for run in runs.values():
            self.warm(run, warmup) if warmup else None
        ends = min(time.perf_counter() + seconds, self.ends)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for done in range(self.pick(rounds, FEWEST)):
            if done >= FEWEST and time.perf_counter() > ends:
                break
            for name, run in runs.items():
                found[name].append(self.seconds_of(run))
        return found

    def compare(
        self,
        unit: str,
        runs: Mapping[str, Run],
        *,
        seconds: float = 6.0,
        rounds: int = 25,
        warmup: int = 2,
        notes: Mapping[str, str] | Callable[[str, float], str] | None = None,
    ) -> dict[str, float]:
        """Time competitors side by side, the first of them being the plain form; adds a row for each other one.

        Parameters
        ----------
        seconds : float
            Bounds the rounds.
        notes : mapping or callable, optional
            A competitor's note, by its name; or from its name and its median seconds.

        Returns
        -------
        dict of str to float
            Median seconds by name.
        """
        runs = self._working(unit, runs)
        if not runs:
            return {}
        found = self.interleaved(runs, seconds, rounds, warmup)
        plain = next(iter(found))
        medians = {name: statistics.median(values) for name, values in found.items()}

        def note(name: str) -> str:
            if notes is None:
                return ""
            return notes(name, medians[name]) if callable(notes) else notes.get(name, "")

        if len(found) == 1 or note(plain):
            self.add(Row(self.section, f"{unit}: {plain}", ms=1e3 * medians[plain], note=note(plain)))
        for name, values in found.items():
            if name == plain:
                continue
            ratios = [base / own for base, own in zip(found[plain], values, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            self.add(
                Row(
                    self.section,
                    f"{unit}: {name}",
                    plain,
                    1e3 * medians[plain],
                    1e3 * medians[name],
                    middle,
                    (low, high),
                    note(name),
                )
            )
        return medians

    def _working(self, unit: str, runs: Mapping[str, Run]) -> dict[str, Run]:
        """Competitors whose first call works, while there is time; a row says of each other one why not."""
        working: dict[str, Run] = {}
        for name, run in runs.items():
            if self.over and working:
                self.fact(f"{unit}: {name}", "not run: the section's time was over")
                continue
            try:
                first = self.seconds_of(run)
            except Exception as error:
                self.fail(f"{unit}: {name}", one_line(error))
                continue
            working[name] = run
            if first > 5:
                self.say(f"{unit}: {name}: first call {first:.1f} s")
        return working

    def add(self, row: Row) -> None:
        """Keep a row, and show it."""
        self.rows.append(row)
        self.say(" | ".join(cell for cell in row.cells() if cell) + ("  <- flagged" if row.flagged else ""))

    def fact(self, unit: str, note: str, ms: float | None = None) -> None:
        """A row without a comparison."""
        self.add(Row(self.section, unit, ms=ms, note=note))

    def fail(self, unit: str, note: str) -> None:
        """A row that says what did not work."""
        self.add(Row(self.section, unit, note=note, flagged=True))

    def say(self, line: str) -> None:
        """Progress."""
        print(f"[{time.perf_counter() - self.began:6.1f} s] {line}", flush=True)

    def run(self, name: str, section: Section) -> None:
        """Run one section; an error ends it alone."""
        self.section = name
        if self.left < 5:
            self.errors[name] = f"not run: the limit of {self.limit:.0f} s was reached"
            self.say(f"{name}: {self.errors[name]}")
            self.write()
            return
        self.say(f"== {name}: {(section.measure.__doc__ or '').splitlines()[0]}")
        began = time.perf_counter()
        self.ends = began + (self.left if self.quick else min(section.seconds, self.left))
        try:
            section.measure(self)
        except Exception as error:
            self.errors[name] = one_line(error)
            self.say(f"{name}: {self.errors[name]}")
        finally:
            self.seconds[name] = time.perf_counter() - began
            self.write()
            torch._dynamo.reset()
            if self.cuda:
                torch.cuda.empty_cache()

    @property
    def healthy(self) -> bool:
        """Whether every section ran and no row is flagged."""
        return not self.errors and not any(row.flagged for row in self.rows)

    def write(self) -> None:
        """Write the table and, beside it, the same as JSON."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(self.markdown())
        everything = {
            "machine": self.head,
            "rows": [asdict(row) for row in self.rows],
            "seconds": self.seconds,
            "errors": self.errors,
        }
        self.output.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")

    def markdown(self) -> str:
        """The whole table."""
        lines = ["# On one GPU", "", *(f"- {name}: {value}" for name, value in self.head.items()), ""]
        lines += [
            "Medians of synchronised wall-clock times, forms interleaved. Ratio: plain ÷ own, above 1 is faster than plain.",
            "",
        ]
        for name in dict.fromkeys([*self.seconds, *self.errors]):
            lines += [f"## {name}", ""]
            own = [row for row in self.rows if row.section == name]
            if own:
                lines += ["| unit | plain | plain, ms | own, ms | ratio (quartiles) | note |", "|---|---|---:|---:|---:|---|"]
                lines += [f"| {' | '.join(row.cells())} |" for row in own] + [""]
            if name in self.errors:
                lines += [f"**{self.errors[name]}**", ""]
            lines += [f"{self.seconds.get(name, 0):.0f} s.", ""]
        flagged = [f"- {row.section}: {row.unit}: {row.note}" for row in self.rows if row.flagged]
        return "\n".join([*lines, "## Flagged", "", *(flagged or ["Nothing."]), ""])


@dataclass(frozen=True)
class Section:
    """A measurement and the seconds that bound its rounds."""

    measure: Callable[[Bench], None]
    seconds: float


@dataclass
class Registry:
    """Sections by name, in the order in which they run."""

    sections: dict[str, Section] = field(default_factory=dict)

    def __call__(self, name: str, seconds: float) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
        """Register a section under a name, with a budget."""

        def register(measure: Callable[[Bench], None]) -> Callable[[Bench], None]:
            self.sections[name] = Section(measure, seconds)
            return measure

        return register


def machine(device: torch.device) -> dict[str, str]:
    """The card or the processor, the driver, torch and the date."""
    found = {"device": platform.processor() or platform.machine(), "driver": "none"}
    if device.type == "cuda":
        found = {"device": torch.cuda.get_device_name(device), "driver": driver()}
    return {
        **found,
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def driver() -> str:
    """The driver's version, as ``nvidia-smi`` prints it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """``highest`` is float32 proper; ``high`` lets matrix products and convolutions use TF32."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def in_precision(name: str, run: Run) -> Run:
    """The same under another precision of matrix products."""

    def changed() -> Any:
        with matmul_precision(name):
            return run()

    return changed
