"""Fixtures of the SLURM executor's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_slurm import RealSlurm, missing

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(scope="session")
def real_slurm() -> Iterator[RealSlurm]:
    """A SLURM of one node, for the session."""
    if reason := missing():
        pytest.skip(reason)
    with RealSlurm(cpus=4) as slurm:
        yield slurm


@pytest.fixture
def slurm_environment(real_slurm: RealSlurm) -> dict[str, str]:
    """Variables under which Snakemake talks to the real SLURM."""
    return {**real_slurm.environment, "PYTHONPATH": str(SOURCE)}


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """Variables of a machine without SLURM."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
