"""A study with made-up results, so that tables and pages can be checked against numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas.harness.study import Run, Study

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
EVIL = "<script>alert(1)</script>".replace("/", "-")
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
    content |= {"settings": {"protocol": dict(run.protocol)}, "provenance": PROVENANCE}
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
