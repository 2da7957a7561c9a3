"""How long a whole study takes on a number of GPUs: its jobs, one after another and side by side."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A run as the scheduler sees it.

    Attributes
    ----------
    name : str
        The run.
    gpus : int
        GPUs that it holds, from its start to its end.
    hours : float
        How long it takes on them.
    needs : tuple of str
        Runs that must have ended before it starts.
    """

    name: str
    gpus: int
    hours: float
    needs: tuple[str, ...] = ()


def wall_hours(jobs: Iterable[Job], gpus: int) -> float:
    """Hours from the first start to the last end, where nothing waits that could run.

    Of the jobs that are ready, those begin first that have the longest chain of jobs behind them; one that does not fit lets
    smaller ones pass. The queue of a shared cluster comes on top.

    Raises
    ------
    ValueError
        A job asks for more GPUs than there are, or needs one that is not among them.

    Examples
    --------
    >>> wall_hours([Job("a", 1, 2.0), Job("b", 1, 2.0), Job("c", 2, 1.0, ("a",))], gpus=2)
    3.0
    """
    left = {job.name: job for job in jobs}
    for job in left.values():
        if job.gpus > gpus:
            raise ValueError(f"{job.name} asks for {job.gpus} GPUs, and there are {gpus}")
        if unknown := set(job.needs) - left.keys():
            raise ValueError(f"{job.name} needs {unknown.pop()}, which is not among the jobs")
    chains = _chains(left)
    running: list[tuple[float, str]] = []
    ended: set[str] = set()
    held = {job.name: job.gpus for job in left.values()}
    now, free = 0.0, gpus
    while left or running:
        ready = [job for job in left.values() if ended.issuperset(job.needs)]
        for job in sorted(ready, key=lambda job: (-chains[job.name], job.name)):
            if job.gpus <= free:
                free -= job.gpus
                heapq.heappush(running, (now + job.hours, job.name))
                del left[job.name]
        now, name = heapq.heappop(running)
        ended.add(name)
        free += held[name]
    return now


def _chains(jobs: dict[str, Job]) -> dict[str, float]:
    """Hours from a job's start to the end of the longest chain of jobs that wait for it."""
    waiting: dict[str, list[str]] = {name: [] for name in jobs}
    for job in jobs.values():
        for need in job.needs:
            waiting[need].append(job.name)
    hours: dict[str, float] = {}

    def chain(name: str) -> float:
        if name not in hours:
            hours[name] = jobs[name].hours + max(map(chain, waiting[name]), default=0.0)
        return hours[name]

    for name in jobs:
        chain(name)
    return hours
