"""The process of which the jobs of one Snakemake run are forks; see :mod:`atlas.warm` for the side of the jobs.

It loads what a command needs, forks, and tells the job's process how the fork ended. It has one thread and computes nothing: what
has started its threads, or looked for a GPU, cannot be forked. It goes when the Snakemake that it belongs to does,
however that ends; jobs that are then left are asked to save their state.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, cast

from atlas.cli.main import main
from atlas.errors import EXIT_FAILURE
from atlas.study import read_once
from atlas.warm import address, is_ours

GRACE_SECONDS = 60.0
"""How long jobs may take to save their state once Snakemake is gone."""
MESSAGE_BYTES = 1 << 20
STREAMS = 3
_PR_SET_PDEATHSIG = 1
OURS = ("atlas", "__main__", "__mp_main__")
COMPILERS = ("torch", "triton")
"""What is not loaded for having been loaded by a job: Atlas, which each command names, and compilers, which hardly any needs."""


@dataclass
class ForkedJob:
    """A fork that runs.

    Attributes
    ----------
    process : int
        Its number.
    ended : int
        A descriptor that can be read once it has ended, and by which it can be signalled without a mistake.
    connection : socket
        To the process that the job's shell waits for. The fork holds it, too: it closes when both are gone.
    report : int
        A file without a name, in which the fork leaves the names of the modules that it has loaded itself.
    """

    process: int
    ended: int
    connection: socket.socket
    report: int


class Worker:
    """Listens, loads, forks, and waits.

    Parameters
    ----------
    listener : socket
        Where jobs ask.
    owner : int
        Number of the process that it belongs to.
    load : callable
        ``load(arguments)`` imports what a command will need.
    """

    def __init__(self, listener: socket.socket, owner: int, load: Callable[[list[str]], None]) -> None:
        self.listener, self.load = listener, load
        self.owner = os.pidfd_open(owner)
        self.jobs: list[ForkedJob] = []
        self.wanted: dict[str, None] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.owner, selectors.EVENT_READ, self.orphaned)
        self.deadline: float | None = None

    def serve(self) -> None:
        """Serve until the owner is gone, and its jobs are."""
        while self.deadline is None or self.jobs:
            left = None if self.deadline is None else max(0.1, self.deadline - time.monotonic())
            for key, _ in self.selector.select(left):
                key.data()
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.signal_all(signal.SIGKILL)

    def accept(self) -> None:
        """Accept the connection of a waiting job's process, if the same user runs it."""
        connection, _ = self.listener.accept()
        if is_ours(connection):
            self.selector.register(connection, selectors.EVENT_READ, lambda: self.begin(connection))
        else:
            connection.close()

    def begin(self, connection: socket.socket) -> None:
        """Read what is to be done, load what it needs, and fork."""
        self.selector.unregister(connection)
        try:
            message, streams, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, STREAMS)
        except OSError:
            message, streams = b"", []
        if not message:  # it was killed before it could ask
            connection.close()
            return
        arguments = message.decode("utf-8", "surrogateescape").split("\0")
        with suppress(Exception):  # whatever is wrong with the command, the job itself says it, where that is read
            self.load(arguments)
        self.load_wanted()
        self.fork(arguments, streams, connection)
        for stream in streams:
            os.close(stream)

    def fork(self, arguments: list[str], streams: list[int], connection: socket.socket) -> None:
        """Fork a process that carries a job out, and watch both the fork and the process that asked for it."""
        gc.freeze()  # a collection in the fork would touch, and so copy, every page
        worker, report = os.getpid(), os.memfd_create("loaded")
        process = os.fork()
        if process == 0:
            _end_with(worker)
            self.forget(connection)
            _carry_out(arguments, streams, report)
        job = ForkedJob(process, os.pidfd_open(process), connection, report)
        self.jobs.append(job)
        self.selector.register(job.ended, selectors.EVENT_READ, lambda: self.finish(job))
        self.selector.register(connection, selectors.EVENT_READ, lambda: self.heed(job))

    def forget(self, connection: socket.socket) -> None:
        """Close, in a fork, everything that is not its own: others would wait for it."""
        held = [key.fileobj for key in self.selector.get_map().values()]
        self.selector.close()
        for file in [*held, *(job.connection for job in self.jobs), *(job.report for job in self.jobs)]:
            if file is not connection:
                file.close() if isinstance(file, socket.socket) else os.close(cast(int, file))

    def heed(self, job: ForkedJob) -> None:
        """Pass on the signals that the job's process was sent; if it was killed, so is the fork."""
        if job not in self.jobs:  # it ended in the same moment
            return
        try:
            message = job.connection.recv(64)
        except OSError:
            message = b""
        if not message:
            self.selector.unregister(job.connection)
        for number in message or bytes([signal.SIGKILL]):
            signal.pidfd_send_signal(job.ended, signal.Signals(number))

    def finish(self, job: ForkedJob) -> None:
        """Send the exit code of a fork that ended to the process that waits for it, and forget the job."""
        _, status = os.waitpid(job.process, 0)
        self.jobs.remove(job)
        self.selector.unregister(job.ended)
        os.close(job.ended)
        with suppress(KeyError):  # its process was killed
            self.selector.unregister(job.connection)
        with suppress(OSError):
            job.connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        job.connection.close()
        self.wanted |= dict.fromkeys(os.pread(job.report, MESSAGE_BYTES, 0).decode().split())
        os.close(job.report)

    def load_wanted(self) -> None:
        """Load what earlier jobs have loaded themselves, in the middle of their work, so that the next need not."""
        for name in [name for name in self.wanted if name not in sys.modules]:
            with suppress(Exception):
                importlib.import_module(name)
        self.wanted.clear()

    def orphaned(self) -> None:
        """Take nothing more, and have the jobs save their state."""
        self.selector.unregister(self.owner)
        self.selector.unregister(self.listener)
        self.listener.close()
        self.deadline = time.monotonic() + GRACE_SECONDS
        self.signal_all(signal.SIGTERM)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every fork that still runs."""
        for job in self.jobs:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(job.ended, number)


def _end_with(worker: int) -> None:
    """Have this fork asked to save its state and stop when the worker is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != worker:
        os._exit(EXIT_FAILURE)


