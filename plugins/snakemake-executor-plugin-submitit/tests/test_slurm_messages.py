"""What a person is told about a job that failed."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

from snakemake.jobs import GroupJob

from snakemake_executor_plugin_submitit.executor import Executor


def test_the_reason_is_told_for_a_group_too() -> None:
    """Snakemake's own report of a group leaves the message out."""
    executor = Mock(spec=["logger"])
    job = Mock(spec=GroupJob)
    job.is_group.return_value = True
    Executor.print_job_error(executor, SimpleNamespace(job=job, external_jobid="7"), "it ran out of memory")  # type: ignore[arg-type]
    executor.logger.error.assert_called_once_with("it ran out of memory")
    job.log_error.assert_called_once()
