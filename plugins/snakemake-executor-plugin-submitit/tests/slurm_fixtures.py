"""Fixtures for tests on a real SLURM and on none; a ``conftest.py`` imports those that its folder needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_slurm import RealSlurm, missing

SOURCE = Path(__file__).resolve().parents[1] / "src"


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
    return {**real_slurm.environment, "PYTHONPATH": _python_path()}


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """Variables of a machine without SLURM."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"}


def _python_path() -> str:
    """The plugin's own source, before whatever the caller has put there."""
    return os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
