"""A checkout of its own with a study of seconds, for the real Snakemake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

NOTHING = "Nothing to be done"
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


DIGITS = """\
    digits:
      protocol:
        backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 8, depth: 1, num_heads: 2, drop_path_rate: 0}
        epochs: 1
        warmup_epochs: 0
        batch_size: 128
        mixup: 0
        cutmix: 0
      methods: {deit: {}, attnscale: {lr_multiplier: 1}}
"""
FAILS = """
import pathlib
if pathlib.Path("broken").exists():
    import atlas.harness.execute as execute
    works = execute.carry_out
    def carry_out(run, verb):
        if run.cell.endswith(pathlib.Path("broken").read_text().strip()):
            raise RuntimeError("the method has a bug")
        return works(run, verb)
    execute.carry_out = carry_out
"""


def copy_checkout(source: Path, target: Path) -> Path:
    """Copy what a clone holds of the workflow, with the small study as the demo."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "dvc.yaml", "pyproject.toml", ".gitignore"):
        shutil.copy(source / name, target / name)
    for name in ("workflow", "profiles"):
        shutil.copytree(source / name, target / name)
    for claims in source.glob("src/atlas/methods/*/claims.yaml"):
        (target / claims.relative_to(source)).parent.mkdir(parents=True)
        shutil.copy(claims, target / claims.relative_to(source))
    (target / "config").mkdir()
    (target / "config" / "demo.yaml").write_text(SMALL)
    return target


def environment() -> dict[str, str]:
    """The environment of a person in the project's environment: its commands are on the path."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def atlas(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run the command line in a folder and return what it prints."""
    return called([sys.executable, "-m", "atlas", *arguments], folder, check)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    return called(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments], folder)


def clone(folder: Path, target: Path) -> Path:
    """Commit everything that git does not ignore, and clone it."""
    if not (folder / ".git").is_dir():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "all")
    git(folder.parent, "clone", "--quiet", str(folder), str(target))
    return target


def break_code(folder: Path, cells: str) -> dict[str, str]:
    """Make runs whose names end so fail with a bug of their method, no setting touched; removing ``broken`` repairs it."""
    (folder / "broken").write_text(cells)
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(FAILS)
    return {"PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])}


def called(command: list[str], folder: Path, check: bool = True, extra: dict[str, str] | None = None) -> str:
    """Run a command in a folder and return what it prints."""
    done = subprocess.run(command, cwd=folder, env={**environment(), **(extra or {})}, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def snakemake(folder: Path, *arguments: str, check: bool = True, extra: dict[str, str] | None = None) -> str:
    """Run Snakemake in a folder and return what it prints."""
    return called([str(Path(sys.executable).parent / "snakemake"), *arguments], folder, check, extra)


def planned(output: str) -> dict[str, int]:
    """Number of jobs per rule of a dry run."""
    table = output[output.index("Job stats:") :].split("\n\n")[0]
    counts = dict(re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE))
    return {name: int(count) for name, count in counts.items() if name not in ("total", "all")}


def rows(output: str, rule: str) -> set[str]:
    """Methods that a dry run would work on in a rule."""
    return set(re.findall(rf"rule {rule}:.*?method=([^,\s]+)", output, flags=re.DOTALL))
