"""One running copy of a job, whatever the scheduler believes.

A scheduler that lost a node starts the node's jobs elsewhere, while the lost node may be computing still; and a submission whose
answer got lost may be made twice. So whoever runs a job holds its lease: a file that names the holder and that the holder
touches every few seconds. Who wants to start waits until the lease is released, or its time has stood still, by the file
system's clock, for :data:`STALE_SECONDS` seconds; a holder that finds another name in the lease stops at once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from .folder import read_json, write_json

BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0


class LostLeaseError(Exception):
    """Another copy of the job has taken over."""


class Lease:
    """The lease of one job.

    Parameters
    ----------
    path : Path
        The lease's file.
    holder : str
        Who asks; different for every start of the job.
    """

    def __init__(self, path: Path, holder: str) -> None:
        self.path = path
        self.holder = holder
        self._beaten = 0.0

    def take(self, stop: Callable[[], bool], stale: float = STALE_SECONDS) -> bool:
        """Wait until no other copy runs, and take the lease; ``False`` where ``stop`` says to give up."""
        while not self._free(stale):
            if stop():
                return False
            time.sleep(1)
        write_json(self.path, {"holder": self.holder, "host": socket.gethostname(), "pid": os.getpid()})
        time.sleep(0.05)  # of two that write at once, the last one holds
        self.beat(force=True)
        return True

    def beat(self, force: bool = False) -> None:
        """Show that the holder lives.

        Raises
        ------
        LostLeaseError
            Another copy holds the lease now.
        """
        if not force and time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        content = read_json(self.path)
        if content is not None and content.get("holder") != self.holder:
            raise LostLeaseError(f"{content.get('holder')} on {content.get('host')} has taken this job over")
        if content is None and not force:
            return  # cannot be read at the moment; the file system may be away
        os.utime(self.path)
        self._beaten = time.monotonic()

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        content = read_json(self.path)
        if content is not None and content.get("holder") == self.holder:
            self.path.unlink(missing_ok=True)

    def _free(self, stale: float) -> bool:
        content = read_json(self.path)
        if content is None or content.get("holder") == self.holder:
            return True
        if content.get("host") == socket.gethostname() and not psutil.pid_exists(int(content.get("pid", 0))):
            return True
        return not beating(self.path, stale)


def beating(path: Path, stale: float = STALE_SECONDS) -> bool:
    """Whether a lease is held, and has been touched within ``stale`` seconds of the file system's own time."""
    clock = path.with_name(".clock")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime < stale
    except OSError:
        return False
