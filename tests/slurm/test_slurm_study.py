"""A study through ``snakemake --profile slurm`` on a real SLURM gives what the local run gives, bit for bit."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from real_slurm import RealSlurm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from workflow_helpers import copy_checkout, snakemake

STUDY = """
description: A study of a minute.
seeds: [0, 1]
batch_seeds: false
resources: {threads: 1, memory_mb: 2000, minutes: 10}
image-classification:
  datasets:
    stacks:
      data: null
      methods:
        plain: {method: random-stack, stack: attention, depth: 8, repeats: 1}
    digits:
      protocol:
        backbone: {img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0}
        epochs: 2
        warmup_epochs: 1
        batch_size: 64
        learning_rate: 3.0e-3
        mixup: 0
        cutmix: 0
      methods:
        deit: {}
        attnscale: {lr_multiplier: 10}
"""


@pytest.mark.slow
@pytest.mark.slurm
def test_the_same_tables_as_the_local_run(
    checkout: Path, tmp_path: Path, real_slurm: RealSlurm, slurm_environment: dict[str, str]
) -> None:
    folders = {name: copy_checkout(checkout, tmp_path / name) for name in ("local", "slurm")}
    for folder in folders.values():
        shutil.copytree(checkout / "slurm", folder / "slurm")
        (folder / "config" / "demo.yaml").write_text(STUDY)
    snakemake(folders["local"], "--cores", "2")
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--submitit-poll-seconds", "5"]
    done = subprocess.run(command, cwd=folders["slurm"], env=slurm_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Submitted" in done.stderr
    metrics = sorted(path.relative_to(folders["local"]) for path in folders["local"].glob("results/demo/runs/**/metrics.json"))
    assert len(metrics) == 6
    for path in metrics:
        contents = [json.loads((folder / path).read_text()) for folder in folders.values()]
        numbers = [{name: value for name, value in content["metrics"].items() if "seconds" not in name} for content in contents]
        assert numbers[0] == numbers[1], path
    for path in ("claims.csv", "tables/image-classification/stacks.csv"):
        assert filecmp.cmp(folders["local"] / "results/demo" / path, folders["slurm"] / "results/demo" / path, shallow=False), (
            path
        )
    nothing = subprocess.run([*command, "-n"], cwd=folders["slurm"], env=slurm_environment, capture_output=True, text=True)
    assert "Nothing to be done" in nothing.stdout + nothing.stderr
