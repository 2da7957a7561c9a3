"""One Snakemake process at a time drives a working directory, and its death is noticed.

The process holds an advisory lock on a file, which the system drops when the process dies, whatever it dies of. Snakemake's own
lock is files that stay behind after a ``kill -9`` and make the next start fail until someone types ``--unlock``. So the session's
file also lists those files: where nobody holds the session's lock, the Snakemake that made them is dead, and the next session
removes exactly these.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

from .folder import Folder, read_json


class Session:
    """Holds a working directory until the process ends."""

    def __init__(self, folder: Folder, workdir: Path) -> None:
        folder.root.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(folder.session, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = read_json(folder.session) or {}
            os.close(self._handle)
            raise WorkflowError(
                f"another Snakemake follows the jobs of this directory: process {holder.get('pid')} on {holder.get('host')}"
            ) from None
        content = {"pid": os.getpid(), "host": socket.gethostname(), "locks": _locks(workdir)}
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(content).encode(), 0)
        os.fsync(self._handle)

    def end(self) -> None:
        """Release the working directory, so that another Snakemake can drive it."""
        with contextlib.suppress(OSError):
            os.close(self._handle)


def forget_dead_locks(workdir: Path | None = None) -> None:
    """Remove Snakemake's lock files that a dead session left in a working directory; leave all others alone."""
    workdir = workdir or Path.cwd()
    folder = Folder.of(workdir)
    content = read_json(folder.session)
    if content is None:
        return
    with folder.session.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return  # it lives
        for name, made in content.get("locks", {}).items():
            path = workdir / ".snakemake" / "locks" / name
            with contextlib.suppress(OSError):
                if path.stat().st_mtime_ns == made:
                    path.unlink()


def _locks(workdir: Path) -> dict[str, int]:
    locks = workdir / ".snakemake" / "locks"
    return {path.name: path.stat().st_mtime_ns for path in locks.glob("*")} if locks.is_dir() else {}
