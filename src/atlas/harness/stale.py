"""What must be computed again, judged by content and not by timestamps.

Git and DVC write files in another order than the workflow did, so after a clone modification times say nothing. A run's
record and metrics carry the fingerprint of what they were computed from; a table carries the digest of the metrics that
it was made of. Comparing these with the plan tells what is out of date, in a clone as on the machine that computed it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from atlas.harness.study import Run, Study


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


def stale_metrics(run: Run) -> str | None:
    """Why an evaluated run no longer matches the plan, or ``None``."""
    content = read_json(run.metrics)
    return _mismatch(run, {**content.get("run", {}), "data_hash": content.get("provenance", {}).get("data_hash")})


def _mismatch(run: Run, recorded: dict[str, Any]) -> str | None:
    if "fingerprint" not in recorded:
        return None
    if recorded["fingerprint"] != run.fingerprint:
        return "its settings changed"
    known = data_hash(run)
    if known is not None and recorded.get("data_hash") not in (None, known):
        return f"the dataset {run.data} changed"
    return None


def stale_table(study: Study, task: str, dataset: str) -> bool:
    """Whether a table was made of other metrics than those that are there now."""
    folder = study.results / "tables" / task
    recorded = read_json(folder / f"{dataset}.json").get("metrics_digest")
    return recorded is not None and recorded != metrics_digest(study.matching(task, dataset))


def stale_outputs(study: Study) -> list[str]:
    """Existing files that the workflow must make again, relative to the working directory."""
    outdated: list[Path] = []
    for run in study.runs:
        if stale_record(run):
            outdated.append(run.record)
        if stale_metrics(run):
            outdated.append(run.metrics)
    for task, dataset in study.tables:
        if stale_table(study, task, dataset):
            outdated.append(study.results / "tables" / task / f"{dataset}.csv")
    return [str(path) for path in outdated]
