"""Where jobs run: SLURM, this machine, or this process, behind the same three verbs.

All three submit through submitit. A scheduler answers, refuses, or is not there at the moment; the last is an exception of its
own, :class:`BusyError`, after which the same is asked again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import submitit
from snakemake_interface_common.exceptions import WorkflowError

from .job import JobRun
from .resources import Request

# What a scheduler says that is overloaded, restarting or out of reach; anything else is an answer.
UNAVAILABLE = re.compile(
    r"unable to contact|socket timed out|temporarily|connection refused|connect failure|communication connection|zero bytes"
    r"|transport endpoint|timed? ?out|munge|authentication|slurmdbd|connection reset|no route to host|unreachable"
    r"|try again|resource busy|job submit limit|too many|host is down|backup controller|unexpected message",
    re.IGNORECASE,
)


class BusyError(Exception):
    """The scheduler does not answer at the moment."""


class RefusedError(Exception):
    """The scheduler has answered that it will not take a job."""


@dataclass(frozen=True)
class Queued:
    """What the queue says about one job."""

    state: str
    reason: str
    name: str


@dataclass(frozen=True)
class Submission:
    """Jobs that leave together: one rule, one request, one name in the queue."""

    name: str
    request: Request
    logs: Path


class Scheduler(ABC):
    """Base class of the places where jobs run."""

    # Most jobs in one submission.
    array_size = 1

    @abstractmethod
    def submit(self, submission: Submission, runs: Sequence[JobRun]) -> list[str]:
        """Hand jobs over and return their ids.

        Raises
        ------
        BusyError
            It is not known whether the jobs were taken.
        RefusedError
            They were not, and will not be.
        """

    @abstractmethod
    def queue(self, ids: Sequence[str]) -> dict[str, Queued]:
        """Return what is known about jobs, in one query; jobs that are missing have long ended.

        Raises
        ------
        BusyError
            There is no answer at the moment.
        """

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """Stop jobs and take them out of the queue.

        Raises
        ------
        BusyError
            There is no answer at the moment.
        """

    def log(self, logs: Path, job_id: str) -> Path:
        """Return the path of the file into which a job prints."""
        return submitit.core.utils.JobPaths(logs, job_id).stdout

    def clean(self, logs: Path, job_id: str) -> None:
        """Remove submitit's files of a job that is collected; its log stays."""
        paths = submitit.core.utils.JobPaths(logs, job_id)
        for path in (paths.submitted_pickle, paths.result_pickle):
            path.unlink(missing_ok=True)

    def room(self, request: Request) -> bool:
        """Return whether a job with this request can be submitted now; where it cannot, it waits."""
        return True


