"""``atlas rehearse``: every run of a study at full size for one step, and a table of what it will cost."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from pathlib import Path

from atlas.errors import AtlasError, UserError, did_you_mean
from atlas.harness.files import write_text
from atlas.harness.launch import shares_work
from atlas.harness.rehearsal import (
    GPU,
    GPUS,
    LAUNCH_SECONDS,
    LINK,
    TOLERANCE,
    UTILISATION,
    Count,
    Notes,
    Rehearsal,
    kinds,
    rehearse,
)
from atlas.harness.wall import Job, wall_hours
from atlas.study import Run, Study, select

COLUMNS = (
    "run",
    "seeds",
    "status",
    "seconds",
    "parameters",
    "steps",
    "batch",
    "example_flops",
    "step_flops",
    "flops",
    "memory_gibibytes",
    "gpu_hours",
    "published_counts",
    "error",
)


MEMORY_PER_JOB = 10 * 2**30  # bytes; the largest rows of the paper study need about as much


WALL_GPUS = (8, 32, 64)
"""Sizes of clusters on which the whole study is laid out in time."""


def rehearse_study(
    study: Study, cells: list[str], gpu_name: str, jobs: int | None = None, *, fresh: bool = False, gpus: int = 1
) -> None:
    """Rehearse a study's rows, or those of some runs, and print one line each; a whole study also writes its table.

    ``jobs`` benchmarks are rehearsed at a time, by default as many as there are cores and memory for. Rows of which an earlier
    rehearsal knows are not repeated, unless ``fresh``. With several ``gpus``, hours on so many are estimated beside those on one,
    and one run of each kind takes its step on two ranks as well.

    Raises
    ------
    UserError
        A run or GPU that does not exist.
    AtlasError
        Some row failed, or a published count is missed without an explanation; the table says which.
    """
    if gpu_name not in GPUS:
        raise UserError(f"there is no figure for the GPU {gpu_name}; {did_you_mean(gpu_name, GPUS)}")
    rows = _rows(study, cells)
    notes = Notes(study.root / "logs" / study.tier / "rehearsal.jsonl")
    known = {} if fresh or cells else notes.of(rows)
    done = list(known.values())
    if known:
        print(f"{len(known)} rows are known from an earlier rehearsal; --fresh repeats them")
    left = [runs for runs in rows if runs[0].cell not in known]
    with tempfile.TemporaryDirectory(prefix="atlas-rehearsal-") as folder:
        shared = kinds(left) if gpus > 1 else set()
        for result in rehearse(study, left, Path(folder), jobs or _jobs(), shared):
            done.append(result)
            notes.add(result)
            print(f"[{len(done)}/{len(rows)}] {line(result, GPUS[gpu_name], gpus)}", flush=True)
    order = {runs[0].cell: position for position, runs in enumerate(rows)}
    done.sort(key=lambda result: order[result.run.cell])
    text = markdown(study, done, GPUS[gpu_name], gpus)
    if cells:
        print(text)
    else:
        write_text(study.results / "rehearsal.md", text)
        write_text(study.results / "rehearsal.csv", table(done, GPUS[gpu_name], gpus))
        print(study.results / "rehearsal.md")
    _complain(done)


def _jobs() -> int:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB))


def _rows(study: Study, cells: list[str]) -> list[list[Run]]:
    if not cells:
        return list(study.by_row.values())
    rows: dict[str, list[Run]] = {}
    for run in select(study, cells):
        rows.setdefault(run.cell.rpartition("/")[0], []).append(run)
    return list(rows.values())


def _complain(done: list[Rehearsal]) -> None:
    failed = [result for result in done if result.error]
    missed = [result for result in done for count in result.counts if count.verdict == "differs"]
    if failed or missed:
        names = ", ".join(dict.fromkeys(result.run.cell.rpartition("/")[0] for result in (*failed, *missed)))
        raise AtlasError(f"{len(failed)} of {len(done)} rows failed, {len(missed)} published counts are missed: {names}")


def line(result: Rehearsal, gpu: GPU, gpus: int = 1) -> str:
    """Say what one rehearsal found in one line, for a terminal or a log."""
    name = result.run.cell.rpartition("/")[0]
    if result.error:
        return f"✗ {name}: {result.error}"
    hours, memory = result.hours(gpu), result.memory_gibibytes
    cost = "" if math.isnan(hours) else f", {memory:.3g} GiB and {hours:.3g} {gpu.name} hours a run"
    if cost and gpus > 1 and shares_work(result.run):
        cost += f", {result.hours(gpu, gpus):.3g} on {gpus} ({1000 * result.exchange_seconds(gpus):.3g} ms a step for gradients)"
    return f"✓ {name}: {result.seconds:.0f} s here{cost}{_counts(result.counts)}"


def _counts(counts: tuple[Count, ...]) -> str:
    return "".join(f"; {count.metric} {count.difference:+.2%} from published ({count.verdict})" for count in counts)


def table(done: list[Rehearsal], gpu: GPU, gpus: int = 1) -> str:
    """Render rehearsals as CSV, one line per row, with costs for a GPU; also for ``gpus`` of them where there are several."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    several = ("gradient_bytes", f"hours_on_{gpus}") if gpus > 1 else ()
    writer.writerow([*COLUMNS, *several])
    for result in done:
        counts = "; ".join(
            f"{count.metric} {count.ours:.6g} published {count.published:.6g} {count.verdict}" for count in result.counts
        )
        costs = (result.example_flops, result.step_flops, result.flops, result.memory_gibibytes, result.hours(gpu))
        numbers = (result.main.steps, result.main.batch, *costs)
        status = "failed" if result.error else "stepped"
        parameters = result.metrics.get("parameters")
        start = (result.run.cell.rpartition("/")[0], result.seeds, status, f"{result.seconds:.1f}", _number(parameters))
        more = (float(result.cost.gradient_bytes) if result.cost else None, result.hours(gpu, gpus)) if several else ()
        writer.writerow([*start, *map(_number, numbers), counts, result.error, *map(_number, more)])
    return stream.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def markdown(study: Study, done: list[Rehearsal], gpu: GPU, gpus: int = 1) -> str:
    """The table as Markdown, with the published counts beside ours and with the totals."""
    stepped = [result for result in done if not result.error]
    hours = sum(result.hours(gpu) * result.seeds for result in stepped if not math.isnan(result.hours(gpu)))
    lines = [
        f"# Rehearsal of the {study.tier} study",
        "",
        f"{len(stepped)} of {len(done)} rows went through at full size: data in the data set's shape, one step of every loop, a "
        "checkpoint written and loaded, an evaluation. The runs of a row differ in their seed alone, so one of them was carried "
        f"out. Hours and memory are estimates for one {gpu.name}: counted operations at {UTILISATION:.0%} of its peak, or "
        f"{LAUNCH_SECONDS * 1e6:.0f} µs for every kernel where that is more; activations in full precision, without "
        "recomputation, of the examples in memory at once; what is read or made once is as large as in the rehearsal. They are "
        "those of training, with the validations in it; reading data and the evaluation at the end come on top. They are blank "
        "where a loop's length depends on data that are not there; memory is an upper bound where a row holds copies of its "
        "network (clients, values of λ, replicates), whose vectors are scaled as activations are. "
        f"All runs together: about {hours:,.0f} GPU hours.",
        *(_on_several(study, stepped, gpu, gpus) if gpus > 1 else ()),
        "",
        "| row | runs | status | parameters | steps | batch | FLOPs / step | FLOPs / run | GiB | hours / run |"
        + (f" on {gpus} |" if gpus > 1 else ""),
        "|---|---|---|---|---|---|---|---|---|---|" + ("---|" if gpus > 1 else ""),
    ]
    for result in done:
        cells = (
            result.run.cell.rpartition("/")[0],
            str(result.seeds),
            f"failed: {result.error}".replace("|", "\\|") if result.error else "stepped",
            *(_short(value) for value in (result.metrics.get("parameters"), result.main.steps, result.main.batch)),
            *(_short(value) for value in (result.step_flops, result.flops, result.memory_gibibytes, result.hours(gpu))),
            *((_short(result.hours(gpu, gpus)),) if gpus > 1 else ()),
        )
        lines.append(f"| {' | '.join(cells)} |")
    counts = [(result, count) for result in done for count in result.counts]
    if counts:
        lines += ["", f"## Published counts (agreement is within {TOLERANCE:.0%})", ""]
        lines += ["| row | count | published | ours | difference | verdict | source |", "|---|---|---|---|---|---|---|"]
    for result, count in counts:
        verdict = count.verdict + (f": {count.note}" if count.note and count.verdict != "matches" else "")
        name = result.run.cell.rpartition("/")[0]
        numbers = f"{count.published:,.6g} | {count.ours:,.6g} | {count.difference:+.2%}"
        lines.append(f"| {name} | {count.metric} | {numbers} | {verdict} | {count.source} |")
    return "\n".join(lines) + "\n"


