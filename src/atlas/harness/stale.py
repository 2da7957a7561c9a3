"""Whether what is there was made of what the study says now, judged by content and not by timestamps.

Git and DVC write files in another order than the workflow did, so after a clone modification times say nothing. A run's
record and metrics carry the fingerprint of what they were computed from; a table carries the digest of the metrics that
it was made of, and the page that of everything it shows. Comparing these with the plan tells what is out of date, in a
clone as on the machine that computed it. :mod:`atlas.harness.agenda` draws from it what there is to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.harness.files import sha256
from atlas.harness.run import Run
from atlas.harness.study import Study

TABLE_ENDINGS = ("csv", "md", "tex", "json")
SUMMARY = "summary.json"
KERNELS = "kernels.csv"


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


def artefacts_digest(record: Mapping[str, Any]) -> str | None:
    """One SHA-256 for all files that a training left, from its record; ``None`` where the record does not list them."""
    files = record.get("files")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if isinstance(files, dict) else None


def needed_digests(run: Run) -> dict[str, str | None]:
    """Role to digest of what the run that fills it has left here now."""
    return {role: artefacts_digest(read_json(needed.record)) for role, needed in sorted(run.needs.items())}


def training_gap(run: Run, *, thorough: bool = False) -> str | None:
    """Why a run must be trained before anything can build upon it, or ``None`` if its training is complete and fits the plan.

    The files that it left are compared with the digests in its record where they were written after that, and always with
    ``thorough``, as whatever reads them asks.
    """
    record = read_json(run.record)
    if not record:
        failure = read_json(run.failure)
        if failure.get("stage") == "train":
            return f"failed to train: {failure.get('error', 'no reason was left')}"
        return "its settings.json is damaged" if run.record.is_file() else "not trained"
    if reason := stale_record(run, record):
        return reason
    files = _mapping(record.get("files"))
    return next((f"its {name} is {what}" for name in files if (what := _changed(run, name, files[name], thorough))), None)


def _changed(run: Run, name: str, digest: str, thorough: bool) -> str | None:
    """What has happened to a file since it was recorded with its digest, or ``None``; another process may just train the run."""
    path = run.checkpoint / name
    try:
        if path.stat().st_mtime_ns <= run.record.stat().st_mtime_ns and not thorough:
            return None
        return None if sha256(path) == digest else "damaged"
    except FileNotFoundError:
        return "lost"
    except OSError as error:
        return f"not to be read ({error.strerror})"


def stale_record(run: Run, content: Mapping[str, Any] | None = None) -> str | None:
    """Why a trained run no longer matches the plan, or ``None``; ``content`` is its record, if already read."""
    record = read_json(run.record) if content is None else content
    if not record:
        return None
    if reason := _mismatch(run, record):
        return reason
    return _other_need(run, record)


def evaluation_gap(run: Run) -> str | None:
    """Why a run must be evaluated, or ``None`` if its metrics fit the plan, or none are declared."""
    if not run.declared_metrics:
        return None
    failure = read_json(run.failure)
    if failure:
        return f"failed to {failure.get('stage', 'run')}: {failure.get('error', 'no reason was left')}"
    content = read_json(run.metrics)
    if not content:
        return "its metrics.json is damaged" if run.metrics.is_file() else "not evaluated"
    return stale_metrics(run, content)


def stale_metrics(run: Run, content: Mapping[str, Any] | None = None) -> str | None:
    """Why an evaluated run no longer matches the plan, or ``None``; ``content`` is its ``metrics.json``, if already read."""
    content = read_json(run.metrics) if content is None else content
    if not content:
        return None
    recorded, provenance = _mapping(content.get("run")), _mapping(content.get("provenance"))
    if reason := _mismatch(run, {**recorded, "data_hash": provenance.get("data_hash")}):
        return reason
    here, evaluated = artefacts_digest(read_json(run.record)), provenance.get("trained")
    if here is not None and evaluated not in (None, here):
        return "it was trained again"
    return _other_need(run, provenance)


def _other_need(run: Run, recorded: Mapping[str, Any]) -> str | None:
    """Which need has left other files here than a run was made of, or ``None``; what is not known counts."""
    known = _mapping(recorded.get("needs"))
    for role, digest in needed_digests(run).items():
        if digest is not None and known.get(role) not in (None, digest):
            return f"its {role}, {run.needs[role].cell}, was trained again"
    return None


def _mismatch(run: Run, recorded: Mapping[str, Any]) -> str | None:
    if not recorded.get("fingerprint"):
        return "what it was made of is not recorded"
    if recorded["fingerprint"] != run.fingerprint:
        return "its settings changed"
    known = data_hash(run)
    if known is not None and recorded.get("data_hash") not in (None, known):
        return f"the dataset {run.data} changed"
    return None


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def metrics_digest(runs: list[Run]) -> str:
    """SHA-256 over the metrics files of some runs, and over which of them are missing."""
    digest = hashlib.sha256()
    for run in runs:
        digest.update(run.cell.encode())
        digest.update(run.metrics.read_bytes() if run.metrics.is_file() else b"missing")
    return digest.hexdigest()


def table_path(study: Study, task: str, dataset: str) -> Path:
    """The table's CSV; the other files of the table lie beside it."""
    return study.results / "tables" / task / f"{dataset}.csv"


def table_matches(study: Study, task: str, dataset: str) -> bool | None:
    """Whether a table was made of the metrics that are there now; ``None`` if there is no table."""
    recorded = read_json(table_path(study, task, dataset).with_suffix(".json")).get("metrics_digest")
    return None if recorded is None else recorded == metrics_digest(study.matching(task, dataset))


def table_gap(study: Study, task: str, dataset: str) -> str | None:
    """Why a table, or one of its files, must be written, or ``None``."""
    path = table_path(study, task, dataset)
    figures = study.results / "figures" / task / dataset
    if not all(path.with_suffix(f".{ending}").is_file() for ending in TABLE_ENDINGS) or not figures.is_dir():
        return "not written"
    return None if table_matches(study, task, dataset) else "its metrics changed"


def summary_digest(study: Study) -> str:
    """SHA-256 over every run's metrics, every claim, verdicts under other kernels, and what the study says of itself.

    That is what verdicts and page are made of.
    """
    from atlas.harness.claims import claims_text

    kernels = study.results / KERNELS
    others = kernels.read_text() if kernels.is_file() else ""
    said = json.dumps([study.description, list(study.limits)])
    return hashlib.sha256((metrics_digest(list(study.runs)) + claims_text() + others + said).encode()).hexdigest()


def page_gap(study: Study) -> str | None:
    """Why verdicts and page must be written, or ``None``."""
    names = ("claims.csv", "claims-values.csv", "claims.md", "report.html", "report.md", SUMMARY)
    if not all((study.results / name).is_file() for name in names):
        return "not written"
    written = read_json(study.results / SUMMARY).get("digest")
    return None if written == summary_digest(study) else "its metrics, claims or limits changed"
