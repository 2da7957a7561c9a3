"""A checkout of its own with a study of seconds, for the real Snakemake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SMALL = """
description: A study of seconds.
seeds: [0, 1]
batch_seeds: true
resources: {threads: 1, memory_mb: 500, minutes: 1}
image-classification:
  datasets:
    stacks:
      data: null
      methods:
        plain: {method: random-stack, stack: attention, depth: 8, repeats: 1}
        residual: {method: random-stack, depth: 8, repeats: 1}
"""


def copy_checkout(source: Path, target: Path) -> Path:
    """Copy what a clone holds of the workflow, with the small study as the demo."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "dvc.yaml", "pyproject.toml"):
        shutil.copy(source / name, target / name)
    for name in ("workflow", "profiles"):
        shutil.copytree(source / name, target / name)
    (target / "config").mkdir()
    (target / "config" / "demo.yaml").write_text(SMALL)
    return target


def environment() -> dict[str, str]:
    """The environment of a person in the project's environment: its commands are on the path."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def snakemake(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run Snakemake in a folder and return what it prints."""
    command = [str(Path(sys.executable).parent / "snakemake"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return done.stdout + done.stderr