def _carry_out(arguments: list[str], streams: list[int], report: int) -> NoReturn:
    """Do what a command asks for as a process of its own does, and end without taking down what the worker has loaded."""
    status, there = EXIT_FAILURE, set(sys.modules)
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()  # Python's own generator is seeded anew in a fork, and torch's begins alike in every process
        sys.argv[1:] = arguments
        status = _status_of(main)
        os.write(report, "\n".join(_loaded_since(there)).encode())
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for stream_object in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream_object.flush()
        os._exit(status)


def _loaded_since(there: set[str]) -> list[str]:
    """Modules of libraries that were loaded since, in their order."""
    new = [name for name in sys.modules if name not in there]
    return [name for name in new if name.partition(".")[0] not in (*OURS, *COMPILERS) and not any(map(str.isspace, name))]


def _status_of(command: Callable[[], None]) -> int:
    """Exit status of a program."""
    try:
        command()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return EXIT_FAILURE
    except BaseException:
        traceback.print_exc()
        return EXIT_FAILURE
    return 0


def _tier(arguments: list[str]) -> str:
    """The study that a command of the workflow names."""
    return arguments[arguments.index("--tier") + 1] if "--tier" in arguments else "demo"


def load_runs(arguments: list[str]) -> None:
    """Import what training and evaluating the named runs begin with."""
    from atlas.harness.execute import import_code
    from atlas.harness.kernels import hold_kernels
    from atlas.harness.startup import defer_compiler

    hold_kernels()
    defer_compiler()
    known = read_once(_tier(arguments)).by_cell
    for run in [known[word] for word in arguments if word in known]:
        import_code(run)


def load_pages(arguments: list[str]) -> None:
    """Read the study; with what tables, verdicts and the page are made, the first of them tells."""
    from atlas.harness.kernels import hold_kernels

    hold_kernels()
    read_once(_tier(arguments))


LOADS = {"runs": load_runs, "pages": load_pages}


def serve(name: str, owner: int, family: str) -> None:
    """Be the worker of that name, unless there is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address(name))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # another job's was faster
                return
            raise
        listener.listen(256)
        Worker(listener, owner, LOADS[family]).serve()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
