"""Every unit of work beside its plain form or a peer, in one table.

    python -m benchmarks                                  all of them
    python -m benchmarks vfds uvc                         those whose names contain one of these
    python -m benchmarks --before ../other/src            the same build beside another one, in the same rounds
    python -m benchmarks --output units.md                rows are kept in units.json and written as they come

Each build is timed in a process of its own on one thread, turn by turn: plain form, this build, the other build. A time is CPU
time, so that other work on the machine costs cache and memory bandwidth at most; a ratio is the median over the turns. With
``--output`` rows measured before are kept unless they are named again. Where the other build cannot run a unit, its error is
shown and its column stays empty.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Builder:
    """A process that has built one unit from one source tree, and times it when it is told to."""

    def __init__(self, unit: str, source: Path, threads: int) -> None:
        limits = {name: str(threads) for name in THREADS}
        environment = {**os.environ, **limits, "PYTHONPATH": str(source)}
        command = [sys.executable, "-m", "benchmarks", "--serve", unit, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, cwd=HERE.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, run: str) -> float:
        """CPU seconds of one round of ``ours`` or ``plain``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(run + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the unit failed; its error stands above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def built(unit: str, source: Path, threads: int) -> Iterator[Builder]:
    """A unit's process while the block runs."""
    builder = Builder(unit, source, threads)
    try:
        yield builder
    finally:
        builder.close()


def serve(unit: Any, threads: int) -> None:
    """Build a unit, then time what standard input names, line by line."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr
    runs: dict[str, Callable[[], object]] = unit.build()
    for line in sys.stdin:
        run = runs[line.strip()]
        began = time.process_time()
        for _ in range(unit.repeats):
            run()
        answers.write(f"{(time.process_time() - began) / unit.repeats!r}\n")
        answers.flush()


def measured(unit: Any, sources: dict[str, Path], threads: int, quick: bool) -> dict[str, Any]:
    """One row: medians in milliseconds, and medians and quartiles of the ratios."""
    rounds = 3 if quick else unit.rounds
    when = {"date": datetime.date.today().isoformat(), "load": round(os.getloadavg()[0], 1)}  # of all work, when it begins
    with ExitStack() as stack:
        builders = {name: stack.enter_context(built(unit.name, source, threads)) for name, source in sources.items()}
        turns = [("plain", builders["ours"], "plain"), *((name, builder, "ours") for name, builder in builders.items())]
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in turns}
        for number in range(rounds + 1):
            for name, builder, run in tuple(turns):
                try:
                    spent = builder.seconds(run)
                except RuntimeError:
                    if name != "before":
                        raise
                    print(f"{unit.name}: the other build failed, and has no time", file=sys.stderr)
                    turns.remove((name, builder, run))
                    del seconds[name]
                    continue
                if number:  # the first round warms up
                    seconds[name].append(spent)
    row: dict[str, Any] = {"title": unit.title, "beside": unit.plain, "goal": unit.goal, "rounds": rounds, **when}
    row |= {f"{name}_ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
    pairs = {"plain": ("plain", "ours")} | ({"before": ("before", "ours")} if "before" in seconds else {})
    for name, (over, under) in pairs.items():
        ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
        row[f"{name}_ratio"] = statistics.quantiles(ratios, n=4)
    return row


def processor() -> str:
    """The processor's name as the system gives it, and its widest vectors."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = [name for name in ("avx512f", "avx2") if name in said.get("flags", "").split()]
    return f"{said.get('model name', platform.machine())} ({', '.join(vectors[:1]) or 'no AVX2'})"


def table(rows: dict[str, dict[str, Any]], heading: dict[str, str]) -> str:
    """The rows as Markdown."""
    lines = ["# Units of work", "", *(f"- {name}: {value}" for name, value in heading.items()), ""]
    lines += [
        "| unit | beside | beside, ms | before, ms | Atlas, ms | times as fast (quartiles) | goal | over before | day, load |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows.values():
        low, middle, high = row["plain_ratio"]
        before = f"{row['before_ms']:.3g}" if "before_ms" in row else ""
        gained = f"{row['before_ratio'][1]:.2f}" if "before_ratio" in row else ""
        lines.append(
            f"| {row['title']} | {row['beside']} | {row['plain_ms']:.3g} | {before} | {row['ours_ms']:.3g} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {row['goal']:g} | {gained} "
            f"| {row['date']}, {row['load']:.1f} |"
        )
    return "\n".join([*lines, ""])


def heading(threads: int) -> dict[str, str]:
    """What a reader needs to know of the machine."""
    import torch

    return {
        "processor": processor(),
        "threads": str(threads),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of units' names; all units if left out")
    parser.add_argument("--before", type=Path, help="source tree of another build to time in the same rounds")
    parser.add_argument("--output", type=Path, help="Markdown to write after every row")
    parser.add_argument("--quick", action="store_true", help="three rounds each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from units import UNITS

    if options.serve:
        serve(next(unit for unit in UNITS if unit.name == options.serve), options.threads)
        return
    chosen = [unit for unit in UNITS if not options.names or any(name in unit.name for name in options.names)]
    if not chosen:
        parser.error(f"no unit is named so; there are {', '.join(unit.name for unit in UNITS)}")
    sources = {"ours": HERE.parent / "src"} | ({"before": options.before.resolve()} if options.before else {})
    kept = options.output.with_suffix(".json") if options.output else None
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.is_file() else {}
    about = heading(options.threads)
    for unit in chosen:
        rows[unit.name] = measured(unit, sources, options.threads, options.quick)
        rows = {known.name: rows[known.name] for known in UNITS if known.name in rows}
        print(table({unit.name: rows[unit.name]}, {}).splitlines()[-1], flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(table(rows, about))
            options.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    if not options.output:
        print(table(rows, about))


if __name__ == "__main__":
    main()