def _on_several(study: Study, stepped: list[Rehearsal], gpu: GPU, gpus: int) -> list[str]:
    """What is said of several GPUs: how hours on them are estimated, and how long the study takes on clusters of some sizes."""
    lines = [
        "",
        f"On {gpus} GPUs a row whose work ranks can share takes its share of the arithmetic and launches, and exchanges its "
        f"gradients over {LINK / 1e9:.0f} GB/s, none of it hidden; other rows take what they take on one.",
    ]
    largest = max((result.run.resources.all_gpus for result in stepped), default=1)
    days = [f"{wall_hours(jobs_of(study, stepped, gpu), size) / 24:,.1f} days on {size}" for size in WALL_GPUS if size >= largest]
    if days:
        lines += ["", f"With the GPUs that its runs ask for, the whole study takes {', '.join(days)} GPUs, queues aside."]
    return lines


def jobs_of(study: Study, stepped: list[Rehearsal], gpu: GPU) -> list[Job]:
    """The study's runs as jobs, each on the GPUs that it asks for; runs of unknown length count as none."""
    known = {result.run.cell.rpartition("/")[0]: result for result in stepped}
    jobs = []
    for run in study.runs:
        result = known.get(run.cell.rpartition("/")[0])
        hours = math.nan if result is None else result.hours(gpu, max(1, run.resources.all_gpus))
        needs = tuple(needed.cell for needed in run.needs.values())
        jobs.append(Job(run.cell, run.resources.all_gpus, 0.0 if math.isnan(hours) else hours, needs))
    return jobs


def _short(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:,.4g}" if value < 1e6 else f"{value:.3g}"
