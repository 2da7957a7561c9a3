"""The ledger: what was handed to the scheduler, in a file that outlives the process that did it.

One JSON object a line, only ever appended. A submission is written *before* the scheduler is asked and confirmed after, so that
whoever reads the ledger after a crash knows every job that may exist:

- ``submit``: jobs are about to be handed over under a name that no other submission has;
- ``accept``: the scheduler took them, and these are its ids;
- ``refuse``: it did not, so they do not exist;
- ``close``: a job needs no following any more (collected, failed, cancelled, superseded).

A line torn by a crash is skipped: what it said is then found by the submission's name in the queue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .folder import append_line


@dataclass(frozen=True)
class Entry:
    """One job as it was submitted.

    Attributes
    ----------
    ticket : str
        Names this submission of the job: the submission's token and the place in its array.
    key : str
        Names the job, whenever it is submitted: a digest of its rule and outputs.
    fingerprint : str
        Digest of the job's definition; the result of another definition is no result.
    name : str
        Name of the submission in the queue.
    rule : str
        The rule, or the group.
    job_id : str or None
        The scheduler's id; ``None`` while it is not known whether the scheduler took the job.
    """

    ticket: str
    key: str
    fingerprint: str
    name: str
    rule: str
    job_id: str | None = None

    @property
    def index(self) -> int:
        """The job's place in the array that it was submitted with, from 0."""
        return int(self.ticket.rpartition(".")[2])

    @property
    def token(self) -> str:
        """The random word that names the submission, the same for all jobs of its array."""
        return self.ticket.rpartition(".")[0]


class Ledger:
    """Reads and appends to a ledger's file; one process at a time holds it (see :mod:`.session`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open_entries(self) -> dict[str, Entry]:
        """Return the jobs that may be in the queue, or have ended and are not collected, by ticket."""
        entries: dict[str, Entry] = {}
        for event in self._events():
            if event["event"] == "submit":
                for index, (key, fingerprint) in enumerate(event["jobs"]):
                    ticket = f"{event['token']}.{index}"
                    entries[ticket] = Entry(ticket, key, fingerprint, event["name"], event["rule"])
            elif event["event"] == "accept":
                for index, job_id in enumerate(event["ids"]):
                    ticket = f"{event['token']}.{index}"
                    if ticket in entries:
                        entries[ticket] = replace(entries[ticket], job_id=job_id)
            elif event["event"] == "refuse":
                entries = {ticket: entry for ticket, entry in entries.items() if entry.token != event["token"]}
            elif event["event"] == "close":
                for ticket in event["tickets"]:
                    entries.pop(ticket, None)
        return entries

    def submit(self, token: str, name: str, rule: str, jobs: Sequence[tuple[str, str]]) -> list[Entry]:
        """Record that jobs, as pairs of key and fingerprint, are about to be handed over."""
        self._append(event="submit", token=token, name=name, rule=rule, jobs=jobs)
        return [Entry(f"{token}.{index}", key, fingerprint, name, rule) for index, (key, fingerprint) in enumerate(jobs)]

    def accept(self, token: str, ids: Sequence[str]) -> None:
        """Record the scheduler's ids of a submission."""
        self._append(event="accept", token=token, ids=ids)

    def refuse(self, token: str) -> None:
        """Record that the scheduler refused a submission, so that its jobs do not exist."""
        self._append(event="refuse", token=token)

    def close(self, tickets: Sequence[str], why: str) -> None:
        """Record that jobs need no following any more."""
        self._append(event="close", tickets=tickets, why=why)

    def _append(self, **event: Any) -> None:
        append_line(self.path, json.dumps({**event, "time": round(time.time(), 3)}))

    def _events(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                events.append(event)
        return events
