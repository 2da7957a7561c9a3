"""What must be computed again, judged by content and not by timestamps.

Git and DVC write files in another order than the workflow did, so after a clone modification times say nothing. A run's
record and metrics carry the fingerprint of what they were computed from; a table carries the digest of the metrics that
it was made of. Comparing these with the plan tells what is out of date, in a clone as on the machine that computed it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.harness.study import Run, Study

FOLDER_TIME = ".snakemake_timestamp"  # where Snakemake keeps the time of a folder
MARKERS = Path(".atlas/changed")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def data_hash(run: Run) -> str | None:
    """Content hash of the acquired dataset that the run reads, or ``None`` if it is not acquired or there is none."""
    if not run.data:
        return None
    return read_json(run.data_folder / "manifest.json").get("sha256")


def metrics_digest(runs: list[Run]) -> str:
    """SHA-256 over the metrics files of some runs, and over which of them are missing."""
    digest = hashlib.sha256()
    for run in runs:
        digest.update(run.cell.encode())
        digest.update(run.metrics.read_bytes() if run.metrics.is_file() else b"missing")
    return digest.hexdigest()


def stale_record(run: Run) -> str | None:
    """Why a trained run no longer matches the plan, or ``None``."""
    return _mismatch(run, read_json(run.record))


def stale_metrics(run: Run, content: Mapping[str, Any] | None = None) -> str | None:
    """Why an evaluated run no longer matches the plan, or ``None``; ``content`` is its ``metrics.json``, if already read."""
    content = read_json(run.metrics) if content is None else content
    recorded, provenance = content.get("run"), content.get("provenance")
    recorded = recorded if isinstance(recorded, dict) else {}
    known = provenance.get("data_hash") if isinstance(provenance, dict) else None
    return _mismatch(run, {**recorded, "data_hash": known})


def _mismatch(run: Run, recorded: dict[str, Any]) -> str | None:
    if "fingerprint" not in recorded:
        return None
    if recorded["fingerprint"] != run.fingerprint:
        return "its settings changed"
    known = data_hash(run)
    if known is not None and recorded.get("data_hash") not in (None, known):
        return f"the dataset {run.data} changed"
    return None


def table_path(study: Study, task: str, dataset: str) -> Path:
    """The table's CSV; the other files of the table lie beside it."""
    return study.results / "tables" / task / f"{dataset}.csv"


def table_matches(study: Study, task: str, dataset: str) -> bool | None:
    """Whether a table was made of the metrics that are there now; ``None`` if there is no table."""
    recorded = read_json(table_path(study, task, dataset).with_suffix(".json")).get("metrics_digest")
    return None if recorded is None else recorded == metrics_digest(study.matching(task, dataset))


def summary_digest(study: Study) -> str:
    """SHA-256 over every run's metrics: what the verdicts and the page are made of."""
    return metrics_digest(list(study.runs))


def summary_matches(study: Study) -> bool:
    """Whether the verdicts and the page were made of the metrics that are there now."""
    return read_json(study.results / "metrics.json").get("digest") == summary_digest(study)


def stale_outputs(study: Study) -> list[str]:
    """Existing files that the workflow must make again, relative to the working directory."""
    outdated: list[Path] = []
    for run in study.runs:
        if stale_record(run):
            outdated.append(run.record)
        if stale_metrics(run):
            outdated.append(run.metrics)
    for task, dataset in study.tables:
        if table_matches(study, task, dataset) is False:
            outdated.append(table_path(study, task, dataset))
    return [str(path) for path in outdated]


def mark_stale(study: Study) -> dict[str, str]:
    """Leave a marker, newer than it, for every file that must be made again.

    Returns
    -------
    dict
        Outdated file to its marker. A job that has the marker among its inputs is run again.
    """
    markers = {}
    for path in stale_outputs(study):
        marker = study.root / MARKERS / path
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        markers[path] = str(marker)
    return markers


def settle_times(study: Study) -> None:
    """Give files whose contents fit together modification times that do, too.

    Snakemake reruns a job whose output is older than its input, and git and DVC write files in another order than the workflow
    did. Only files that are up to date by content, and older than what they were made from, are touched.
    """
    times: dict[Path, int] = {}
    for row in study.by_row.values():  # one job may make the files of a whole row
        sources = [run.data_folder / "manifest.json" for run in row if run.data]
        sources += [needed.record for run in row for needed in run.needs.values()]
        for run in row:
            if stale_record(run) is None:
                for output in (run.record, run.logs / "train.benchmark.tsv"):
                    _no_older(output, sources, times)
        for run in row:
            if stale_metrics(run) is None:
                for output in (run.metrics, run.logs / "evaluate.benchmark.tsv"):
                    _no_older(output, [*sources, *(other.record for other in row)], times)
    for task, dataset in study.tables:
        if table_matches(study, task, dataset):
            path = table_path(study, task, dataset)
            made_from = [run.metrics for run in study.matching(task, dataset)]
            figures = study.results / "figures" / task / dataset
            for output in (*(path.with_suffix(f".{ending}") for ending in ("csv", "md", "tex", "json")), figures):
                _no_older(output, made_from, times)
    if summary_matches(study):
        claims = [study.results / f"claims.{ending}" for ending in ("csv", "md")]
        tables = [table_path(study, task, dataset) for task, dataset in study.tables]
        for output in claims:
            _no_older(output, [run.metrics for run in study.runs], times)
        for output in (study.results / "report.html", study.results / "report.md"):
            _no_older(output, [*tables, claims[0]], times)


def _no_older(output: Path, made_from: list[Path], times: dict[Path, int]) -> None:
    """Touch ``output`` if it is older than something it was made from; ``times`` remembers what has been looked at."""
    own = _modified(output, times)
    newest = max((_modified(path, times) for path in made_from), default=0)
    if 0 < own < newest:
        for path in (output, output / FOLDER_TIME):
            if path.exists():
                os.utime(path, ns=(newest, newest))
        times[output] = newest


def _modified(path: Path, times: dict[Path, int]) -> int:
    if path not in times:
        stamp = path / FOLDER_TIME if path.is_dir() and (path / FOLDER_TIME).exists() else path
        times[path] = stamp.stat().st_mtime_ns if stamp.exists() else 0
    return times[path]
