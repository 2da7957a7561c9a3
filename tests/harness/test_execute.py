"""What a finished run says about itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torch.nn import Linear

from atlas.errors import UserError
from atlas.harness import execute, registry
from atlas.harness.execute import command, evaluate_run, train_run
from atlas.harness.files import write_bytes
from atlas.harness.registry import Metric, Task, load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import Settings

TASK = "relay"
CONFIG = """
seeds: [0]
relay:
  datasets:
    track:
      data: null
      methods: {first: {}, second: {}, third: {}, alone: {}}
"""


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A task whose third row needs the second, which needs the first."""
    load()
    running = ModuleType(f"atlas.tasks.{TASK}.running")
    running.train, running.evaluate = lambda run: None, lambda run: {"distance": 1.0}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, running.__name__, running)
    registry.task(
        Task(
            TASK,
            "A relay",
            "Who runs?",
            Settings,
            (Metric("distance", "distance", "higher", ".3g"),),
            train="running:train",
            evaluate="running:evaluate",
            baseline="alone",
        )
    )
    for name, needs in (("first", {}), ("second", {"baton": "first"}), ("third", {"baton": "second"}), ("alone", {})):
        registry.method(name, task=TASK, title=name, summary=f"The {name}.", needs=needs)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text(CONFIG)
    yield Study.read("mine", tmp_path)
    del load().tasks[TASK], load().methods[TASK]


def test_metrics_name_the_training_time_of_everything_they_build_upon(relay: Study) -> None:
    runs: dict[str, Run] = {run.method: run for run in relay.runs}
    for name, seconds in (("first", 30.0), ("second", 5.0), ("third", 1.0), ("alone", 2.0)):
        train_run(runs[name])
        record = json.loads(runs[name].record.read_text())
        record["provenance"]["train_seconds"] = seconds
        runs[name].record.write_text(json.dumps(record))
    told = {name: evaluate_run(run)["provenance"] for name, run in runs.items()}
    assert told["third"]["needed_seconds"] == {runs["first"].cell: 30.0, runs["second"].cell: 5.0}
    assert told["second"]["needed_seconds"] == {runs["first"].cell: 30.0}
    assert told["first"]["needed_seconds"] == told["alone"]["needed_seconds"] == {}
    assert told["third"]["train_seconds"] == 1.0


def test_what_a_run_took_is_told(relay: Study) -> None:
    run = next(run for run in relay.runs if run.method == "alone")
    train_run(run)
    told = evaluate_run(run)["provenance"]
    record = json.loads(run.record.read_text())["provenance"]
    for name in ("train_seconds", "train_cpu_seconds"):
        assert told[name] == record[name] >= 0
    assert told["evaluate_cpu_seconds"] >= 0
    assert told["peak_memory_mebibytes"] > 0


@pytest.mark.parametrize(("again", "due"), [("code", True), ("here", True), (None, False)])
def test_what_a_person_asks_for_is_trained_again(monkeypatch: pytest.MonkeyPatch, again: str | None, due: bool) -> None:
    monkeypatch.setattr(execute, "trained_with_other_code", lambda run: ["atlas.nn"])
    monkeypatch.setattr(execute, "made_here", lambda run, what, path: False)
    run = SimpleNamespace(record=Path("nowhere"))
    assert execute.due_again(run, again) is due  # type: ignore[arg-type]
    monkeypatch.setattr(execute, "trained_with_other_code", lambda run: [])
    monkeypatch.setattr(execute, "made_here", lambda run, what, path: True)
    assert execute.due_again(run, again) is False  # type: ignore[arg-type]


def test_a_command_for_a_trial_says_what_makes_it_one(relay: Study) -> None:
    run = next(run for run in relay.runs if run.method == "alone")
    assert command("train", run) == f"atlas train --tier mine {run.cell}"
    trial = replace(run, trial=True, overrides=("lanes=[1, 2]", "protocol.epochs=5"))
    assert command("train", trial) == f"atlas train --tier mine {run.cell} --set 'lanes=[1, 2]' --set protocol.epochs=5"


def test_a_trial_that_does_not_fit_what_it_needs_says_so_in_one_line(relay: Study) -> None:
    """What it needs keeps the study's settings, so weights of another size are nothing that a person can see."""
    runs: dict[str, Run] = {run.method: run for run in relay.runs}
    train_run(runs["first"])
    running = sys.modules[f"atlas.tasks.{TASK}.running"]
    running.train = lambda run: Linear(2, 2).load_state_dict(Linear(3, 2).state_dict())  # type: ignore[attr-defined]
    trial = replace(runs["second"], trial=True, overrides=("width=2",))
    with pytest.raises(UserError) as refused:
        train_run(trial)
    said = str(refused.value)
    assert said.startswith(f"{trial.cell} does not fit {runs['first'].cell}, its baton, which keeps the study's settings")
    assert "a study of its own, a copy of config/mine.yaml" in said
    assert "\n" not in said
    assert json.loads(trial.failure.read_text())["error"] == said
    for other in (runs["second"], replace(runs["alone"], trial=True)):  # nothing of these explains it
        with pytest.raises(RuntimeError, match="size mismatch"):
            train_run(other)


@pytest.mark.parametrize("damaged", [b"", b"other"])
def test_a_damaged_file_is_trained_again_and_not_evaluated(relay: Study, damaged: bytes) -> None:
    runs: dict[str, Run] = {run.method: run for run in relay.runs}
    alone, first, second = runs["alone"], runs["first"], runs["second"]
    running = sys.modules[f"atlas.tasks.{TASK}.running"]
    running.train = lambda run: write_bytes(run.weights, b"right")  # type: ignore[attr-defined]
    for run in (alone, first):
        train_run(run)
        run.weights.write_bytes(damaged)
        os.utime(run.weights, ns=(0, 0))
    with pytest.raises(UserError, match=r"alone/seed0 must be trained first \(its model.safetensors is damaged\): atlas train"):
        evaluate_run(alone)
    with pytest.raises(UserError, match=r"needs .*first/seed0 as its baton \(its model.safetensors is damaged\)"):
        train_run(second)
    assert train_run(alone)
    assert alone.weights.read_bytes() == b"right"
    assert evaluate_run(alone)["metrics"] == {"distance": 1.0}
    assert not train_run(alone)
