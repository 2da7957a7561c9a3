"""``atlas plan``: the study as DVC reads it, one entry per benchmark.

DVC's stages are written once (``dvc.yaml``) and repeated over the benchmarks of this file. A benchmark's fingerprint covers the
settings, the protocol and the needs of all its runs, so a changed setting calls for the benchmark that it touches; within it
Snakemake makes the runs that it touches, and no others.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from atlas.errors import UserError
from atlas.harness.files import write_json, write_text
from atlas.harness.stale import read_json
from atlas.study import Run, Study

PLAN = Path("workflow/plan.yaml")
DATA = Path("workflow/data")
HEADER = "# Written by `atlas plan` from config/; the study that `dvc repro` reproduces. Do not edit.\n"


def benchmark_entry(runs: list[Run]) -> dict[str, Any]:
    """What a stage needs to know of one benchmark: the data that it reads, and what its numbers depend on."""
    digest = hashlib.sha256("".join(f"{run.cell} {run.fingerprint}\n" for run in runs).encode()).hexdigest()
    return ({"data": runs[0].data} if runs[0].data else {}) | {"fingerprint": digest}


def plan(study: Study) -> dict[str, Any]:
    """Return the study's benchmarks, those on acquired data and those whose data is generated on the fly."""
    groups: dict[str, dict[str, Any]] = {"benchmarks": {}, "generated": {}}
    for task, dataset in study.tables:
        entry = benchmark_entry(study.matching(task, dataset))
        groups["benchmarks" if "data" in entry else "generated"][f"{task}/{dataset}"] = entry
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


def write_data_hash(name: str) -> Path:
    """Write the hash of an acquired dataset where git and DVC's benchmarks see it."""
    sha256 = read_json(Path("data") / name / "manifest.json").get("sha256")
    if sha256 is None:
        raise UserError(f"the dataset {name} is not there; run: atlas acquire {name}")
    path = DATA / f"{name}.json"
    if read_json(path) != {"sha256": sha256}:
        write_json(path, {"sha256": sha256})
    return path
