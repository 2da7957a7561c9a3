"""A workflow as it goes: what is said of jobs, how long they will take, and what failed, before anything else."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas.harness.agenda import agenda
from atlas.harness.study import Study
from atlas.harness.watch import Forecast, Watch, duration, jobs_of, reason

STUDY = """
seeds: [0, 1]
batch_seeds: true
image-classification:
  datasets:
    stacks:
      data: null
      methods: {quick: {method: random-stack}, slow: {method: random-stack}, new: {method: random-stack}}
"""
ROW = "image-classification/stacks"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two rows were once run, in 2 and in 52 seconds a run; one never."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text(STUDY)
    found = Study.read("mine")
    for run in found.runs:
        seconds = {"quick": 2.0, "slow": 52.0}.get(run.method)
        if seconds is not None:
            run.metrics.parent.mkdir(parents=True)
            run.metrics.write_text(json.dumps({"provenance": {"train_seconds": seconds - 1, "evaluate_seconds": 1.0}}))
    return found


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def say(logger: logging.Logger, event: str, message: str = "", **fields: Any) -> None:
    logger.info(message, extra={"event": event, **fields})


def begin(logger: logging.Logger, job: int, method: str) -> None:
    wildcards = {"task": "image-classification", "dataset": "stacks", "method": method}
    say(logger, "job_info", jobid=job, rule_name="train", wildcards=wildcards, log=[f"logs/{method}.log"])


@pytest.fixture
def watched(study: Study) -> tuple[logging.Logger, io.StringIO, Clock, Watch]:
    stream, clock = io.StringIO(), Clock()
    watch = Watch(agenda(study), workers=1, stream=stream, clock=clock)
    logger = logging.Logger("snakemake", logging.INFO)
    logger.addHandler(logging.StreamHandler(stream))
    watch.before(logger)
    return logger, stream, clock, watch


def test_jobs_are_announced_with_what_earlier_runs_took(watched: Any) -> None:
    logger, stream, clock, watch = watched
    # 8 s to start, and 2 seeds: 12 s, 112 s, and for the row that is new the median of both
    assert watch.summary() == "3 jobs, about 3 min 6 s by earlier runs"
    begin(logger, 1, "quick")
    clock.now = 12.0
    say(logger, "job_finished", job_id=1)
    lines = [line for line in stream.getvalue().splitlines() if line]
    assert lines[0] == f"[1/3] training {ROW}/quick (2 seeds, about 12 s), log logs/quick.log"
    assert lines[1].startswith(f"[1/3] done {ROW}/quick in 12 s, about 2 min 54 s left, over at ")


def test_a_slower_machine_takes_longer(study: Study) -> None:
    forecast = Forecast({("train", name): 100.0 for name in "abc"}, workers=2)
    assert forecast.left(0) == pytest.approx(150)
    forecast.begin(("train", "a"), 0)
    forecast.end(("train", "a"), 300)
    pace = (300 + 60) / (100 + 60)
    assert forecast.pace == pytest.approx(pace)
    assert forecast.left(300) == pytest.approx(100 * pace)
    forecast.begin(("train", "b"), 300)
    assert forecast.left(310) == pytest.approx((100 * pace + 100 * pace - 10) / 2)
    forecast.workers = 3
    assert forecast.left(310) == pytest.approx(100 * pace - 10), "what runs ends last"


def test_a_part_of_the_study_takes_its_share() -> None:
    forecast = Forecast({("train", name): 100.0 for name in "abc"}, share=1 / 3)
    assert forecast.left(0) == pytest.approx(100)
    forecast.begin(("train", "a"), 0)
    assert forecast.left(40) == pytest.approx(60), "no other job will come"


def test_what_is_over_is_no_longer_part_of_the_share() -> None:
    forecast = Forecast({("train", name): 100.0 for name in "abcd"}, share=3 / 4)
    for name in "ab":
        forecast.begin(("train", name), 0)
        forecast.end(("train", name), 100)
    assert forecast.left(200) == pytest.approx(100)
    forecast.begin(("train", "c"), 200)
    assert forecast.left(230) == pytest.approx(70)
    assert forecast.left(400) == 0


def test_fewer_jobs_than_the_study_has(watched: Any) -> None:
    logger, stream, *_ = watched
    say(logger, "run_info", stats={"train": 1, "tabulate": 1})
    begin(logger, 1, "quick")
    assert "[1/1] training" in stream.getvalue()
    say(logger, "job_finished", job_id=1)
    assert stream.getvalue().strip().endswith(f"[1/1] done {ROW}/quick in 0 s")


@pytest.mark.parametrize("first", ["error", "job_error"])
def test_why_a_job_failed_is_said_once_and_before_everything_else(watched: Any, study: Study, first: str) -> None:
    logger, stream, _, _ = watched
    begin(logger, 1, "slow")
    failure = study.runs[3].failure
    failure.write_text(json.dumps({"stage": "train", "error": "RuntimeError: the method has a bug"}))
    stream.truncate(0)
    stream.seek(0)
    if first == "error":
        say(logger, "error", "CalledProcessError: Command 'atlas train > logs/slow.log' returned 1", exception="RuleException")
    say(logger, "job_error", "Error in rule train", jobid=1, rule_name="train", log=["logs/slow.log"])
    lines = stream.getvalue().splitlines()
    assert lines[0] == f"failed {ROW}/slow: seed1: RuntimeError: the method has a bug (log logs/slow.log)"
    assert sum("failed" in line for line in lines) == 1
    assert "Error in rule train" in lines


def test_the_reason_is_the_last_line_of_a_log_that_says_so(tmp_path: Path) -> None:
    log = tmp_path / "claims.log"
    assert reason((), str(log)) == "it left no reason"
    log.write_text("going on\nTraceback\n")
    assert reason((), str(log)) == "Traceback"
    log.write_text("error: a claim names nothing\nand so on\n")
    assert reason((), str(log)) == "a claim names nothing"


def test_a_display_for_terminals_keeps_lines_and_clocks_apart(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    watch = Watch(agenda(study), stream=stream)
    logger = logging.Logger("snakemake", logging.INFO)
    watch.before(logger)
    begin(logger, 1, "quick")
    say(logger, "job_finished", job_id=1)
    begin(logger, 2, "slow")
    watch.display.bars.refresh()
    watch.display.stop()
    assert f"training {ROW}/quick" in stream.getvalue()
    clocks = [line for line in stream.getvalue().splitlines() if "0:00:0" in line]
    assert any(f"{ROW}/slow" in line and "of about" in line for line in clocks)
    assert f"done {ROW}/quick" in stream.getvalue()
    announced = next(line for line in stream.getvalue().splitlines() if "training" in line)
    assert announced.endswith("log logs/quick.log"), "a line is longer than the terminal is wide, and stays one line"


def test_durations() -> None:
    assert [duration(value) for value in (4.2, 75, 1500, 3700)] == ["4 s", "1 min 15 s", "25 min", "1 h 1 min"]


def test_a_job_that_only_evaluates_knows_its_runs() -> None:
    runs = [SimpleNamespace(cell=f"task/data/row/seed{seed}") for seed in (0, 1, 2)]
    plan = SimpleNamespace(
        study=SimpleNamespace(runs=runs, batch_seeds=True), training={runs[0].cell}, evaluation={runs[1].cell, runs[2].cell}
    )
    assert jobs_of(plan) == {("train", "task/data/row"): [runs[0]]}, "a row that trains evaluates as well"  # type: ignore[arg-type]
    plan.training = set()
    assert jobs_of(plan) == {("evaluate", "task/data/row"): runs[1:]}  # type: ignore[arg-type]
    plan.study.batch_seeds = False
    assert jobs_of(plan) == {("evaluate", run.cell): [run] for run in runs[1:]}  # type: ignore[arg-type]
