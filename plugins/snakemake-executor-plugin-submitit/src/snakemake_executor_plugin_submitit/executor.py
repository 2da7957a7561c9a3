"""Snakemake's view: jobs come in, are submitted or found again, followed, and reported.

One thread does everything that concerns the scheduler, a step every two seconds at most: submit what waits, look for result
files, and, when the interval is over, ask for the queue once. While the scheduler does not answer, the step is taken again with
growing pauses, and no job is declared anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings
from snakemake_interface_executor_plugins.utils import format_cli_arg

from .folder import Folder, read_json
from .identity import fingerprint_of, key_of, rule_name, title
from .lease import beating
from .ledger import Entry, Ledger
from .resources import request, requeue_count
from .schedulers import BusyError, Debug, Local, Queued, Scheduler, Slurm
from .session import Session
from .settings import ExecutorSettings
from .submission import Batch, Outbox, Tracked, adopt, tracked
from .verdict import ALIVE, WAIT, Act, Facts, Verdict, judge

common_settings = CommonSettings(
    job_deploy_sources=False,
    non_local_exec=True,
    implies_no_shared_fs=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
    pass_group_args=True,
)

STEP_SECONDS = 1.0
LONGEST_PAUSE = 60.0
SHOWN_LINES = 15
DISK_IS_FULL_BYTES = 4 * 2**20
# Reasons for which a job waits until someone does something.
WAITS_FOR_A_PERSON = {
    *("JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints"),
    *(
        "InvalidAccount",
        "InvalidQOS",
        "DependencyNeverSatisfied",
        "AssocMaxWallDurationPerJobLimit",
        "QOSMaxWallDurationPerJobLimit",
    ),
}


# What the node's SLURM daemon writes into the log of a job that it ends for its memory, whatever the state is then called.
MEMORY = re.compile(r"slurmstepd.*(exceeded.*memory limit|oom.kill|out.of.memory)", re.IGNORECASE)
# Content of the result files, by ticket.
Results = dict[str, dict[str, Any]]


class Executor(RemoteExecutor):
    """Runs the jobs of a Snakemake workflow through submitit; the package's description says how."""

    # The base class starts the thread before it calls `__post_init__`.
    _ready = False
    _wake = False
    _receiving = False

    def __post_init__(self) -> None:
        """Take the directory and read what an earlier session has left."""
        settings = self.workflow.executor_settings
        assert isinstance(settings, ExecutorSettings)
        self.settings = settings
        self.workdir = Path.cwd()
        self.folder = Folder.of(self.workdir)
        self.session = Session(self.folder, self.workdir)
        self.ledger = Ledger(self.folder.ledger)
        self.scheduler = _scheduler(settings)
        self.outbox = Outbox(self.folder, self.workdir, self.ledger, self.scheduler, self._refused, self._accepted)
        self._queue: dict[str, Queued] = {}
        self._busy_since: float | None = None
        self._pause = 0.0
        self._next_try = 0.0
        self._mentioned: set[str] = set()
        self._followed: dict[int, SubmittedJobInfo] = {}
        self._unfinished = self._open_entries()
        self._queue_asked = -math.inf if self._unfinished else time.monotonic()
        self._ready = True

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Take jobs that are ready; the thread submits them, or finds them in the queue, together."""
        self._receiving = True  # so that the thread does not send them off in two arrays
        try:
            for job in jobs:
                self.run_job_pre(job)
                self.run_job(job)
        finally:
            self._receiving = False
        self._wake = True

    def run_job(self, job: JobExecutorInterface) -> None:
        """Take one job that is ready, and decide whether a job of an earlier session already does its work."""
        resources = {name: value for name, value in job.resources.items() if not isinstance(value, type(None))}
        key, fingerprint = key_of(job), fingerprint_of(job)
        asked = request(resources, job.threads, requeue_count(self.settings.requeue), rule_name(job))
        own = Tracked(key, fingerprint, asked, self.format_job_exec(job))
        left = self._unfinished.pop(key, None)
        if left is not None and left.fingerprint == fingerprint and not self._made_anew(job):
            own.entry = left
            self.logger.info(f"{title(job)}: going on with {left.job_id or left.name} of an earlier run")
        elif left is not None:
            self._supersede(left)
        if own.entry is None:
            (self.folder.job(key) / "starts").unlink(missing_ok=True)
        info = SubmittedJobInfo(job, external_jobid=own.entry.job_id if own.entry else None, aux=own)  # type: ignore[arg-type]
        self._followed[id(info)] = info
        self.report_job_submission(info)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:  # type: ignore[override]
        """Take one step: submit, collect results, and ask for the queue when it is time."""
        self._wake = False
        if not self._ready:
            return
        results = self._results()
        if time.monotonic() >= self._next_try:
            try:
                self._step(active_jobs, results)
                self._answered()
            except (BusyError, OSError) as error:
                self._unanswered(str(error))
        for info in active_jobs:
            if id(info) not in self._followed:
                continue  # refused in this step
            verdict = self._verdict(info, results)
            if verdict.act is Act.COLLECT:
                self._collect(info)
            elif verdict.act is Act.FAIL:
                self._fail(info, verdict)
            else:
                if verdict.act is Act.AGAIN:
                    self._again(info, verdict)
                yield info

    async def sleep(self) -> None:
        """Pause until the next step, or until jobs come in."""
        end = time.monotonic() + STEP_SECONDS
        while time.monotonic() < end and not self._wake:
            await asyncio.sleep(0.05)

    def cancel(self) -> None:
        """Stop submitting, then cancel what has been submitted."""
        super().shutdown()
        self.cancel_jobs(list(self._followed.values()))
        self.session.end()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Take the jobs out of the queue; their programs get the stop signal and save their state."""
        entries = [entry for info in active_jobs if (entry := tracked(info).entry) is not None]
        ids = [entry.job_id for entry in entries if entry.job_id is not None]
        for pause in (1, 4, 10, 0):
            try:
                self.scheduler.cancel(ids)
                break
            except BusyError as error:
                if not pause:
                    self.logger.error(f"{error}\n{len(ids)} jobs could not be cancelled; later: scancel {' '.join(ids)}")
                    return
                time.sleep(pause)
        if entries:
            self.logger.info(f"Cancelled {len(entries)} jobs; the next run begins where they have saved their state.")
            self.ledger.close([entry.ticket for entry in entries], "cancelled")

    def shutdown(self) -> None:
        """Stop following; jobs that are still there are found again by the next session."""
        super().shutdown()
        self.session.end()

    def get_job_args(self, job: JobExecutorInterface, **kwargs: Any) -> str:
        """Arguments of the job's own Snakemake: unlike the base class's, they name no folder that ends with this session."""
        files = [str(path) for path in job.get_wait_for_files()]
        waiting = format_cli_arg("--wait-for-files", files, skip=not files)
        if len(files) > 20:
            path = self.folder.job(key_of(job)) / "inputs"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(files) + "\n")
            waiting = format_cli_arg("--wait-for-files-file", str(path))
        return f"{RealExecutor.get_job_args(self, job, **kwargs)} {waiting}"

    def additional_general_args(self) -> str:
        """The job's own Snakemake runs its one job itself, whatever profiles say."""
        return "--executor local"

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Print what happened, where the log is, and what to do; no more."""
        if msg and job_info.job.is_group():  # Snakemake drops the message of a group
            self.logger.error(msg)
        job_info.job.log_error(msg, external_jobid=job_info.external_jobid or "none", **kwargs)

    # What one step does

    def _step(self, infos: Sequence[SubmittedJobInfo], results: Results) -> None:
        ended = {ticket for ticket, result in results.items() if result["status"] != "interrupted"}
        followed = [info for info in infos if (entry := tracked(info).entry) is not None and entry.ticket not in ended]
        if followed and time.monotonic() - self._queue_asked >= self.settings.poll_seconds:
            self._ask(infos)
            self._settle([info for info in followed if info.external_jobid is None])
        if not self._receiving:
            self.outbox.send([info for info in infos if tracked(info).entry is None], lambda: self._ask(infos))

    def _ask(self, infos: Sequence[SubmittedJobInfo]) -> dict[str, Queued]:
        """Ask for the queue, once for all jobs."""
        ids = [entry.job_id for info in infos if (entry := tracked(info).entry) is not None and entry.job_id is not None]
        self._queue = self.scheduler.queue(ids)
        self._queue_asked = time.monotonic()
        for info in infos:
            own = tracked(info)
            if own.entry is None or own.entry.job_id is None:
                continue
            queued = self._queue.get(own.entry.job_id)
            if queued is not None and queued.state in ALIVE:
                own.gone_since = None
                self._mention_stuck(info, queued)
            elif own.gone_since is None:
                own.gone_since = self._queue_asked
        return self._queue

    def _settle(self, infos: Sequence[SubmittedJobInfo]) -> None:
        """Find out about submissions of an earlier session whose answers got lost: whether they were made."""
        adopted = adopt(list(self._of_earlier_sessions.values()), self._queue)
        for token, ids in adopted.items():
            self.ledger.accept(token, ids)
        for info in infos:
            own = tracked(info)
            assert own.entry is not None
            if own.entry.token in adopted:
                own.entry = replace(own.entry, job_id=adopted[own.entry.token][own.entry.index])
                info.external_jobid = own.entry.job_id
            elif not self._beats(own.key):
                self.ledger.close([own.entry.ticket], "never submitted")
                own.entry = None

    def _verdict(self, info: SubmittedJobInfo, results: Results) -> Verdict:
        own = tracked(info)
        if own.entry is None:
            return WAIT
        result = results.get(own.entry.ticket)
        status = result["status"] if result else None
        if status not in ("success", "failed") and (own.gone_since is None or self._busy_since is not None):
            return WAIT
        queued = self._queue.get(own.entry.job_id or "")
        grace = max(5.0, self.settings.poll_seconds / 2)
        return judge(
            Facts(
                status=status,
                cause=result["cause"] if result else "",
                state=queued.state if queued else None,
                settled=own.gone_since is not None and time.monotonic() - own.gone_since >= grace,
                beating=status is None and own.gone_since is not None and self._beats(own.key),
                starts=self.folder.starts(own.key),
                submissions=own.submissions,
                requeues=own.request.requeues,
            )
        )

    def _collect(self, info: SubmittedJobInfo) -> None:
        entry = tracked(info).entry
        assert entry is not None
        self._close(entry, "collected")
        with contextlib.suppress(OSError):
            if entry.job_id is not None:
                self.scheduler.clean(self.folder.logs(entry.rule), entry.job_id)
            self.folder.result(entry.ticket).unlink(missing_ok=True)
        del self._followed[id(info)]
        self.report_job_success(info)

    def _fail(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        entry = tracked(info).entry
        assert entry is not None
        self._close(entry, f"failed: {verdict.reason}")
        log = self.scheduler.log(self.folder.logs(entry.rule), entry.job_id) if entry.job_id else self.folder.logs(entry.rule)
        tail = _tail(log)
        places = [self.workdir, *sorted({(self.workdir / str(path)).parent for path in info.job.output})]
        if any(MEMORY.search(line) for line in tail):
            verdict = judge(Facts(None, state="OUT_OF_MEMORY"))
        lines = [f"{title(info.job)}, {entry.job_id} ({entry.name}): {verdict.reason}."]
        lines += [f"Log of the job: {_relative(log, self.workdir)}", *tail]
        lines += [f"What to do: {verdict.advice}." if verdict.advice else "", _space(places)]
        del self._followed[id(info)]
        self.report_job_error(info, msg="\n".join(filter(None, lines)))

    def _again(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        own = tracked(info)
        assert own.entry is not None
        self.logger.info(f"{title(info.job)}, {own.entry.job_id}: {verdict.reason}; submitting it again")
        self._close(own.entry, f"again: {verdict.reason}")
        own.entry, own.gone_since = None, None
        own.not_before = time.monotonic() + min(LONGEST_PAUSE, 2.0 * own.submissions)

    def _close(self, entry: Entry, why: str) -> None:
        try:
            self.ledger.close([entry.ticket], why)
        except OSError as error:
            self.logger.warning(f"cannot write to {self.ledger.path}: {error}")

    def _supersede(self, entry: Entry) -> None:
        """Stop a job of an earlier session whose result would no longer be the right one."""
        self.logger.info(f"{entry.name}: the job is another one now; cancelling the former")
        with contextlib.suppress(BusyError):
            queue = self.scheduler.queue([entry.job_id] if entry.job_id else [])
            ids = [job_id for job_id, job in queue.items() if job_id == entry.job_id and job.name in ("", entry.name)]
            if ids:
                self.scheduler.cancel(ids)
        self._close(entry, "superseded")
        self.folder.result(entry.ticket).unlink(missing_ok=True)

    # What an earlier session has left

    def _open_entries(self) -> dict[str, Entry]:
        """Jobs by key that an earlier session did not follow to their ends; those that nothing needs any more are closed."""
        self._of_earlier_sessions = self.ledger.open_entries()
        needed = {key_of(job) for job in self.workflow.dag.needrun_jobs()} if self._of_earlier_sessions else set()
        done = [
            entry.ticket
            for entry in self._of_earlier_sessions.values()
            if entry.key not in needed and self.folder.result(entry.ticket).exists() and not self._beats(entry.key)
        ]
        if done:
            self.ledger.close(done, "its outputs are there")
        left = {entry.key: entry for entry in self._of_earlier_sessions.values() if entry.ticket not in done}
        self._sweep(left)
        return left

    def _sweep(self, left: dict[str, Entry]) -> None:
        """Remove files of jobs that nobody asks about any more."""
        tickets = {entry.ticket for entry in left.values()}
        for path in self.folder.results.glob("*.json"):
            if path.stem not in tickets:
                path.unlink(missing_ok=True)
        for path in (self.folder.root / "jobs").glob("*"):
            if path.name not in left and not self._beats(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _made_anew(self, job: JobExecutorInterface) -> bool:
        """Whether an input of the job was made in this session, so that what an earlier session started has read older ones."""
        dag = self.workflow.dag
        try:
            makers = [maker for member in (job.jobs if job.is_group() else [job]) for maker in dag.dependencies[member]]  # type: ignore[attr-defined]
        except (AttributeError, KeyError):
            return False
        return any(dag.needrun(maker) for maker in makers if not job.is_group() or maker not in job.jobs)  # type: ignore[attr-defined]

    def _beats(self, key: str) -> bool:
        return beating(self.folder.job(key) / "lease")

    def _results(self) -> Results:
        """What jobs have left, by ticket, after one look into one folder."""
        try:
            paths = [path for path in self.folder.results.iterdir() if path.suffix == ".json"]
        except OSError:
            return {}
        return {path.stem: result for path in paths if (result := read_json(path)) is not None and "status" in result}

    # What the scheduler says, or does not say

    def _accepted(self, batch: Batch) -> None:
        first, name = batch.ids[0], batch.submission.name
        log = _relative(self.scheduler.log(batch.submission.logs, first), self.workdir)
        if len(batch.ids) == 1:
            self.logger.info(f"Submitted {title(batch.jobs[0].job)} as {first} ({name}), log: {log}")
            return
        array = first.partition("_")[0]
        logs = log.with_name(log.name.replace(first, f"{array}_*"))
        self.logger.info(f"Submitted {len(batch.ids)} jobs of {batch.entries[0].rule} as {array} ({name}), logs: {logs}")

    def _refused(self, info: SubmittedJobInfo, message: str) -> None:
        del self._followed[id(info)]
        wanted = (*tracked(info).request.parameters, *tracked(info).request.extra)
        asked = ", ".join(f"{name}={value}" for name, value in wanted)
        self.report_job_error(
            info,
            msg=f"{title(info.job)}: the scheduler refuses it: {message}\n"
            f"It asked for {asked}; change the rule's resources or the profile.",
        )

    def _unanswered(self, message: str) -> None:
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
            self.logger.warning(
                f"The scheduler does not answer; waiting for it, for up to {self.settings.patience:g} minutes: {message}"
            )
        if now - self._busy_since > 60 * self.settings.patience:
            raise WorkflowError(
                f"the scheduler has not answered for {self.settings.patience:g} minutes: {message}\n"
                "Jobs in its queue go on; start the workflow again to find them."
            )
        self._pause = min(LONGEST_PAUSE, max(2.0, 2 * self._pause))
        self._next_try = now + self._pause

    def _answered(self) -> None:
        if self._busy_since is not None:
            self.logger.info(f"The scheduler answers again, after {time.monotonic() - self._busy_since:.0f} seconds.")
            self._queue_asked = 0.0  # what it said before is old
        self._busy_since, self._pause = None, 0.0

    def _mention_stuck(self, info: SubmittedJobInfo, queued: Queued) -> None:
        if queued.state == "PENDING" and queued.reason in WAITS_FOR_A_PERSON:
            entry = tracked(info).entry
            mark = f"{entry.token if entry else ''}/{queued.reason}"
            if mark not in self._mentioned:
                self._mentioned.add(mark)
                self.logger.warning(
                    f"{title(info.job)}, {info.external_jobid}, waits for someone: {queued.reason}. "
                    f"Release it (scontrol release {info.external_jobid}) or cancel it (scancel {info.external_jobid})."
                )


def _scheduler(settings: ExecutorSettings) -> Scheduler:
    if settings.cluster == "slurm":
        return Slurm(settings.array_size, settings.array_parallel, settings.stop_seconds)
    return Local(settings.stop_seconds) if settings.cluster == "local" else Debug()


def _relative(path: Path, workdir: Path) -> Path:
    return path.relative_to(workdir) if path.is_relative_to(workdir) else path


def _tail(path: Path) -> list[str]:
    """Return the last lines of a job's log, indented, or why there are none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ["    (it cannot be read: the job did not come as far as opening it, or the disk is full)"]
    return [f"    {line}" for line in lines[-SHOWN_LINES:]] or ["    (empty)"]


def _space(places: Iterable[Path]) -> str:
    """Return a remark about the first of these folders whose disk is full; empty where none is."""
    for folder in places:
        with contextlib.suppress(OSError):
            disk = os.statvfs(folder)
            free = disk.f_bavail * disk.f_frsize
            if free < DISK_IS_FULL_BYTES:
                return f"The disk of {folder} is full: {free // 2**20} MiB are left."
    return ""
