"""Whole workflows: on this machine everywhere, and on a real SLURM where it is installed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from faults import CASES, run
from real_slurm import RealSlurm, wait_until
from workload import Workload


def test_local_cluster_outlives_a_killed_snakemake(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    work = Workload(tmp_path / "local", plain_environment, jobs=1, options=["--submitit-cluster", "local"])
    process = work.start()
    work.wait_for_starts()
    process.kill()
    process.wait()
    assert work.finish(work.start()) == 0, work.log
    assert work.wrong() == []
    assert work.starts("run0") == 1, "the job of the killed Snakemake was followed, not started anew"


@pytest.mark.slow
def test_debug_cluster(tmp_path: Path, plain_environment: dict[str, str]) -> None:
    work = Workload(tmp_path / "debug", plain_environment, options=["--submitit-cluster", "debug"])
    assert work.finish(work.start()) == 0, work.log
    assert work.wrong() == []


@pytest.mark.slurm
def test_slurm_jobs_leave_as_one_array_and_are_found_again(
    tmp_path: Path, real_slurm: RealSlurm, slurm_environment: dict[str, str]
) -> None:
    work = Workload(tmp_path / "study", slurm_environment, jobs=3, steps=120)
    before = real_slurm.calls()
    process = work.start()
    wait_until(lambda: len(real_slurm.queue()) == 3, 30, "array in the queue")
    names = set(real_slurm.run("squeue", "-h", "-o", "%j").split())
    assert len(names) == 1
    assert names.pop().startswith("study.train."), "a person recognises it"
    work.wait_for_starts()
    process.kill()
    process.wait()
    assert work.finish(work.start()) == 0, work.log
    assert work.wrong() == []
    assert [work.starts(name) for name in work.names] == [1, 1, 1]
    assert real_slurm.calls()["sbatch"] - before.get("sbatch", 0) == 1


@pytest.mark.slurm
def test_slurm_refusal_is_one_clear_error(tmp_path: Path, real_slurm: RealSlurm, slurm_environment: dict[str, str]) -> None:
    work = Workload(tmp_path / "study", slurm_environment, jobs=1, resources="mem_mb=200, slurm_partition='nowhere'")
    began = time.monotonic()
    assert work.finish(work.start()) == 1
    assert time.monotonic() - began < 30
    assert "the scheduler refuses it" in work.log
    assert "invalid partition" in work.log
    assert "partition=nowhere" in work.log


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("name", CASES)
def test_slurm_faults(name: str, real_slurm: RealSlurm) -> None:
    _, outcome, _ = run(name)
    assert "WRONG" not in outcome
