"""Snakemake's own suite for executor plugins: one workflow of single jobs, one of groups of jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest
from real_slurm import RealSlurm, missing
from snakemake.common.tests import TestWorkflowsLocalStorageBase

from snakemake_executor_plugin_submitit.settings import ExecutorSettings


class _Suite(TestWorkflowsLocalStorageBase):  # type: ignore[misc]
    """The suite, on one of the executor's three clusters."""

    cluster: str

    def get_executor(self) -> str:
        return "submitit"

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(cluster=self.cluster, poll_seconds=1.0)


def _become(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Snakemake in this process as if it had been typed in another environment."""
    for name, value in environment.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)


@pytest.mark.slow
class TestLocal(_Suite):
    __test__ = True
    cluster = "local"

    @pytest.fixture(autouse=True)
    def _environment(self, plain_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        _become(plain_environment, monkeypatch)


class TestDebug(TestLocal):
    cluster = "debug"


@pytest.mark.slurm
class TestSlurm(_Suite):
    __test__ = True
    cluster = "slurm"

    @pytest.fixture(scope="class")
    def real_slurm(self) -> Iterator[RealSlurm]:
        """A SLURM that does not enforce memory: a rule of the suite asks for 5 MB, in which no Python starts."""
        if reason := missing():
            pytest.skip(reason)
        with RealSlurm(memory_limit=False) as slurm:
            yield slurm

    @pytest.fixture(autouse=True)
    def _environment(self, slurm_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        _become(slurm_environment, monkeypatch)
