"""What is to be done about a job, from its result file and the scheduler's word together.

The result file is written by the job as its last act and is believed first. The scheduler's word decides about jobs that left
none, and tells a job that was interrupted and comes back from one that does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

ALIVE = {
    *("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING"),
    *("SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
}
# The job is not to blame: it runs again.
TAKEN_AWAY = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED"}
# A start that fails before the job's first line may be the file system's or the scheduler's fault, but not three times.
FALSE_STARTS = 3


class Act(Enum):
    """What the executor does about a job as a consequence of what is known."""

    WAIT = "wait"
    COLLECT = "collect"
    FAIL = "fail"
    AGAIN = "submit again"


@dataclass(frozen=True)
class Facts:
    """What is known about a job.

    Attributes
    ----------
    status : str or None
        ``success``, ``failed`` or ``interrupted`` from its result file.
    cause : str
        What the result file says in words.
    state : str or None
        The scheduler's state; ``None`` where it knows no such job.
    settled : bool
        Whether the job has been out of the queue for so long that a result file would be visible by now.
    beating : bool
        Whether a running copy holds the job's lease.
    starts : int
        How often it has been started.
    submissions : int
        How often it has been submitted by this process.
    requeues : int
        How often it may be started again.
    """

    status: str | None
    cause: str = ""
    state: str | None = None
    settled: bool = True
    beating: bool = False
    starts: int = 1
    submissions: int = 1
    requeues: int = 10


@dataclass(frozen=True)
class Verdict:
    """What to do, and why in words: what happened, and what a person can do about it."""

    act: Act
    reason: str = ""
    advice: str = ""


WAIT = Verdict(Act.WAIT)


def judge(facts: Facts) -> Verdict:
    """Decide what to do about a job; the result file is believed before the scheduler."""
    if facts.status == "success":
        return Verdict(Act.COLLECT)
    if facts.status == "failed":
        return Verdict(Act.FAIL, facts.cause or "it failed", "read its log")
    if facts.state in ALIVE or not facts.settled:
        return WAIT
    if facts.state == "CANCELLED":
        return Verdict(Act.FAIL, "it was cancelled in the scheduler", "start the workflow again to run it again")
    if facts.beating:
        return WAIT
    if facts.status == "interrupted":
        return _again(facts, facts.cause or "it was interrupted")
    return _without_result(facts)


def _without_result(facts: Facts) -> Verdict:
    if facts.state in TAKEN_AWAY:
        return _again(facts, f"the scheduler took it away ({facts.state})")
    if facts.state == "OUT_OF_MEMORY":
        return Verdict(Act.FAIL, "it ran out of memory", "raise its mem_mb")
    if facts.state in ("TIMEOUT", "DEADLINE"):
        return Verdict(Act.FAIL, "it ran into its time limit", "raise its runtime, or let it save its state on SIGTERM")
    if facts.starts == 0:
        if facts.submissions < FALSE_STARTS:
            return Verdict(Act.AGAIN, "it ended before it began")
        return Verdict(Act.FAIL, f"it ended before it began, {facts.submissions} times", "is the environment there on the nodes?")
    if facts.state is None:
        return _again(facts, "it is in the queue no more, and left no result")
    return Verdict(
        Act.FAIL,
        f"it ended as {facts.state} and left no result; it was killed, or the disk is full",
        "look at its log, its mem_mb and the disk",
    )


def _again(facts: Facts, reason: str) -> Verdict:
    if facts.requeues == 0:
        return Verdict(Act.FAIL, f"{reason}, and requeue is false", "start the workflow again to run it again")
    if facts.starts > facts.requeues:
        return Verdict(
            Act.FAIL, f"{reason}, and it has been started {facts.starts} times", "raise requeue if this is the scheduler's way"
        )
    return Verdict(Act.AGAIN, reason)
