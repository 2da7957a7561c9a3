"""Whether a record or metrics are of the data that lie here now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas.harness.registry import load
from atlas.harness.run import Resources, Run
from atlas.harness.stale import stale_metrics, stale_record


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        "demo",
        "task",
        "bench",
        "pictures",
        "method",
        ("method",),
        0,
        {},
        {},
        Resources(),
        root=tmp_path,
        task_entry=load().task("image-classification"),
        method_entries=(),
    )


def acquire(run: Run, digest: str | None) -> None:
    """Leave the manifest of a dataset of that content, or of one that does not say."""
    run.data_folder.mkdir(parents=True, exist_ok=True)
    (run.data_folder / "manifest.json").write_text(json.dumps({"sha256": digest} if digest else {}))


def metrics_of(run: Run, digest: str | None) -> dict[str, Any]:
    return {"run": {"fingerprint": run.fingerprint}, "provenance": {"data_hash": digest}}


def record_of(run: Run, digest: str | None) -> dict[str, Any]:
    return {"fingerprint": run.fingerprint, "data_hash": digest}


@pytest.mark.parametrize(("check", "content_of"), [(stale_metrics, metrics_of), (stale_record, record_of)])
def test_what_was_made_of_other_data_is_out_of_date(
    run: Run, check: Callable[[Run, Any], str | None], content_of: Callable[[Run, str | None], dict[str, Any]]
) -> None:
    made_of_old = content_of(run, "old")
    assert check(run, made_of_old) is None  # the data are not here: a clone without them has nothing to do
    acquire(run, "old")
    assert check(run, made_of_old) is None
    acquire(run, "new")
    assert check(run, made_of_old) == "the dataset pictures changed"
    assert check(run, content_of(run, "new")) is None
    assert check(run, content_of(run, None)) is None  # made where nobody wrote down of what data
    acquire(run, None)
    assert check(run, made_of_old) is None


def test_metrics_are_read_where_they_lie(run: Run) -> None:
    assert stale_metrics(run) is None
    run.results.mkdir(parents=True)
    run.metrics.write_text(json.dumps(metrics_of(run, "old")))
    acquire(run, "new")
    assert stale_metrics(run) == "the dataset pictures changed"
