"""The dress rehearsal of a run: everything at full size, on stand-in data, for one step of every training loop.

A run is carried out as the workflow would: data are read, models are built, every loop takes a step, a checkpoint is
written and loaded again, and the evaluation returns its metrics. Only the batch is small. What training costs, counted in
floating-point operations and kernel launches for each kind of work by itself (:mod:`atlas.nn.work`: a step of a loop, a
validation, what is done once), is scaled by the task's :attr:`~.registry.Task.amounts` to what the whole training would cost on a
named GPU; bytes of live tensors are scaled to the examples that are in memory at once in the kind of work that made them.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from atlas.datasets import stand_in
from atlas.errors import AtlasError
from atlas.harness.claims import load_reported
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.launch import shares_work
from atlas.harness.registry import Amount, Amounts, Method, Task, resolve
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.nn.work import AVERAGING, ENCODING, ONCE, TRAIN, VALIDATION, Spent
from atlas.settings import merge, validate_settings

TOLERANCE = 0.01  # relative difference from a published count up to which the two agree
LAUNCH_SECONDS = 10e-6  # what one operation takes at least on a GPU that is fed from Python
UTILISATION = 0.3  # share of a GPU's peak that such training reaches; a planning figure
NOTES_FORMAT = 4  # of the lines that an interrupted rehearsal leaves; lines of another format are not read
COUNTS = ("parameters", "flops", "macs")
LINK = 25e9
"""Bytes a second that a GPU sends to the next one while gradients are summed, a planning figure: a network adapter of 200 Gb/s
for each GPU. Inside a node NVLink has several times as much."""
APART = (ONCE, VALIDATION, AVERAGING, ENCODING)
"""Kinds of work in which ranks exchange no gradients."""


@dataclass(frozen=True)
class GPU:
    """A card as its maker's data sheet has it: peak of dense 16-bit matrix products in operations a second, memory in GiB."""

    name: str
    peak: float
    memory: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("V100-32GB", 125e12, 32),
        GPU("A100-40GB", 312e12, 40),
        GPU("A100-80GB", 312e12, 80),
        GPU("H100-80GB", 989e12, 80),
    )
}


@dataclass(frozen=True)
class Count:
    """A published count of a row beside ours."""

    metric: str
    published: float
    ours: float
    source: str
    note: str

    @property
    def difference(self) -> float:
        """Relative difference of our count from the published one, (ours − published) / published."""
        return (self.ours - self.published) / self.published

    @property
    def verdict(self) -> str:
        """``matches`` within 1 %, ``explained`` where a note says why not, else ``differs``."""
        if abs(self.difference) <= TOLERANCE:
            return "matches"
        return "explained" if self.note else "differs"


@dataclass(frozen=True)
class RehearsedCost:
    """What a rehearsed training cost by kind of work, and the most bytes that the whole training has in memory at once.

    ``gradient_bytes`` are what ranks that share a step exchange; 0 where one process trains.
    """

    spent: Mapping[str, Spent]
    memory_bytes: float
    gradient_bytes: int = 0

    @property
    def main(self) -> str:
        """The kind of work that training is about: its loop, or whatever else is done over and over and took most operations."""
        repeated = self.spent.keys() - {TRAIN, ONCE}
        return TRAIN if TRAIN in self.spent else max(sorted(repeated), key=lambda kind: self.spent[kind].flops, default=ONCE)


