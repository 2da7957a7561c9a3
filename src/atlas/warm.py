"""Start-up paid once: a command of the workflow is carried out by a fork of a process that has loaded everything already.

Loading the libraries of a run takes 3 to 8 s, and a study on one machine has a hundred jobs of that length. So the first job of a
Snakemake run starts a worker (:mod:`atlas.cli.worker`), which loads them, and from then on a job is a fork of it: this process,
which the job's shell has started, hands its arguments and its standard streams over, passes signals on, and ends as the fork
ended.

A fork must be what a process of its own would have been. What such a process would inherit and read (environment with all thread
counts, folder, limits, processors, interpreter, the code of Atlas, the studies) is therefore part of the worker's name: where any
of it differs or has changed meanwhile, the worker is another one. Workers belong to one run of Snakemake, and go with it.

This module is loaded by every job, so it imports next to nothing.
"""

from __future__ import annotations

import array
import os
import socket
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess

OWNER = "ATLAS_WORKER_OF"
"""Environment variable in which the workflow names the process that workers belong to; without it there are none."""

FAMILIES = {"train": "runs", "evaluate": "runs", "table": "pages", "claims": "pages", "report": "pages"}
"""Verb to the family of commands that load alike; each has a worker of its own."""

PASSING = ("_", "SHLVL", "PWD", "OLDPWD")  # what shells note for themselves
LOG = os.path.join(".atlas", "worker.log")  # noqa: PTH118 - pathlib takes longer to import than all of this


def hand_over(arguments: list[str]) -> None:
    """Have a worker carry out a command, and end as it ended; return where there is no worker for it.

    Parameters
    ----------
    arguments : list of str
        The command line after ``python -m atlas``; it is handed over if its first word is a verb of :data:`FAMILIES`, and
        :data:`OWNER` is set.
    """
    owner = os.environ.get(OWNER, "")
    family = FAMILIES.get(arguments[0]) if arguments else None
    if family is None or not owner.isdecimal() or sys.platform != "linux":
        return
    connection = _reach(worker_name(int(owner), family), [owner, family])
    if connection is None:
        return
    with connection:
        status, stopped = _follow(connection, arguments)
    if status is not None:
        _end_as(status)
    if stopped or not _is_alive(int(owner)):
        sys.exit(75)
    print("warning: the worker that ran this is gone; going on in a process of its own", file=sys.stderr)


def worker_name(owner: int, family: str) -> str:
    """Name of the worker of one owner whose forks are what a process started here and now would be."""
    import hashlib
    import resource

    limits = [resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]
    mask = os.umask(0)
    os.umask(mask)
    inherited = (
        sorted((name, value) for name, value in os.environ.items() if name not in PASSING),
        os.getcwd(),  # noqa: PTH109
        (os.getuid(), os.getgid(), mask, os.nice(0)),
        sorted(os.sched_getaffinity(0)),
        limits,
        (sys.executable, sys.flags, sys.path[1:]),
    )
    read = [*_files(os.path.dirname(__file__)), *_files("config")]  # noqa: PTH120
    digest = hashlib.sha256(repr((inherited, read)).encode("utf-8", "surrogateescape")).hexdigest()
    return f"atlas-{owner}-{family}-{digest[:32]}"


def address(name: str) -> str:
    """Address of a worker's socket: in Linux's abstract name space, so that no kill can leave a file behind."""
    return f"\0{name}"


def is_ours(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to the same user."""
    import struct

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _files(folder: str) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every module and study below a folder."""
    stamps = []
    waiting = [folder]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir():
                waiting.append(entry.path)
            elif entry.name.endswith((".py", ".yaml")):
                status = entry.stat()
                stamps.append((entry.path, status.st_size, status.st_mtime_ns))
    return sorted(stamps)


def _reach(name: str, arguments: list[str]) -> socket.socket | None:
    """Connect to a worker, after starting it where there is none; ``None`` if it cannot be started."""
    started = None
    while (connection := _connect(name)) is None:
        if started is None:
            started = _start(name, arguments)
        elif started.poll() is not None:  # it failed, or another job's was faster
            connection = _connect(name)
            break
        time.sleep(0.02)
    if connection is not None and not is_ours(connection):
        connection.close()
        return None
    return connection


def _connect(name: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(address(name))
    except OSError:
        connection.close()
        return None
    return connection


def _start(name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a worker in a session of its own: what is typed at the terminal is for jobs, which pass it on."""
    import subprocess

    os.makedirs(os.path.dirname(LOG), exist_ok=True)  # noqa: PTH103, PTH120
    with open(LOG, "ab") as log:  # noqa: PTH123
        return subprocess.Popen(
            [sys.executable, "-m", "atlas.cli.worker", name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _follow(connection: socket.socket, arguments: list[str]) -> tuple[int | None, bool]:
    """Hand a command over and pass signals on until it ends.

    Returns
    -------
    status : int, optional
        Exit status, or minus the signal that ended it; ``None`` if worker and fork are gone without a word.
    stopped : bool
        Whether a signal was passed on.
    """
    import signal

    stopped = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        with suppress(OSError):  # it has ended, and its status says how
            connection.send(bytes([number]))

    former = {}
    try:
        streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
        connection.sendmsg(["\0".join(arguments).encode("utf-8", "surrogateescape")], [streams])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) != signal.SIG_IGN:
                former[number] = signal.signal(number, pass_on)
        answer = connection.recv(64)
    except OSError:
        answer = b""
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return (int(answer) if answer else None), stopped


def _end_as(status: int) -> None:
    """End this process as another one ended."""
    sys.stdout.flush()
    if status < 0:
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True
