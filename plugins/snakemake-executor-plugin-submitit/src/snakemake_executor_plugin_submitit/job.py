"""What runs on the node: one job, its lease, the scheduler's signals, and the result file that says how it ended.

The rule's own processes run below Snakemake, below a shell. When the scheduler announces the end of the time limit to this
process alone, the stop signal (SIGTERM) is passed on to the rule's processes and to nothing between, so that the program can
save its state and Snakemake still sees how it ended. When the scheduler stops the whole tree at once (preemption, requeue,
scancel), this process stays until the last of the tree has saved and gone.

A program that catches SIGTERM can go on where it was, so a time limit requeues it. One that does not would only meet the same
limit again, and runs on undisturbed for as long as it may.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from .folder import Folder, append_line, read_json, write_json
from .lease import Lease, LostLeaseError
from .ledger import Ledger

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
TIME_LIMIT = signal.SIGUSR2
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}
EXIT_INTERRUPTED = 75
PR_SET_CHILD_SUBREAPER = 36


class StopRequest:
    """A signal handler that remembers the first stop signal; true once there has been one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal if it is the first; later ones change nothing."""
        if self.signal is None:
            self.signal = signal.Signals(number)

    def __bool__(self) -> bool:
        return self.signal is not None


@dataclass(frozen=True)
class JobRun:
    """One submitted job; called on the node, through submitit.

    Attributes
    ----------
    folder : Folder
        The executor's folder.
    workdir : str
        Where the command runs.
    key, ticket : str
        The job, and this submission of it; see :class:`.ledger.Entry`.
    command : str
        Shell command that carries out the Snakemake job.
    requeues : int
        How often the job may be started again.
    """

    folder: Folder
    workdir: str
    key: str
    ticket: str
    command: str
    requeues: int

    def __call__(self) -> dict[str, Any]:
        """Run the job, leave its result file, and exit with its status (75 where it was interrupted)."""
        in_charge = threading.current_thread() is threading.main_thread()
        stop = StopRequest()
        with _handlers(stop) if in_charge else contextlib.nullcontext():
            if in_charge:
                _adopt_orphans()
            result = self._run_with_lease(stop)
        if result["status"] != "success":
            sys.exit(EXIT_INTERRUPTED if result["status"] == "interrupted" else 1)
        return result

    def _run_with_lease(self, stop: StopRequest) -> dict[str, Any]:
        starts = self.folder.job(self.key) / "starts"
        append_line(starts, f"{self.ticket} {self._scheduler_id()} {socket.gethostname()}")
        count = starts.read_text().count("\n")
        lease = Lease(self.folder.job(self.key) / "lease", f"{self.ticket}/{count}/{socket.gethostname()}/{os.getpid()}")
        if not lease.take(lambda: bool(stop)):
            return {"status": "interrupted"}  # the other copy speaks for the job
        try:
            if (result := self._no_longer_wanted()) is not None:
                return result
            if count > self.requeues + 1:
                return self._record("failed", f"it was started {count - 1} times and never came to its end; see requeue")
            self.folder.result(self.ticket).unlink(missing_ok=True)
            return self._follow(self._start(), stop, lease)
        except LostLeaseError as lost:
            print(f"stopping: {lost}", flush=True)
            _kill(_descendants())
            return {"status": "interrupted"}
        finally:
            lease.release()

    def _no_longer_wanted(self) -> dict[str, Any] | None:
        """Why there is nothing to do for a copy that comes late: another one has ended well, or nobody waits for the job."""
        result = read_json(self.folder.result(self.ticket))
        if result is not None and result.get("status") == "success":
            return result
        if self.folder.ledger.exists() and self.ticket not in Ledger(self.folder.ledger).open_entries():
            print(f"{self.ticket} is closed in the ledger; leaving it alone", flush=True)
            return {"status": "interrupted"}
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
        return subprocess.Popen(self.command, shell=True, cwd=self.workdir, env=environment)

    def _follow(self, process: subprocess.Popen[bytes], stop: StopRequest, lease: Lease) -> dict[str, Any]:
        forwarded = False
        while not _ended(process):
            lease.beat()
            if stop and not forwarded:
                forwarded = self._forward_stop(stop)
        if stop:
            while _descendants():  # orphans of a shell that died of the signal are saving their state
                lease.beat()
                _reap()
                time.sleep(0.2)
        if process.returncode == 0:
            return self._record("success")
        if stop and not forwarded and stop.signal != TIME_LIMIT:  # all of it ended within a second
            self._record("interrupted", _cause(stop))
        if stop and self.folder.result(self.ticket).exists():
            return self._ask_for_requeue(stop)
        if stop:
            return self._record("failed", "it ran into its time limit; raise its runtime, or let it save its state on SIGTERM")
        return self._record("failed", f"its command ended with exit status {process.returncode}")

    def _forward_stop(self, stop: StopRequest) -> bool:
        """Pass a stop signal on, and note the interruption at once: there may be no time for it later.

        ``False`` where a time limit is near and no program catches the signal, or none does yet.
        """
        programs = _rule_programs()
        limit = stop.signal == TIME_LIMIT
        if limit and not any(_catches_stop(program) for program in programs):
            return False
        self._record("interrupted", _cause(stop))
        if limit or "SLURM_JOB_ID" not in os.environ:  # SLURM tells every process of the job itself
            for program in programs:
                with contextlib.suppress(psutil.Error):
                    program.send_signal(signal.SIGTERM)
        return True

    def _ask_for_requeue(self, stop: StopRequest) -> dict[str, Any]:
        """After a time limit, ask SLURM to queue the job again; after its own stop signal SLURM does so unasked."""
        result = self._record("interrupted", _cause(stop))
        job_id = self._scheduler_id()
        if stop.signal != TIME_LIMIT or "SLURM_JOB_ID" not in os.environ or self.requeues == 0:
            return result
        if self.folder.starts(self.key) > self.requeues:
            return self._record("failed", f"it was started {self.folder.starts(self.key)} times and met its time limit each time")
        print(f"state saved; asking for a requeue of {job_id}", flush=True)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(["scontrol", "requeue", job_id], timeout=60)
            if done.returncode == 0:
                _wait_for_the_scheduler(stop)
        return result

    def _record(self, status: str, cause: str = "") -> dict[str, Any]:
        result = {
            "ticket": self.ticket,
            "status": status,
            "cause": cause,
            "scheduler_id": self._scheduler_id(),
            "host": socket.gethostname(),
            "time": time.time(),
        }
        write_json(self.folder.result(self.ticket), result)
        return result

    @staticmethod
    def _scheduler_id() -> str:
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        if array and task:
            return f"{array}_{task}"
        return os.environ.get("SLURM_JOB_ID") or str(os.getpid())


@contextlib.contextmanager
def _handlers(stop: StopRequest) -> Iterator[None]:
    former = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _adopt_orphans() -> None:
    """Have processes whose parent died become our children, so that we can wait for them (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _cause(stop: StopRequest) -> str:
    return "it came near its time limit" if stop.signal == TIME_LIMIT else "the scheduler stopped it"


def _wait_for_the_scheduler(stop: StopRequest, seconds: float = 30) -> None:
    """Wait for the scheduler to end us after a requeue, so that it does not take our exit for the job's end."""
    stop.signal = None
    end = time.monotonic() + seconds
    while not stop and time.monotonic() < end:
        time.sleep(0.2)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        return False
    return True


def _descendants() -> list[psutil.Process]:
    """Every running process that this one has started, directly or not."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if _status(process) not in (None, psutil.STATUS_ZOMBIE)]


def _status(process: psutil.Process) -> str | None:
    try:
        return str(process.status())
    except psutil.Error:
        return None


def _rule_programs() -> list[psutil.Process]:
    """The rule's own processes: the topmost ones that are neither a shell nor Snakemake."""
    programs: list[psutil.Process] = []
    level = psutil.Process().children()
    while level:
        process = level.pop()
        try:
            command = process.cmdline()
            children = process.children()
        except psutil.Error:
            continue
        between = Path(command[0]).name in SHELLS if command else True
        if "snakemake" in command[:4] or (between and children):
            level += children
        elif command:
            programs.append(process)
    return programs


def _catches_stop(process: psutil.Process) -> bool:
    """Whether a process, or one below it, has a handler for SIGTERM."""
    with contextlib.suppress(psutil.Error):
        return any(_has_handler(each.pid) for each in (process, *process.children(recursive=True)))
    return False


def _has_handler(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True  # cannot be known on this system
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
