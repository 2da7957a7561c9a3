"""A run over two nodes of a real SLURM: two ``slurmd`` of this machine, preempted once, and the same numbers as a local run."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_slurm import RealSlurm, missing, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from workflow_helpers import copy_checkout, environment

STUDY = """
description: A study on two nodes.
seeds: [0]
batch_seeds: false
resources: {{threads: 1, memory_mb: 3000, minutes: 60, {resources}}}
image-classification:
  datasets:
    digits:
      protocol:
        backbone: {{img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1}}
        epochs: {epochs}
        warmup_epochs: 1
        batch_size: 64
        learning_rate: 3.0e-3
        log_every: 100
      methods:
        deit: {{}}
"""
CELL = "image-classification/digits/deit"


@pytest.fixture
def two_nodes() -> Iterator[RealSlurm]:
    if reason := missing():
        pytest.skip(reason)
    with RealSlurm(cpus=2, nodes=2) as slurm:
        yield slurm


def prepared(checkout: Path, folder: Path, resources: str, epochs: int) -> Path:
    copy_checkout(checkout, folder)
    shutil.copytree(checkout / "slurm", folder / "slurm")
    (folder / "config" / "demo.yaml").write_text(STUDY.format(resources=resources, epochs=epochs))
    return folder


def started(folder: Path, variables: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--submitit-poll-seconds", "5", *options]
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(1800)
def test_a_run_on_two_nodes_is_preempted_and_goes_on(checkout: Path, tmp_path: Path, two_nodes: RealSlurm) -> None:
    epochs = 30
    local = prepared(checkout, tmp_path / "local", "ranks: 2", epochs)
    there = prepared(checkout, tmp_path / "there", "nodes: 2, ranks: 1", epochs)
    paths = os.pathsep.join(sys.path)
    variables = {**two_nodes.environment, "PYTHONPATH": paths}
    snakemake = started(there, variables)
    states = there / "logs/demo" / CELL / "seed0/ranks/seed0-train"
    try:
        wait_until(lambda: len(list(states.glob("rank*.json"))) == 2, 500, "two ranks")
        nodes = {json.loads(path.read_text())["node"] for path in states.glob("rank*.json")}
        assert nodes == {"node1", "node2"}
        log = there / "logs/demo" / CELL / "seed0/train.log"
        wait_until(lambda: " train " in log.read_text(), 500, "a line of progress")
        two_nodes.run("sbatch", "-p", "urgent", "-N", "2", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 2")
        output, _ = snakemake.communicate(timeout=900)
    finally:
        snakemake.kill()
    assert snakemake.returncode == 0, output + log.read_text()
    assert "going on with train after step" in log.read_text(), "the state was saved before SLURM's patience was over"
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2"], cwd=local, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((folder / "results/demo/runs" / CELL / "seed0/metrics.json").read_text()) for folder in (local, there)]
    assert found[0]["metrics"] == found[1]["metrics"]
    table = f"results/demo/tables/{CELL.rpartition('/')[0]}.csv"
    assert filecmp.cmp(local / table, there / table, shallow=False)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(1800)
def test_more_nodes_than_there_are_is_one_line(checkout: Path, tmp_path: Path, two_nodes: RealSlurm) -> None:
    there = prepared(checkout, tmp_path / "there", "nodes: 3, ranks: 1", 2)
    snakemake = started(there, {**two_nodes.environment, "PYTHONPATH": os.pathsep.join(sys.path)})

    def said() -> list[str]:
        texts = [path.read_text() for path in (there / ".snakemake/log").glob("*.log")]
        return [line for text in texts for line in text.splitlines() if "PartitionNodeLimit" in line]

    try:
        wait_until(lambda: said() or snakemake.poll() is not None, 500, "a word about the nodes")
        (line,) = said()
    finally:
        snakemake.send_signal(signal.SIGINT)  # its job is cancelled
        snakemake.communicate(timeout=120)
    assert "waits for someone: PartitionNodeLimit" in line
    assert not (there / "logs/demo" / CELL / "seed0/train.log").exists(), "nothing was trained"
