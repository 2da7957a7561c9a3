"""A study with made-up results, so that tables and pages can be checked against numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas.harness import registry
from atlas.harness.registry import Metric, Task, load
from atlas.harness.run import Run
from atlas.harness.study import Study
from atlas.settings import Settings

CONFIG = """
description: Made-up numbers for tests.
seeds: [{seeds}]
image-classification:
  datasets:
    digits:
      methods:
        deit: {{}}
        attnscale: {{}}
        featscale: {{}}
        "{evil}": {{method: layerscale}}
"""
TOY = "toy-task"
TOY_CONFIG = """
description: Two tasks, made up.
seeds: [{seeds}]
image-classification:
  datasets:
    digits:
      methods: {{deit: {{}}, attnscale: {{}}}}
toy-task:
  datasets:
    curve:
      data: null
      methods: {{plain: {{}}, fast: {{}}, search: {{}}}}
"""
EVIL = "<script>alert(1)</script>".replace("/", "-")
UNUSED = "nowhere:nothing"
"""Names no code: the report runs nothing."""
PROVENANCE = {
    "git_commit": "0123456789abcdef",
    "git_dirty": False,
    "packages": {"torch": "2.15.0", "timm": "1.0.31", "numpy": "2.4"},
    "python": "3.11",
    "hardware": "a processor, 2 cores",
    "device": "cpu",
    "data_hash": None,
    "train_seconds": 12.0,
    "evaluate_seconds": 2.0,
    "peak_memory_mebibytes": 500.0,
    "finished": "2026-01-02T03:04:05+00:00",
}


def write_metrics(run: Run, **values: float | None) -> None:
    """Leave an evaluated run with the given metrics; all others are 1."""
    metrics = {metric.name: 1.0 for metric in run.declared_metrics if not metric.measured}
    timings = {metric.name: 1.0 for metric in run.declared_metrics if metric.measured}
    content: dict[str, Any] = {"run": run.described(), "metrics": {**metrics, **values}, "timings": timings}
    needed = {needed.cell: 30.0 for needed in run.needs.values()}
    content |= {"settings": {"protocol": dict(run.protocol)}, "provenance": {**PROVENANCE, "needed_seconds": needed}}
    run.results.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text(json.dumps(content))
    run.history.write_text("step,loss\n1,2.5\n2,1.5\n")


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    """``make_study(seeds)`` plans a study in a folder of its own."""

    def make(seeds: int = 3, config: str = CONFIG) -> Study:
        (tmp_path / "config").mkdir(exist_ok=True)
        text = config.format(seeds=", ".join(map(str, range(seeds))), evil=EVIL)
        (tmp_path / "config" / "demo.yaml").write_text(text)
        return Study.read("demo", tmp_path)

    return make


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    """Three seeds of four rows; accuracies 0.80, 0.82, 0.84 for the baseline, and known differences for the others."""
    study = make_study()
    gains = {"deit": 0.0, "attnscale": 0.02, "featscale": -0.10, EVIL: 0.0}
    for run in study.runs:
        noise = 0.001 * run.seed if run.method == "attnscale" else 0.0
        write_metrics(run, top1=0.80 + 0.02 * run.seed + gains[run.method] + noise, parameters=100.0)
    return study


@pytest.fixture
def toy() -> Iterator[str]:
    """A second task, with a cost, a measurement of time, and a stage that one of its rows needs."""

    metrics = (
        Metric("loss", "loss", "lower", ".3g"),
        Metric("train_flops", "training FLOPs", "lower", ".3g"),
        Metric("step_seconds", "time of a step", "lower", ".2g", measured=True),
    )
    load()
    registry.task(Task(TOY, "A toy", "Which is lower?", Settings, metrics, UNUSED, UNUSED, baseline="plain"))
    registry.method("plain", task=TOY, title="Plain", summary="The baseline.", role="baseline", plugin=UNUSED)
    registry.method("fast", task=TOY, title="Fast & <b>new</b>", summary="The method.", needs={"found": "search"}, plugin=UNUSED)
    registry.method("search", task=TOY, title="Search", summary="A stage.", role="stage", metrics=(), train=UNUSED)
    yield TOY
    del load().tasks[TOY], load().methods[TOY]


@pytest.fixture
def two_tasks(toy: str, make_study: Callable[..., Study]) -> Study:
    """A study of two tasks; in the toy, Fast reaches half the loss for a tenth of the FLOPs."""
    study = make_study(config=TOY_CONFIG)
    for run in study.runs:
        if run.method == "plain":
            write_metrics(run, loss=1e-4 * (1 + 0.1 * run.seed), train_flops=1e12)
        elif run.method == "fast":
            write_metrics(run, loss=0.5e-4 * (1 + 0.1 * run.seed), train_flops=1e11)
        elif run.role != "stage":
            write_metrics(run, top1=0.8 + 0.01 * run.seed)
    return study
