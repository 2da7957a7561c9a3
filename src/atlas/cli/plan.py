"""``atlas plan``: the study as DVC reads it, one entry per row.

DVC's stages are written once (``dvc.yaml``) and repeated over the rows of this file. A row's fingerprint covers its settings,
its protocol and the runs that it needs, so a changed setting reruns exactly what it touches.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from atlas.harness.files import write_text
from atlas.study import Run, Study

PLAN = Path("workflow/plan.yaml")
HEADER = "# Written by `atlas plan` from config/; the study that `dvc repro` reproduces. Do not edit.\n"


def row_key(run: Run) -> str:
    """Name of a row in DVC: its path, without the characters that DVC's parameter names give a meaning."""
    return f"{run.task}--{run.dataset}--{run.method}".replace(".", "_")


def row_entry(runs: list[Run]) -> dict[str, Any]:
    """What a stage needs to know of one row: targets for Snakemake, folders, what it depends on."""
    first = runs[0]
    row = f"{first.task}/{first.dataset}/{first.method}"
    files = [run.metrics if run.declared_metrics else run.record for run in runs]
    targets = [path.relative_to(first.root).as_posix() for path in files]
    results = f"results/{first.tier}/runs/{row}" if first.declared_metrics else ""
    digest = hashlib.sha256("".join(run.fingerprint for run in runs).encode()).hexdigest()
    return {
        "targets": " ".join(targets),
        "checkpoint": f"checkpoints/{first.tier}/{row}",
        "results": results,
        "data": first.data,
        "fingerprint": digest,
    }


def plan(study: Study) -> dict[str, Any]:
    """Return the study's rows, grouped by the kind of stage that computes them."""
    groups: dict[str, dict[str, Any]] = {"runs": {}, "generated": {}, "stages": {}}
    for runs in study.by_row.values():
        entry = row_entry(runs)
        kind = "stages" if not entry["results"] else "runs" if entry["data"] else "generated"
        groups[kind][row_key(runs[0])] = entry
    return {"tier": study.tier, "datasets": study.datasets, **groups}


def plan_text(study: Study) -> str:
    """Return the plan file's content."""
    return HEADER + yaml.safe_dump(plan(study), sort_keys=False, width=1000)


def write_plan(study: Study) -> Path:
    """Write the plan file if its content changed."""
    path = study.root / PLAN
    text = plan_text(study)
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)
    return path
