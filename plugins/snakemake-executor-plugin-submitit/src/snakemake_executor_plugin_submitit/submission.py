"""The queue of jobs that wait to be handed to the scheduler, and the handing over.

Nothing here fails because the scheduler is busy: a batch whose fate is unknown is looked up in the queue by its name before it is
handed over a second time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from .folder import Folder
from .identity import queue_name, rule_name
from .job import JobRun
from .ledger import Entry, Ledger
from .resources import Request
from .schedulers import Queued, RefusedError, Scheduler, Submission


@dataclass
class Tracked:
    """What the executor knows about a job of this session; rides along in Snakemake's job information.

    Attributes
    ----------
    key, fingerprint : str
        See :class:`.ledger.Entry`.
    entry : Entry or None
        The submission that is followed; ``None`` while the job waits to be submitted.
    submissions : int
        How often this session has submitted it.
    not_before : float
        Earliest time of the next submission, on the monotonic clock.
    gone_since : float or None
        Since when the queue has not known the job as alive.
    """

    key: str
    fingerprint: str
    request: Request
    command: str
    entry: Entry | None = None
    submissions: int = 0
    not_before: float = 0.0
    gone_since: float | None = None


@dataclass
class Batch:
    """Jobs that leave as one array, from before the scheduler is asked until it has answered."""

    jobs: list[SubmittedJobInfo]
    entries: list[Entry]
    submission: Submission
    asked: bool = False
    ids: list[str] = field(default_factory=list)


def tracked(info: SubmittedJobInfo) -> Tracked:
    """Return what the executor itself knows about a job that Snakemake has handed to it."""
    assert isinstance(info.aux, Tracked)
    return info.aux


class Outbox:
    """Groups ready jobs into batches and hands them over.

    Parameters
    ----------
    refuse : callable
        Called with a job that the scheduler will not take, and its message.
    accepted : callable
        Called with a batch that the scheduler has taken.
    """

    def __init__(
        self,
        folder: Folder,
        workdir: Path,
        ledger: Ledger,
        scheduler: Scheduler,
        refuse: Callable[[SubmittedJobInfo, str], None],
        accepted: Callable[[Batch], None],
    ) -> None:
        self.folder, self.workdir, self.ledger, self.scheduler = folder, workdir, ledger, scheduler
        self.refuse, self.accepted = refuse, accepted
        self.waiting: list[Batch] = []

    def send(self, infos: Iterable[SubmittedJobInfo], known: Callable[[], dict[str, Queued]]) -> None:
        """Submit every job that may leave now.

        Parameters
        ----------
        infos : iterable of SubmittedJobInfo
            Jobs without an entry.
        known : callable
            Asks the scheduler for its queue.

        Raises
        ------
        BusyError
            The scheduler is not there at the moment; call again later.
        """
        self.waiting += self._batches(infos)
        while self.waiting:
            batch = self.waiting[0]
            if batch.asked:
                self._look_up(batch, known())
            if not batch.ids:
                if not self.scheduler.room(batch.submission.request):
                    return
                self._hand_over(batch)
            if self.waiting and self.waiting[0] is batch:
                self.waiting.pop(0)

    def _batches(self, infos: Iterable[SubmittedJobInfo]) -> list[Batch]:
        groups: dict[tuple[str, Request], list[SubmittedJobInfo]] = {}
        held = {id(info) for batch in self.waiting for info in batch.jobs}
        now = time.monotonic()
        for info in infos:
            if id(info) not in held and tracked(info).not_before <= now:
                groups.setdefault((rule_name(info.job), tracked(info).request), []).append(info)
        size = self.scheduler.array_size
        return [
            self._batch(rule, request, jobs[first : first + size])
            for (rule, request), jobs in groups.items()
            for first in range(0, len(jobs), size)
        ]

    def _batch(self, rule: str, request: Request, jobs: list[SubmittedJobInfo]) -> Batch:
        token = secrets.token_hex(4)
        name = queue_name(self.workdir, jobs[0].job, token, alone=len(jobs) == 1)
        pairs = [(tracked(info).key, tracked(info).fingerprint) for info in jobs]
        entries = self.ledger.submit(token, name, rule, pairs)
        return Batch(jobs, entries, Submission(name, request, self.folder.logs(rule)))

    def _look_up(self, batch: Batch, queue: dict[str, Queued]) -> None:
        """Find out, by its name in the queue, whether a batch was taken although the scheduler's answer got lost."""
        batch.ids = ids_by_name(queue, batch.submission.name, len(batch.jobs))
        if batch.ids:
            self._take(batch)

    def _hand_over(self, batch: Batch) -> None:
        runs = [
            JobRun(
                folder=self.folder,
                workdir=str(self.workdir),
                key=entry.key,
                ticket=entry.ticket,
                command=tracked(info).command,
                requeues=batch.submission.request.requeues,
            )
            for info, entry in zip(batch.jobs, batch.entries, strict=True)
        ]
        batch.asked = True
        try:
            batch.ids = self.scheduler.submit(batch.submission, runs)
        except RefusedError as error:
            self.ledger.refuse(batch.entries[0].token)
            self.waiting.remove(batch)
            for info in batch.jobs:
                self.refuse(info, str(error))
            return
        self._take(batch)

    def _take(self, batch: Batch) -> None:
        self.ledger.accept(batch.entries[0].token, batch.ids)
        for info, entry, job_id in zip(batch.jobs, batch.entries, batch.ids, strict=True):
            own = tracked(info)
            own.entry, own.gone_since = replace(entry, job_id=job_id), None
            own.submissions += 1
            info.external_jobid = job_id
        self.accepted(batch)


def ids_by_name(queue: dict[str, Queued], name: str, count: int) -> list[str]:
    """Ids of a submission's jobs, in order, from its name in the queue; empty where the queue holds none.

    Jobs of an array that have ended and been forgotten are counted in: their ids follow from the array's.
    """
    named = [job_id for job_id, job in queue.items() if job.name == name]
    if not named:
        return []
    array = named[0].partition("_")[0]
    return [array] if count == 1 and "_" not in named[0] else [f"{array}_{index}" for index in range(count)]


def adopt(entries: Sequence[Entry], queue: dict[str, Queued]) -> dict[str, list[str]]:
    """Ids, by token, of an earlier session's submissions whose ids it did not come to write down."""
    uncertain: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.job_id is None:
            uncertain.setdefault(entry.token, []).append(entry)
    ids_of = {
        token: ids_by_name(queue, group[0].name, 1 + max(entry.index for entry in group)) for token, group in uncertain.items()
    }
    return {token: ids for token, ids in ids_of.items() if ids}
