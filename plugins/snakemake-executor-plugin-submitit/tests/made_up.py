"""Jobs, a queue and a clock that are made up, so that the executor can be tried without Snakemake, SLURM or waiting."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_submitit import executor, submission
from snakemake_executor_plugin_submitit.executor import Executor
from snakemake_executor_plugin_submitit.folder import write_json
from snakemake_executor_plugin_submitit.job import JobRun
from snakemake_executor_plugin_submitit.resources import Request
from snakemake_executor_plugin_submitit.schedulers import Queued, Scheduler, Submission
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.submission import tracked


class Clock:
    """Time that passes when somebody sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Job:
    """A job as the executor sees Snakemake's; ``rule``, ``output`` and so on as there."""

    def __init__(self, rule: str = "train", resources: dict[str, Any] | None = None, **wildcards: str) -> None:
        self.rule = SimpleNamespace(name=rule)
        self.wildcards_dict = wildcards
        self.output = [f"out/{rule}{''.join(wildcards.values())}.txt"]
        self.input = ["in.txt"]
        self.shellcmd = "make it"
        self.params = ["fast"]
        self.non_derived_params = self.params
        self.threads = 2
        self.resources = {"mem_mb": 100, "runtime": 5, **(resources or {})}
        self.log_error = Mock()

    def is_group(self) -> bool:
        return False

    def get_wait_for_files(self) -> list[str]:
        return self.input


class Group(Job):
    """Several jobs that Snakemake submits as one."""

    def __init__(self, name: str, jobs: Sequence[Job]) -> None:
        super().__init__()
        self.groupid, self.jobs = name, list(jobs)
        del self.rule, self.wildcards_dict

    def is_group(self) -> bool:
        return True


class Cluster(Scheduler):
    """A scheduler in memory: what it says is what :attr:`states` holds."""

    array_size = 500

    def __init__(self) -> None:
        self.states: dict[str, Queued] = {}
        self.submitted: list[tuple[Submission, list[JobRun]]] = []
        self.asked: list[list[str]] = []
        self.cancelled: list[list[str]] = []
        self.trouble: list[Exception] = []
        self.loses_answer: Exception | None = None
        self.full = False

    def submit(self, submission: Submission, runs: Sequence[JobRun]) -> list[str]:
        self._be_in_trouble()
        self.submitted.append((submission, list(runs)))
        number = len(self.submitted)
        ids = [f"{number}_{index}" for index in range(len(runs))] if len(runs) > 1 else [str(number)]
        self.states |= {job_id: Queued("PENDING", "Resources", submission.name) for job_id in ids}
        if self.loses_answer is not None:
            error, self.loses_answer = self.loses_answer, None
            raise error
        return ids

    def queue(self, ids: Sequence[str]) -> dict[str, Queued]:
        self._be_in_trouble()
        self.asked.append(list(ids))
        return dict(self.states)

    def cancel(self, ids: Sequence[str]) -> None:
        self._be_in_trouble()
        self.cancelled.append(list(ids))

    def room(self, request: Request) -> bool:
        return not self.full

    def become(self, state: str | None, reason: str = "") -> None:
        """Every job is in this state now; with None the queue has forgotten them."""
        self.states = {key: Queued(state, reason, job.name) for key, job in self.states.items()} if state else {}

    def _be_in_trouble(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)


class Following(Executor):
    """The executor, without the Snakemake around it: what it would report is kept in lists."""

    def __init__(self, cluster: Cluster, needed: Sequence[Job] = (), **settings: Any) -> None:
        self.dag_of = SimpleNamespace(needrun_jobs=lambda: list(needed), dependencies={}, needrun=lambda job: True)
        self.workflow = SimpleNamespace(
            executor_settings=ExecutorSettings(cluster="debug", **settings),
            dag=self.dag_of,
            remote_execution_settings=SimpleNamespace(immediate_submit=True),
        )
        self.logger = Mock()
        self.lock, self.wait_thread = threading.Lock(), Mock()
        self.active: list[SubmittedJobInfo] = []
        self.prepared: list[Any] = []
        self.done: list[Any] = []
        self.failed: list[tuple[Any, str]] = []
        self.__post_init__()
        self.scheduler = self.outbox.scheduler = cluster

    def run_job_pre(self, job: Any) -> None:
        self.prepared.append(job)

    def format_job_exec(self, job: Any) -> str:
        return f"snakemake {job.output[0]}"

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        self.active.append(job_info)

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        self.done.append(job_info.job)

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        self.failed.append((job_info.job, msg or ""))

    def step(self) -> list[SubmittedJobInfo]:
        """What Snakemake's thread does once: hand over what is active, and keep what comes back."""

        async def once() -> list[SubmittedJobInfo]:
            return [info async for info in self.check_active_jobs(self.active)]

        self.active = asyncio.run(once())
        return self.active

    def told(self, level: str = "info") -> list[str]:
        """What the log has been told, in words, at a level."""
        return [call.args[0] for call in getattr(self.logger, level).call_args_list]

    def events(self) -> list[dict[str, Any]]:
        """Lines of the ledger, without their times."""
        lines = [json.loads(line) for line in self.ledger.path.read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "time"} for line in lines]

    def ends(self, status: str, cause: str = "", **more: Any) -> None:
        """Every active job leaves a result file."""
        for info in self.active:
            entry = tracked(info).entry
            assert entry is not None
            write_json(self.folder.result(entry.ticket), {"status": status, "cause": cause, **more})

    def starts(self, times: int = 1) -> None:
        """Every active job notes that it was started so often."""
        for info in self.active:
            folder = self.folder.job(tracked(info).key)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "starts").write_text("start\n" * times)

    def beats(self, key: str) -> None:
        """A copy of a job holds its lease."""
        write_json(self.folder.job(key) / "lease", {"holder": "somebody"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The executor's and the outbox's time."""
    made = Clock()
    for module in (executor, submission):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory called ``study``, in which the test is."""
    folder = tmp_path / "study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
