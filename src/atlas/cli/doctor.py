"""``atlas doctor``: what this machine can do for a study, and what to do about what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas.study import Study


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``advice`` is empty where nothing is to be done."""

    topic: str
    good: bool
    state: str
    advice: str = ""


def examine(study: Study, *, fix: bool = False) -> None:
    """Print every finding; nothing here is an error, so the exit code stays 0.

    Parameters
    ----------
    fix : bool
        Put right what can be without asking: a local DVC remote where none is configured.
    """
    if fix:
        add_remote()
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for finding in findings(study):
        mark = "[green]✓[/]" if finding.good else "[yellow]![/]"
        console.print(f"{mark} {finding.topic:<10} {escape(finding.state)}")
        if finding.advice:
            console.print(f"  {'':<10} → {escape(finding.advice)}")


def findings(study: Study) -> Iterator[Finding]:
    """Examine accelerator, compiled modules, SLURM, Julia, DVC, disk and datasets in turn."""
    yield accelerator(study)
    yield modules()
    yield slurm()
    yield julia()
    yield dvc()
    yield disk(study)
    yield from data(study)


def accelerator(study: Study) -> Finding:
    """Check whether PyTorch sees a GPU, and whether the study asks for one."""
    wanted = max((run.resources.gpus for run in study.runs), default=0)
    if importlib.util.find_spec("torch") is None:
        return Finding("compute", False, "PyTorch is not installed", "run: make env")
    import torch

    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        return Finding("compute", True, f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {cores} CPU cores")
    advice = f"the study {study.tier} asks for {wanted} GPU per run: use --profile slurm" if wanted else ""
    return Finding("compute", not wanted, f"no GPU, {cores} CPU cores", advice)


def modules(package: str = "torch") -> Finding:
    """Whether Python finds a package compiled, or compiles it again at every start, which costs seconds of every job."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return Finding("modules", False, f"{package} is not installed", "run: make env")
    if Path(importlib.util.cache_from_source(spec.origin)).is_file():
        return Finding("modules", True, f"{package} is compiled")
    folder = Path(spec.origin).parents[1]
    if not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK):
        return Finding("modules", True, f"{package} is compiled at its next start")
    reason = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{folder} cannot be written"
    advice = f"run once: python -m compileall -q -j 0 {folder}"
    return Finding("modules", False, f"every start compiles {package} again: {reason}", advice)


def slurm() -> Finding:
    """Whether jobs can be submitted, and to which partitions."""
    if shutil.which("sbatch") is None:
        return Finding("slurm", True, "no sbatch on this machine", "on a cluster's login node: snakemake --profile slurm")
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%P %a %D"], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return Finding("slurm", False, "sinfo does not answer", "the controller is busy or down; ask with: scontrol ping")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        return Finding("slurm", False, f"sinfo fails: {reason}", "is this a login node? try: scontrol ping")
    return Finding("slurm", True, "; ".join(done.stdout.split("\n")).strip("; "))


def julia() -> Finding:
    """Whether PySR can run, with a Julia on the PATH or one that it fetches; the embedded engine is pyoperon."""
    from atlas.methods.symbolic_l2o.regression import has_pysr

    if has_pysr():
        program = shutil.which("julia")
        return Finding("julia", True, f"PySR can run, with {program or 'a Julia of its own, fetched at the first search'}")
    embedded = importlib.util.find_spec("pyoperon") is not None
    state = "no PySR: symbolic regression uses pyoperon" if embedded else "neither PySR nor pyoperon"
    return Finding("julia", embedded, state, "" if embedded else "run: pip install 'atlas[symbolic]'")


def dvc() -> Finding:
    """Check whether DVC is installed, and has a remote to push to."""
    if importlib.util.find_spec("dvc") is None:
        return Finding("dvc", False, "DVC is not installed", "run: pip install 'atlas[dvc]'")
    if any("remote" in text for text in _dvc_settings()):
        return Finding("dvc", True, "has a remote")
    return Finding(
        "dvc", False, "no remote is configured", "run: atlas doctor --fix (a folder beside the checkout), or see docs/dvc.md"
    )


def add_remote() -> None:
    """Configure a default DVC remote for this checkout alone, where it has none: ``$ATLAS_DVC_REMOTE`` or a folder beside it."""
    if not Path(".dvc").is_dir() or any("[core]" in text and "remote =" in text for text in _dvc_settings()):
        return
    remote = os.environ.get("ATLAS_DVC_REMOTE", str(Path.cwd().parent / "atlas-dvc-storage"))
    with Path(".dvc/config.local").open("a") as stream:
        stream.write(f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {remote}\n    verify = true\n")
    print(f"DVC pushes to and pulls from {remote}; change it with: dvc remote modify --local storage url FOLDER-OR-URL")


def _dvc_settings() -> list[str]:
    return [path.read_text() for path in (Path(".dvc/config"), Path(".dvc/config.local")) if path.is_file()]


def disk(study: Study) -> Finding:
    """Check that the checkout's disk has more than 5 GiB free."""
    free = shutil.disk_usage(study.root or Path()).free / 2**30
    good = free > 5
    return Finding("disk", good, f"{free:.0f} GiB free", "" if good else "free some space, or work in another folder")


def data(study: Study) -> Iterator[Finding]:
    """Check which of the study's datasets are acquired on this machine."""
    for name in study.datasets:
        here = (study.root / "data" / name / "manifest.json").is_file()
        yield Finding(
            "dataset", here, f"{name} {'acquired' if here else 'missing'}", "" if here else f"run: atlas acquire {name}"
        )