@dataclass(frozen=True)
class Rehearsal:
    """What came of rehearsing one row.

    Attributes
    ----------
    run : Run
        The run as planned, at full size.
    seeds : int
        How many runs the row has; they differ in their seed alone, so one is rehearsed.
    metrics : mapping
        What the evaluation returned: counts are those of the full-size model, the rest means nothing.
    error : str
        Why it failed; empty if it went through.
    whole, rehearsed : mapping
        For every kind of work the steps and examples of the whole training, and of what was carried out.
    """

    run: Run
    seeds: int
    seconds: float
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    counts: tuple[Count, ...] = ()
    error: str = ""
    cost: RehearsedCost | None = None
    whole: Amounts = field(default_factory=dict)
    rehearsed: Amounts = field(default_factory=dict)

    @property
    def main(self) -> Amount:
        """Steps and examples of the training loop; NaN where there is none, or where the task does not say."""
        kind = ONCE if self.cost is None else self.cost.main
        return self.whole.get(kind, Amount(math.nan, math.nan, math.nan))

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole training."""
        return math.nan if self.cost is None else sum(self._scaled(kind).flops for kind in self.cost.spent)

    @property
    def step_flops(self) -> float:
        """Floating-point operations of one step of the training loop."""
        return math.nan if self.cost is None else self._scaled(self.cost.main).flops / self.main.steps

    @property
    def example_flops(self) -> float:
        """Floating-point operations of one example of the training loop, which do not depend on how many examples there are."""
        if self.cost is None or self.cost.main not in self.rehearsed:
            return math.nan
        kind = self.cost.main
        return self.cost.spent[kind].flops / self.rehearsed[kind].batch

    def hours(self, gpu: GPU, gpus: int = 1) -> float:
        """Hours of one training on so many GPUs: the larger of arithmetic at the usual utilisation and of launching kernels.

        That is asked of each kind of work by itself. On several GPUs each has its share of a batch, and as many images at once as
        one has; to that comes the time of exchanging gradients over :data:`LINK`, as if none of it were hidden behind the
        backward pass. A row that one process trains takes what it takes on one.
        """
        if self.cost is None:
            return math.nan
        gpus = gpus if shares_work(self.run) else 1
        return sum(self._seconds(kind, gpu, gpus) for kind in self.cost.spent) / 3600

    def _seconds(self, kind: str, gpu: GPU, gpus: int) -> float:
        assert self.cost is not None
        part = self._scaled(kind)
        if kind == ONCE or gpus == 1:
            return max(part.flops / (gpu.peak * UTILISATION), part.launches * LAUNCH_SECONDS)
        whole = self.whole[kind]
        passes = max(1.0, whole.batch / gpus / whole.at_once) / (whole.batch / whole.at_once)
        computing = max(part.flops / gpus / (gpu.peak * UTILISATION), part.launches * passes * LAUNCH_SECONDS)
        return computing + (0.0 if kind in APART else whole.steps * self.exchange_seconds(gpus))

    def exchange_seconds(self, gpus: int) -> float:
        """Seconds in which a step's gradients are summed over GPUs in a ring: each sends 2 (n − 1) / n of their bytes."""
        if self.cost is None or gpus == 1:
            return 0.0
        return 2 * (gpus - 1) / gpus * self.cost.gradient_bytes / LINK

    @property
    def memory_gibibytes(self) -> float:
        """Memory of one run in full precision: weights, gradients, states, and activations of the examples in memory at once."""
        return math.nan if self.cost is None else self.cost.memory_bytes / 2**30

    def _scaled(self, kind: str) -> Spent:
        """What work of a kind takes in the whole training."""
        assert self.cost is not None
        spent = self.cost.spent[kind]
        if kind == ONCE:
            return spent
        whole, rehearsed = self.whole[kind], self.rehearsed[kind]
        steps = whole.steps / rehearsed.steps
        passes = whole.batch / whole.at_once / (rehearsed.batch / rehearsed.at_once)
        return Spent(spent.flops * steps * whole.batch / rehearsed.batch, spent.launches * steps * passes)


def cut(run: Run, root: Path, threads: int | None = None) -> Run:
    """The same run in another folder, cut to one step of every loop, with the small batches that its entries ask for.

    It has at most ``threads`` threads; by default as many as there are cores, because more would crawl.
    """
    task = run.task_entry
    where = f"the rehearsal of {run.cell}"
    protocol = validate_settings(task.protocol, merge(run.protocol, task.rehearsal), f"{where}: protocol", task.name)
    settings = {
        entry.name: validate_settings(
            entry.settings, merge(run.settings[entry.name], entry.rehearsal), f"{where}: {entry.name}", entry.name
        )
        for entry in run.method_entries
    }
    needs = {role: cut(needed, root, threads) for role, needed in run.needs.items()}
    threads = min(run.resources.threads, threads or len(os.sched_getaffinity(0)))
    resources = run.resources.model_copy(update={"threads": threads, "gpus": 0, "nodes": 1, "ranks": None})
    return replace(
        run, root=root, protocol=protocol, settings=settings, resources=resources, needs=needs, limit=1, stack_seeds=False
    )