class Slurm(Scheduler):
    """A SLURM cluster, with or without accounting.

    Parameters
    ----------
    array_size : int
        Most jobs in an array.
    array_parallel : int
        Most jobs of an array that run at a time.
    stop_seconds : int
        Seconds before the time limit at which a job is told.
    """

    def __init__(self, array_size: int, array_parallel: int, stop_seconds: int) -> None:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise WorkflowError("no sbatch on this machine; type this on a login node, or use --submitit-cluster local")
        self.array_size = array_size
        self.array_parallel = array_parallel
        self.stop_seconds = stop_seconds
        self._accounting = shutil.which("sacct") is not None

    def submit(self, submission: Submission, runs: Sequence[JobRun]) -> list[str]:
        """Hand jobs over as one array with one call of ``sbatch``."""
        # The shell becomes Python, so that signals for the batch script reach it; no step, so that starting needs no controller.
        executor = submitit.SlurmExecutor(submission.logs, python=f"exec {shlex.quote(sys.executable)}")
        try:
            executor.update_parameters(**self._parameters(submission))
            jobs = executor.submit_array(list(runs))
        except submitit.core.utils.FailedJobError as error:
            message = str(error).strip()
            if UNAVAILABLE.search(message):
                raise BusyError(message) from None
            raise RefusedError(message or "sbatch failed without a word") from None
        except submitit.core.utils.FailedSubmissionError as error:
            raise BusyError(str(error)) from None
        except OSError as error:
            raise BusyError(f"cannot submit: {error}") from None
        return [job.job_id for job in jobs]

    def _parameters(self, submission: Submission) -> dict[str, Any]:
        request = submission.request
        seconds = self.stop_seconds
        if request.minutes is not None:
            seconds = max(1, min(seconds, 20 * request.minutes))
        options = {
            "signal": f"B:USR2@{seconds}",
            ("requeue" if request.requeues else "no-requeue"): True,
            **dict(request.extra),
        }
        return {
            **dict(request.parameters),
            "job_name": submission.name,
            "time": request.minutes,
            "array_parallelism": self.array_parallel,
            "use_srun": False,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": options,
        }

    def queue(self, ids: Sequence[str]) -> dict[str, Queued]:
        """Ask ``squeue`` once for every job of this user, and ``sacct``, if there is one, for those that it has forgotten."""
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.geteuid()}", "--format=%i|%T|%r|%j"]
        states = {}
        for line in _call_scheduler(command).splitlines():
            fields = line.strip().split("|", 3)
            if len(fields) == 4:
                states[fields[0]] = Queued(*fields[1:])
        forgotten = [job_id for job_id in ids if job_id not in states]
        if forgotten and self._accounting:
            states |= self._accounted(forgotten)
        return states

    def _accounted(self, ids: Sequence[str]) -> dict[str, Queued]:
        arrays = sorted({job_id.partition("_")[0] for job_id in ids})
        options = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,JobName"]
        try:
            text = _call_scheduler(["sacct", *options, "--jobs", ",".join(arrays)])
        except BusyError:
            self._accounting = False
            return {}
        states = {}
        for line in text.splitlines():
            job_id, _, rest = line.partition("|")
            state, _, name = rest.partition("|")
            if job_id in ids and state:
                states[job_id] = Queued(state.split()[0], "", name)
        return states

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs, with one call for many."""
        for first in range(0, len(ids), 500):
            with contextlib.suppress(RefusedError):  # some had ended already
                _call_scheduler(["scancel", "--quiet", *ids[first : first + 500]])


class Local(Scheduler):
    """Processes of this machine: the same path without SLURM. Jobs outlive the Snakemake that started them."""

    def __init__(self, stop_seconds: int) -> None:
        self.stop_seconds = stop_seconds
        self.cores = os.cpu_count() or 1
        self._started: dict[str, tuple[Any, int]] = {}

    def submit(self, submission: Submission, runs: Sequence[JobRun]) -> list[str]:
        """Start one process per job, which outlives this Snakemake."""
        executor = submitit.LocalExecutor(submission.logs)
        minutes = submission.request.minutes or 60 * 24 * 365
        executor.update_parameters(
            timeout_min=minutes, signal_delay_s=min(self.stop_seconds, 20 * minutes), stderr_to_stdout=True, tasks_per_node=1
        )
        # Ctrl-C in the terminal reaches every process that it started; ours are told by `cancel`, and not killed half-way.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            jobs = [executor.submit(run) for run in runs]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        self._started |= {job.job_id: (job, submission.request.cores) for job in jobs}
        return [job.job_id for job in jobs]

    def queue(self, ids: Sequence[str]) -> dict[str, Queued]:
        """Return those of the jobs whose processes still run."""
        states = {}
        for job_id in ids:
            if self._runs(job_id):
                states[job_id] = Queued("RUNNING", "", "")
            else:
                self._started.pop(job_id, None)
        return states

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask the processes to end; they pass it on to their jobs."""
        for job_id in filter(self._runs, ids):
            with contextlib.suppress(psutil.Error):
                psutil.Process(int(job_id)).terminate()

    def room(self, request: Request) -> bool:
        """Whether cores are left; a job that wants more than there are runs alone."""
        self.queue(list(self._started))
        taken = sum(cores for _, cores in self._started.values())
        return taken == 0 or taken + request.cores <= self.cores

    def _runs(self, job_id: str) -> bool:
        if job_id in self._started:
            process = self._started[job_id][0]._process
            return process is not None and process.poll() is None
        try:
            process = psutil.Process(int(job_id))
            return process.status() != psutil.STATUS_ZOMBIE and "submitit.local._local" in process.cmdline()
        except (psutil.Error, ValueError):
            return False


class Debug(Scheduler):
    """Jobs one after the other in Snakemake's own process; a debugger set into the executor stops in it."""

    def __init__(self) -> None:
        # submitit 1.5.4 names a job by its address in memory, which another one gets once nobody holds the first any more
        self._named: list[submitit.Job[Any]] = []

    def submit(self, submission: Submission, runs: Sequence[JobRun]) -> list[str]:
        """Run the jobs one after the other, to their ends, before returning."""
        submission.logs.mkdir(parents=True, exist_ok=True)
        executor = submitit.DebugExecutor(submission.logs)
        ids = []
        for run in runs:
            job = executor.submit(run)
            self._named.append(job)
            with contextlib.suppress(SystemExit):
                job.results()
            ids.append(job.job_id)
        return ids

    def queue(self, ids: Sequence[str]) -> dict[str, Queued]:
        """Return an empty queue: jobs end before ``submit`` returns."""
        return {}

    def cancel(self, ids: Sequence[str]) -> None:
        """Do nothing: jobs end before ``submit`` returns."""


def _call_scheduler(command: Sequence[str], timeout: float = 120) -> str:
    """Run a command of the scheduler and return what it prints."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=_unformatted(os.environ),
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise BusyError(f"{command[0]} has not answered for {timeout:.0f} seconds") from None
    except OSError as error:
        raise BusyError(f"{command[0]}: {error}") from None
    if done.returncode:
        message = done.stderr.strip() or f"{command[0]} failed without a word"
        if command[0] == "scancel" and not UNAVAILABLE.search(message):
            raise RefusedError(message)
        raise BusyError(message)
    return done.stdout


def _unformatted(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which squeue, sacct and scancel print what their options say, whatever the user has set for the eye."""
    return {name: value for name, value in environment.items() if not name.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
