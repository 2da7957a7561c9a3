"""What a training begins with: a saved state goes on only with the settings, code, data and needs that it is of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from atlas.datasets import base
from atlas.errors import Interrupted, UserError
from atlas.harness import begin, code, registry
from atlas.harness.agenda import Demands, agenda, trained_with_other_code
from atlas.harness.begin import NOTE
from atlas.harness.execute import evaluate_run, train_run, train_stack
from atlas.harness.files import write_bytes, write_json
from atlas.harness.registry import Metric, Task, load
from atlas.harness.resume import Values, training
from atlas.harness.run import Run
from atlas.harness.stale import stale_metrics
from atlas.harness.study import Study
from atlas.settings import Settings

TASK = "ascent"
CONFIG = """
seeds: [0]
ascent:
  datasets:
    hill:
      data: cifar10
      methods: {camp: {}, summit: {}}
"""


@dataclass
class World:
    """A study of two rows of which the second needs the first, and what their trainings are made of."""

    root: Path
    study: Study
    code: dict[str, str]
    weights: bytes = b"weights"
    stop_after: int | None = None
    steps: list[tuple[str, int]] = field(default_factory=list)

    def row(self, name: str) -> Run:
        return next(run for run in self.study.runs if run.method == name)

    def acquire(self, digest: str) -> None:
        write_json(self.root / "data/cifar10/manifest.json", manifest(digest))

    def train(self, run: Run) -> None:
        """Take six steps, or be stopped after some."""
        for step in training(run, 6, {"spent": Values(total=0.0)}):
            self.steps.append((run.method, step))
            if step == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
        write_bytes(run.weights, self.weights)

    def stopped(self, run: Run) -> None:
        """Train a run up to its third step."""
        self.stop_after = 2
        with pytest.raises(Interrupted):
            train_run(run)
        self.stop_after = None
        self.steps.clear()

    def steps_of(self, name: str) -> list[int]:
        return [step for row, step in self.steps if row == name]


def manifest(digest: str) -> dict[str, object]:
    return {"dataset": "cifar10", "sources": [], "files": [], "sha256": digest}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    load()
    assert "cifar10" in base.all_datasets()
    running = ModuleType(f"atlas.tasks.{TASK}.running")
    monkeypatch.setitem(sys.modules, running.__name__, running)
    named = {name: f"running:{name}" for name in ("train", "evaluate", "together")}
    metric = Metric("height", "height", "higher", ".3g")
    registry.task(Task(TASK, "An ascent", "How high?", Settings, (metric,), baseline="camp", **named))
    registry.method("camp", task=TASK, title="camp", summary="The camp.")
    registry.method("summit", task=TASK, title="summit", summary="The summit.", needs={"base": "camp"})
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text(CONFIG)
    found = World(tmp_path, Study.read("mine", tmp_path), {"atlas.tasks.ascent": "1", "atlas.nn": "1"})
    found.acquire("first")
    running.train, running.evaluate = found.train, lambda run: {"height": 1.0}  # type: ignore[attr-defined]
    running.together = lambda runs: [found.train(run) or {} for run in runs]  # type: ignore[attr-defined]
    for module in (code, begin):
        monkeypatch.setattr(module, "code_of", lambda run: dict(found.code))
    yield found
    del load().tasks[TASK], load().methods[TASK]


def change_code(world: World) -> None:
    world.code["atlas.nn"] = "2"


def change_data(world: World) -> None:
    world.acquire("second")


def change_need(world: World) -> None:
    world.weights = b"other weights"
    assert train_run(world.row("camp"), force=True)


def lose_the_note(world: World) -> None:
    (world.row("summit").checkpoint / "state" / NOTE).unlink()


def test_an_interrupted_training_goes_on_where_nothing_changed(world: World) -> None:
    train_run(world.row("camp"))
    world.stopped(world.row("summit"))
    train_run(world.row("camp"), force=True)  # again, with the same weights
    train_run(world.row("summit"))
    assert world.steps_of("summit") == [3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_code, "is of other code of atlas.nn"),
        (change_need, "builds upon another base"),
        (lose_the_note, "does not say what it is of"),
    ],
)
def test_a_state_of_something_else_is_forgotten(
    world: World, change: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(world.row("camp"))
    world.stopped(world.row("summit"))
    change(world)  # type: ignore[operator]
    capsys.readouterr()
    world.steps.clear()
    train_run(world.row("summit"))
    assert world.steps_of("summit") == [0, 1, 2, 3, 4, 5]
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "summit" in line and "anew" in line)
    assert line == f"ascent/hill/summit/seed0: starts anew, because its saved state {said}"
    assert not (world.row("summit").checkpoint / "state").exists()


def test_a_state_of_other_data_is_forgotten(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.stopped(world.row("camp"))
    change_data(world)
    train_run(world.row("camp"))
    assert world.steps_of("camp") == [0, 1, 2, 3, 4, 5]
    assert "starts anew, because its saved state is of other data" in capsys.readouterr().err
    assert json.loads(world.row("camp").record.read_text())["data_hash"] == "second"


def test_each_seed_of_a_stack_looks_at_its_own_state(world: World) -> None:
    run = world.row("camp")
    world.stopped(run)
    change_code(world)
    assert train_stack([run]) == {run.cell: True}
    assert world.steps_of("camp") == [0, 1, 2, 3, 4, 5]


def test_a_record_says_what_the_training_began_with(world: World) -> None:
    def train(run: Run) -> None:
        world.train(run)
        world.acquire("second")

    sys.modules[f"atlas.tasks.{TASK}.running"].train = train  # type: ignore[attr-defined]
    train_run(world.row("camp"))
    assert json.loads(world.row("camp").record.read_text())["data_hash"] == "first"


def test_a_row_on_old_weights_is_no_row_of_new_code(world: World) -> None:
    camp, summit = world.row("camp"), world.row("summit")
    train_run(camp)
    change_code(world)
    train_run(summit)
    assert trained_with_other_code(summit) == ["atlas.nn"]
    world.code["atlas.nn"] = "1"  # as it was: now the row's own steps are of other code
    assert trained_with_other_code(summit) == ["atlas.nn"]
    change_code(world)
    with pytest.raises(
        UserError, match=r"needs .*camp/seed0 as its base \(trained with other code of atlas.nn\); .*--again code"
    ):
        train_run(summit, again="code")
    assert train_run(camp, again="code")
    assert train_run(summit, again="code")
    assert trained_with_other_code(summit) == []


def test_needs_of_other_code_are_due_with_the_rows_that_are_asked_for(world: World) -> None:
    camp, summit = world.row("camp"), world.row("summit")
    for run in (camp, summit):
        train_run(run)
        evaluate_run(run)
    change_code(world)
    asked = Demands(new_code=True, only=("summit",))
    assert set(agenda(world.study, asked).training) == {camp.cell, summit.cell}
    record = json.loads(summit.record.read_text())  # as if it had been trained since, and says nothing of its need
    record["provenance"]["code"] = dict(world.code)
    write_json(summit.record, record)
    assert set(agenda(world.study, asked).training) == {camp.cell, summit.cell}
    assert agenda(world.study, Demands(only=("summit",))).training == {}


def test_needs_of_another_machine_are_due_with_the_rows_that_are_asked_for(world: World) -> None:
    camp, summit = world.row("camp"), world.row("summit")
    for run in (camp, summit):
        train_run(run)
        evaluate_run(run)
    shutil.rmtree(world.root / ".atlas" / "made")
    assert set(agenda(world.study, Demands(here=True, only=("summit",))).training) == {camp.cell, summit.cell}


@pytest.mark.parametrize(
    ("weights", "why"), [(b"weights", None), (b"others", "its base, ascent/hill/camp/seed0, was trained again")]
)
def test_metrics_without_checkpoints_stand_upon_the_weights_that_they_were_made_of(
    world: World, weights: bytes, why: str | None
) -> None:
    camp, summit = world.row("camp"), world.row("summit")
    for run in (camp, summit):
        train_run(run)
        evaluate_run(run)
    shutil.rmtree(world.root / "checkpoints")
    assert agenda(world.study).runs == {}
    world.weights = weights
    train_run(camp)
    evaluate_run(camp)
    assert stale_metrics(summit) == why
    assert set(agenda(world.study).training) == ({summit.cell} if why else set())
    content = json.loads(summit.metrics.read_text())
    del content["provenance"]["needs"]  # as it was written before needs were noted
    assert stale_metrics(summit, content) is None
