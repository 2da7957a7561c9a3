"""What every registered method must do; none is named here, and a new one is tested by being there."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from atlas.errors import Interrupted, UserError
from atlas.harness import resume
from atlas.harness.execute import evaluate_run, train_run
from atlas.harness.files import read_tensors
from atlas.harness.planning import merge, validate_settings
from atlas.harness.registry import load
from atlas.harness.study import Run, Study

ROOT = Path(__file__).resolve().parents[2]
STUDY = Study.read("demo", ROOT)


def one_run_per_recipe() -> list[Run]:
    """The demo's first run of every combination of methods, on the first dataset that has it."""
    found: dict[tuple[str, tuple[str, ...]], Run] = {}
    for run in STUDY.runs:
        found.setdefault((run.task, run.recipe), run)
    return list(found.values())


def shortest(run: Run, root: Path) -> Run:
    """The same run in another folder, as short as its entries say it can validly be; so are the runs it needs."""
    task = run.task_entry
    protocol = validate_settings(task.protocol, merge(run.protocol, task.smallest), "smallest", task.name)
    settings = {
        entry.name: validate_settings(entry.settings, merge(run.settings[entry.name], entry.smallest), "smallest", entry.name)
        for entry in run.method_entries
    }
    needs = {role: shortest(needed, root) for role, needed in run.needs.items()}
    return replace(run, root=root, protocol=protocol, settings=settings, needs=needs)


def train_with_needs(run: Run) -> None:
    for needed in run.needs.values():
        train_with_needs(needed)
    train_run(run)


@contextmanager
def interrupted_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs, every loop is told to stop after a few steps, as a signal would tell it."""

    class Impatient(resume.StopRequest):
        seen = 0

        @property
        def signal(self) -> signal.Signals | None:
            self.seen += 1
            return signal.SIGTERM if self.seen > steps else None

        @signal.setter
        def signal(self, value: signal.Signals | None) -> None:
            pass

    @contextmanager
    def requests() -> Iterator[resume.StopRequest]:
        yield Impatient()

    with monkeypatch.context() as patched:
        patched.setattr(resume, "stop_requests", requests)
        yield


RUNS = one_run_per_recipe()


@pytest.fixture(params=RUNS, ids=lambda run: f"{run.task}:{'+'.join(run.recipe)}")
def run(request: pytest.FixtureRequest, workspace: Path) -> Run:
    return shortest(request.param, workspace)


def test_trains_evaluates_and_survives_interruption(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_with_needs(run)
    assert run.record.is_file()
    if not run.declared_metrics:
        return
    content = evaluate_run(run)
    written = json.loads(run.metrics.read_text())
    assert written == content

    # evaluation returns exactly the declared metrics, finite
    declared = {metric.name: metric for metric in run.declared_metrics}
    assert set(content["metrics"]) | set(content["timings"]) == set(declared)
    for name, value in {**content["metrics"], **content["timings"]}.items():
        if value is None and declared[name].optional:
            continue
        assert value is not None, f"{name} is not finite"
        assert math.isfinite(value)
    assert content["run"]["fingerprint"] == run.fingerprint
    assert content["provenance"]["train_seconds"] >= 0

    # interrupted again and again, it ends with the same weights and the same numbers
    other = replace(run, root=tmp_path_factory.mktemp("interrupted"))
    (other.root / "data").symlink_to(run.root / "data")
    interruptions = 0
    with interrupted_every(2, monkeypatch):
        while True:
            try:
                train_with_needs(other)
                break
            except Interrupted:
                interruptions += 1
                assert interruptions < 200, "never comes to an end"
    assert evaluate_run(other)["metrics"] == content["metrics"]
    if run.weights.is_file():
        assert other.weights.read_bytes() == run.weights.read_bytes()
    if run.history.is_file():
        assert other.history.read_text() == run.history.read_text()
    assert not (other.checkpoint / "state").exists()


def test_training_changes_the_weights(run: Run, workspace: Path) -> None:
    """What is kept after a few steps differs between two seeds' data order and from a run of fewer steps."""
    if run.method_entries[0].train is not None:
        pytest.skip("trains by itself, not in the task's loop")
    train_with_needs(run)
    other = replace(
        run,
        seed=run.seed + 1,
        root=workspace / "other",
        needs={role: replace(needed, seed=run.seed + 1, root=workspace / "other") for role, needed in run.needs.items()},
    )
    (workspace / "other").mkdir()
    (workspace / "other" / "data").symlink_to(workspace / "data")
    train_with_needs(other)
    first, second = read_tensors(run.weights), read_tensors(other.weights)
    assert any(first[name].shape != second[name].shape or (first[name] != second[name]).any() for name in first if name in second)


@pytest.mark.parametrize("entry", list(load().all_methods()), ids=lambda entry: f"{entry.task}:{entry.name}")
def test_refuses_unknown_settings(entry) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="no_such_setting is not a setting of"):
        validate_settings(entry.settings, {"no_such_setting": 1}, "config", entry.name)


@pytest.mark.parametrize("entry", list(load().all_methods()), ids=lambda entry: f"{entry.task}:{entry.name}")
def test_says_what_it_is(entry) -> None:  # type: ignore[no-untyped-def]
    assert entry.title
    assert entry.summary.endswith(".")
    assert entry.task in load().tasks
    assert not entry.paper or entry.paper in load().papers
    names = [metric.name for metric in (*(entry.metrics or ()), *entry.extra_metrics)]
    assert len(names) == len(set(names))