@dataclass
class _Group:
    """Rows of one benchmark, which share data and needed runs, in a process and a folder of their own."""

    rows: list[list[Run]]
    folder: Path
    process: BaseProcess


class Notes:
    """What earlier rehearsals found, so that one which was interrupted goes on: a line of JSON for each row, the last one counts.

    A row that failed, or whose settings have changed since, is rehearsed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, result: Rehearsal) -> None:
        """Append what came of a row's rehearsal to the file of notes."""
        known = asdict(replace(result, run=None))  # type: ignore[arg-type]
        content = {**known, "cell": result.run.cell, "fingerprint": result.run.fingerprint, "format": NOTES_FORMAT}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(content) + "\n")

    def of(self, rows: list[list[Run]]) -> dict[str, Rehearsal]:
        """What is known of rows, by the cell of their first run."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        noted = {content["cell"]: content for content in map(json.loads, lines) if content.get("format") == NOTES_FORMAT}
        notes = {}
        for run, *_ in rows:
            content = noted.get(run.cell)
            if content is not None and content["fingerprint"] == run.fingerprint and not content["error"]:
                notes[run.cell] = _restored(run, content)
        return notes


def _restored(run: Run, content: dict[str, Any]) -> Rehearsal:
    return Rehearsal(
        run,
        content["seeds"],
        content["seconds"],
        content["metrics"],
        tuple(Count(**count) for count in content["counts"]),
        content["error"],
        _restored_cost(content["cost"]) if content["cost"] else None,
        {kind: Amount(*amount) for kind, amount in content["whole"].items()},
        {kind: Amount(*amount) for kind, amount in content["rehearsed"].items()},
    )


def _restored_cost(content: dict[str, Any]) -> RehearsedCost:
    spent = {kind: Spent(**own) for kind, own in content["spent"].items()}
    return RehearsedCost(spent, content["memory_bytes"], content["gradient_bytes"])


def kinds(rows: list[list[Run]]) -> set[str]:
    """The first run of each kind, that is of each recipe, whose work several ranks can share."""
    firsts: dict[tuple[str, ...], str] = {}
    for run, *_ in rows:
        if shares_work(run):
            firsts.setdefault((run.task, *run.recipe), run.cell)
    return set(firsts.values())


def rehearse(
    study: Study, rows: list[list[Run]], folder: Path, workers: int = 1, shared: Collection[str] = ()
) -> Iterator[Rehearsal]:
    """Rehearse rows of a study; a failure is a result, and the rest goes on, even if the system kills a row for its memory.

    Rows of one benchmark are rehearsed one after the other in a process of their own; results come as they are ready.

    Parameters
    ----------
    rows : list of list of Run
        The runs of each row; the first of each is carried out.
    folder : Path
        An empty folder for stand-in data, checkpoints and results.
    workers : int
        How many benchmarks are rehearsed at a time, on an equal share of the cores.
    shared : collection of str
        Cells of runs that also take a step on two ranks, on CPUs.
    """
    benchmarks: dict[tuple[str, str], list[list[Run]]] = {}
    for runs in rows:
        benchmarks.setdefault((runs[0].task, runs[0].dataset), []).append(runs)
    waiting = list(benchmarks.values())
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    context = multiprocessing.get_context("spawn")
    active: dict[Connection, _Group] = {}
    started = 0
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                group, own_folder = waiting.pop(0), folder / str(started)
                started += 1
                receiver, sender = context.Pipe(duplex=False)
                cells = [(runs[0].cell, len(runs)) for runs in group]
                arguments = (study.tier, study.root, cells, own_folder, threads, sender, frozenset(shared))
                process = context.Process(target=_rehearse_group, args=arguments, daemon=True)
                process.start()
                sender.close()
                active[receiver] = _Group(list(group), own_folder, process)
            for ready in wait(list(active)):
                receiver = cast(Connection, ready)
                running = active[receiver]
                try:
                    done = receiver.recv()
                except EOFError:
                    del active[receiver]
                    yield from _ended(running, waiting)
                    continue
                yield replace(done, run=running.rows.pop(0)[0])
    finally:
        for running in active.values():
            running.process.terminate()


def _ended(group: _Group, waiting: list[list[list[Run]]]) -> Iterator[Rehearsal]:
    """Clear up after a process; if it died, its row failed, and another process does the rows after it."""
    group.process.join()
    shutil.rmtree(group.folder, ignore_errors=True)
    if not group.rows:
        return
    died, *rest = group.rows
    if rest:
        waiting.insert(0, rest)
    code = group.process.exitcode or 0
    how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
    hint = "; is there enough memory? try --jobs 1" if code == -9 else ""
    yield Rehearsal(died[0], len(died), math.nan, error=f"its process ended {how}{hint}")


def _rehearse_group(
    tier: str,
    root: Path,
    cells: list[tuple[str, int]],
    folder: Path,
    threads: int,
    results: Connection,
    shared: Collection[str],
) -> None:
    """Rehearse rows one after the other and send what came of each, without the run itself."""
    study = Study.read(tier, root)
    for cell, seeds in cells:
        run = study.find(cell)
        began = time.monotonic()
        try:
            done = _rehearsed(run, seeds, folder, threads)
            if cell in shared:
                train_run(on_two_ranks(cut(run, folder, threads)))
        except Exception as error:
            message = str(error) if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"
            done = Rehearsal(run, seeds, 0.0, error=" ".join(message.split()))
        results.send(replace(done, run=None, seconds=time.monotonic() - began))  # type: ignore[arg-type]


def _rehearsed(run: Run, seeds: int, folder: Path, threads: int) -> Rehearsal:
    from atlas.nn.meter import Meter

    small = cut(run, folder, threads)
    _prepare(small)
    with Meter() as meter:
        train_run(small)
    content = evaluate_run(small) if small.declared_metrics else {"metrics": {}}
    whole, rehearsed = amounts_of(run), {kind: amount._replace(steps=1) for kind, amount in amounts_of(small).items()}
    spent = {kind: own for kind, own in meter.spent.items() if own.launches or kind == ONCE}
    unknown = spent.keys() - whole.keys() - {ONCE}
    if unknown:
        raise AtlasError(f"its amounts do not say how much of the work {', '.join(sorted(unknown))} a training does")
    growth = {kind: amount.at_once / rehearsed[kind].at_once for kind, amount in whole.items()}
    return Rehearsal(
        run,
        seeds,
        0.0,
        metrics=content["metrics"],
        counts=tuple(_counts(run, content["metrics"])),
        cost=RehearsedCost(spent, meter.memory.grown(growth, growth.get(AVERAGING, 1.0)), meter.gradient_bytes),
        whole=whole,
        rehearsed=rehearsed,
    )


def on_two_ranks(small: Run) -> Run:
    """Return the cut run as two ranks take its step: on two pairs of images, in places beside the data and the needed runs."""
    protocol = merge(small.protocol, {"batch_size": 4})
    resources = small.resources.model_copy(update={"ranks": 2})
    return replace(small, protocol=protocol, resources=resources, trial=True)


def _prepare(run: Run) -> None:
    """Stand-in data of a run, and everything that it needs, in place."""
    if run.data and not (run.data_folder / "manifest.json").is_file():
        stand_in(run.data, run.root / "data")
    for needed in run.needs.values():
        _prepare(needed)
        train_run(needed)


def amounts_of(run: Run) -> Amounts:
    """Steps and examples of a run, by the first of its methods that knows, else by its task."""
    entries: list[Method | Task] = [*run.method_entries, run.task_entry]
    amounts = next((resolve(entry.amounts, entry.package) for entry in entries if entry.amounts), None)
    return amounts(run) if amounts else {}


def _counts(run: Run, metrics: Mapping[str, float | None]) -> Iterator[Count]:
    """Every published parameter or operation count of the row that our evaluation has a number for."""
    for number in load_reported(run.task, run.dataset):
        ours = metrics.get(number.metric)
        if number.row == run.method and number.metric.endswith(COUNTS) and ours is not None:
            yield Count(number.metric, number.value, ours, number.source, number.note)
