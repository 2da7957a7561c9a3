"""A real SLURM of one node or several in a temporary directory: Debian's slurm-wlm and munge, with keys and ports of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=20000 State=UNKNOWN"
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "srun", "sinfo", "sshare")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
{memory_limit}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MessageTimeout=5
KillWait=10
UnkillableStepTimeout=600
SlurmdTimeout=30
MinJobAge={min_job_age}
SchedulerParameters=bf_interval=1,sched_interval=1,default_queue_depth=2000,sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
MaxArraySize=2000
{nodes}
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=500 PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=500 PriorityTier=10 State=UP
"""


def missing() -> str:
    """Why a real SLURM cannot be started here; empty where it can."""
    if os.geteuid() != 0:
        return "starting a SLURM needs root"
    absent = [name for name in BINARIES if _which(name) is None]
    return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else ""


class RealSlurm:
    """The daemons of one cluster; every command of SLURM that a person runs in :attr:`environment` talks to it and is counted.

    Parameters
    ----------
    cpus : int
        Cores that each node claims to have.
    nodes : int
        How many nodes there are: a ``slurmd`` each, all on this machine.
    min_job_age : int
        Seconds for which the controller remembers a job that ended.
    memory_limit : bool
        Whether a job that takes more memory than it asked for is ended.
    """

    def __init__(self, cpus: int = 4, min_job_age: int = 300, memory_limit: bool = True, nodes: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.calls_file = self.folder / "calls"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("munge", "state", "spool", "bin"):
            (self.folder / name).mkdir(mode=0o755)
        host = socket.gethostname()
        self.nodes = [host] if nodes == 1 else [f"node{index}" for index in range(1, nodes + 1)]
        config = CONFIG.format(
            host=host,
            folder=self.folder,
            ctld_port=_free_port(),
            nodes="\n".join(NODE.format(name=name, host=host, port=_free_port(), cpus=cpus) for name in self.nodes),
            min_job_age=min_job_age,
            memory_limit="JobAcctGatherParams=OverMemoryKill" if memory_limit else "",
        )
        (self.folder / "slurm.conf").write_text(config)
        self._write_counters()

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which the commands of SLURM talk to this cluster."""
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> RealSlurm:
        try:
            self._start_munge()
            self.start("slurmctld")
            for node in self.nodes:
                self.start("slurmd", node)
            idle = len(self.nodes)
            wait_until(
                lambda: self.run("sinfo", "-hN", "-p", "normal", "-o", "%T").split() == ["idle"] * idle, 30, "an idle node"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.daemons:
            self.run("scancel", f"--user={os.geteuid()}", check=False)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not self.run("squeue", "-h", check=False).strip(), 10, "an empty queue")
        for name in reversed(list(self.daemons)):
            self.stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, daemon: str, node: str | None = None) -> None:
        """Start ``slurmctld`` or ``slurmd``, the latter for a node if there are several."""
        named = daemon == "slurmd" and len(self.nodes) > 1 and node is not None
        with (self.folder / f"{daemon}.out").open("ab") as out:
            self.daemons[f"{daemon} {node}" if named else daemon] = subprocess.Popen(
                [_which(daemon) or daemon, "-D", "-f", str(self.folder / "slurm.conf"), *(["-N", str(node)] if named else [])],
                stdout=out,
                stderr=out,
                env={**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
                start_new_session=True,
            )

    def stop(self, daemon: str, number: int = signal.SIGTERM) -> None:
        """Stop a daemon; with SIGKILL as a crash does."""
        process = self.daemons.pop(daemon, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of SLURM, uncounted, and return what it prints."""
        program = _which(command[0]) or command[0]
        done = subprocess.run([program, *command[1:]], env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def queue(self) -> dict[str, str]:
        """Jobs that have not ended, by id, with their states."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i %T", check=False).splitlines()
        return dict(line.split() for line in lines)

    def calls(self) -> dict[str, int]:
        """How often each command of SLURM has been called through :attr:`environment`."""
        lines = self.calls_file.read_text().split() if self.calls_file.exists() else []
        return {name: lines.count(name) for name in sorted(set(lines))}

    def _start_munge(self) -> None:
        place = self.folder / "munge"
        (place / "key").write_bytes(os.urandom(128))
        (place / "key").chmod(0o600)
        command = [_which("munged") or "munged", "--foreground", "--force"]
        command += [f"--{name}-file={place / name}" for name in ("key", "pid", "log", "seed")] + [f"--socket={place / 'socket'}"]
        with (place / "out").open("wb") as out:
            self.daemons["munged"] = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        wait_until((place / "socket").exists, 10, "munged's socket")

    def _write_counters(self) -> None:
        # as on a cluster, the commands find their configuration whatever a caller does to the environment
        conf = f"export SLURM_CONF={self.folder / 'slurm.conf'}"
        for name in COMMANDS:
            wrapper = self.folder / "bin" / name
            wrapper.write_text(f'#!/bin/sh\necho {name} >> {self.calls_file}\n{conf}\nexec {_which(name) or name} "$@"\n')
            wrapper.chmod(0o755)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition; raise TimeoutError naming it if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} after {seconds} seconds")
        time.sleep(0.1)


@contextlib.contextmanager
def slurm_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Talk to a cluster from this process."""
    former = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/bin")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
