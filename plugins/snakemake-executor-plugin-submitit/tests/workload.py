"""A small workflow whose jobs save their state when told to, notice a second copy of themselves, and end with known numbers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from real_slurm import wait_until

TRAIN = """
import fcntl, json, os, pathlib, random, signal, sys, time

name, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for folder in ("state", "metrics"):
    pathlib.Path(folder).mkdir(exist_ok=True)
state = pathlib.Path(f"state/{name}.json")
copy = open(f"state/{name}.lock", "a")
try:
    fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    open(f"state/{name}.duplicate", "a").write("two copies at a time\\n")
stop = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: stop.append(number))
open(f"state/{name}.starts", "a").write("start\\n")
step, value, generator = 0, 0.0, random.Random(name)
if state.exists():
    saved = json.loads(state.read_text())
    step, value = saved["step"], saved["value"]
    version, internal, gauss = saved["random"]
    generator.setstate((version, tuple(internal), gauss))
    print("going on after step", step, flush=True)
while step < steps:
    value += generator.random()
    step += 1
    time.sleep(pause)
    if stop or step % 20 == 0:
        state.with_suffix(".new").write_text(json.dumps({"step": step, "value": value, "random": generator.getstate()}))
        state.with_suffix(".new").replace(state)
    if stop:
        print("stopped by", stop, "after step", step, flush=True)
        sys.exit(75)
metrics = pathlib.Path(f"metrics/{name}.json")
metrics.with_suffix(".new").write_text(json.dumps({"steps": steps, "value": value}))
metrics.with_suffix(".new").replace(metrics)
"""

SNAKEFILE = """
NAMES = {names!r}
rule all:
    input: expand("metrics/{{name}}.json", name=NAMES)
rule train:
    output: "metrics/{{name}}.json"
    log: "logs/{{name}}.log"
    resources: {resources}
    shell: "{python} train.py {{wildcards.name}} {steps} {pause} >> {{log}} 2>&1"
"""


class Workload:
    """A working directory with the small workflow.

    Parameters
    ----------
    folder : Path
        Where it is made.
    environment : mapping
        Environment of Snakemake, which says which SLURM it talks to.
    jobs, steps, pause : int, int, float
        Number of training jobs, of their steps, and seconds per step.
    resources : str
        Resources of a job, as the Snakefile writes them.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        jobs: int = 2,
        steps: int = 100,
        pause: float = 0.05,
        resources: str = "mem_mb=200, runtime=10",
        options: Iterable[str] = (),
    ) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.names = [f"run{index}" for index in range(jobs)]
        self.steps = steps
        self.options = ["--submitit-poll-seconds", "2", *options]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.py").write_text(TRAIN)
        (folder / "Snakefile").write_text(
            SNAKEFILE.format(names=self.names, resources=resources, steps=steps, pause=pause, python=sys.executable)
        )

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Type ``snakemake`` in the background."""
        command = [sys.executable, "-m", "snakemake", "--executor", "submitit", "--jobs", "500", "--rerun-incomplete"]
        with (self.folder / "snakemake.log").open("ab") as out:
            return subprocess.Popen(
                [*command, "--keep-going", *self.options, *options],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes], seconds: float = 300) -> int:
        """Wait for a Snakemake to end and return its exit status; one that does not end is killed."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def wait_for_starts(self, count: int = 1, seconds: float = 180) -> None:
        """Wait until every job has been started this often.

        Raises
        ------
        TimeoutError
            They have not; it says what the scheduler and Snakemake say.
        """
        try:
            wait_until(lambda: all(self.starts(name) >= count for name in self.names), seconds, f"{count} starts of every job")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self._told_by_scheduler()}\n{self.log}") from None
        time.sleep(0.5)

    def _told_by_scheduler(self) -> str:
        """Jobs with the reason why they wait, and nodes that are out of service; empty without a SLURM."""
        commands = (["squeue", "-r", "-o", "%i %T %r"], ["sinfo", "-R"], ["sinfo", "-N", "-l"])
        path = self.environment.get("PATH")
        found = [name for name in commands if shutil.which(name[0], path=path)]
        told = [subprocess.run(command, env=self.environment, capture_output=True, text=True) for command in found]
        return "\n".join(done.stdout + done.stderr for done in told)

    def starts(self, name: str) -> int:
        """How often a job's program has been started."""
        path = self.folder / "state" / f"{name}.starts"
        return path.read_text().count("start") if path.exists() else 0

    @property
    def log(self) -> str:
        """What Snakemake has printed."""
        return (self.folder / "snakemake.log").read_text()

    def wrong(self) -> list[str]:
        """What is missing, differs from an uninterrupted run, or ran twice at a time; empty where all is well."""
        found = [f"{path.name}: {path.read_text().strip()}" for path in self.folder.glob("state/*.duplicate")]
        for name in self.names:
            path = self.folder / "metrics" / f"{name}.json"
            content = path.read_text() if path.exists() else "missing"
            if content != self.expected(name):
                found.append(f"{name}: {content}, not {self.expected(name)}")
        return found

    def expected(self, name: str) -> str:
        """The metrics of an uninterrupted run."""
        import json
        import random

        generator = random.Random(name)
        value = 0.0
        for _ in range(self.steps):
            value += generator.random()
        return json.dumps({"steps": self.steps, "value": value})
