"""Kill −9 of Snakemake, of a job, of the worker, and Ctrl-C: nothing is lost, nothing is left behind, the next start goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow_helpers import NOTHING, copy_checkout, environment, snakemake

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
RUN = "feature-acquisition/synth/vanilla/seed0"
STUDY = """
description: One run of some seconds.
seeds: [0]
batch_seeds: true
resources: {threads: 1, memory_mb: 500, minutes: 1, save_minutes: 0.003}
feature-acquisition:
  datasets:
    synth:
      data: null
      protocol: {stream: {kind: synthetic, steps: 10, test_sequences: 50}, hidden: 8, batch_size: 16, steps: 15000}
      methods: {vanilla: {}}
"""


@pytest.fixture
def folder(tmp_path: Path, checkout: Path) -> Path:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    (folder / "config/demo.yaml").write_text(STUDY)
    return folder


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


def processes(folder: Path, words: str = "") -> list[int]:
    """Processes that work in a folder and have some words in their command."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").readlink() == folder and words in (place / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def forks(folder: Path) -> list[int]:
    """Jobs: the worker's children."""
    workers = processes(folder, "atlas.cli.worker")
    parents = {process: int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]) for process in workers}
    return [process for process, parent in parents.items() if parent in workers]


def hearing_interrupts() -> None:
    """Take back that interrupts are ignored, as in everything that a shell starts in the background, these tests too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(folder: Path) -> subprocess.Popen[str]:
    """A Snakemake whose training has taken steps in a fork of the worker."""
    saved = folder / "checkpoints/demo" / RUN / "state/train/seconds.json"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "snakemake")],
        cwd=folder,
        env=environment(),
        start_new_session=True,
        preexec_fn=hearing_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: process.poll() is not None or (saved.exists() and saved.stat().st_mtime_ns > before and forks(folder)))
    assert process.poll() is None, process.communicate()[0]
    return process


def test_the_next_start_goes_on(folder: Path) -> None:
    log = folder / "logs/demo/feature-acquisition/synth/vanilla/train.log"
    started(folder).kill()
    until(lambda: not processes(folder))
    assert "stopped by SIGTERM" in log.read_text()

    process = started(folder)  # the lock of the one that was killed stops nobody
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
    assert process.wait(300) == 1
    until(lambda: not processes(folder))
    assert "going on with train" in log.read_text()
    assert "stopped by SIGINT" in log.read_text()

    process = started(folder)
    (worker,) = set(processes(folder, "atlas.cli.worker")) - set(forks(folder))
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert log.read_text().count("going on with train") == 2  # in a fork, and then in a process of its own
    assert "the worker that ran this is gone" in log.read_text()
    assert (folder / "results/demo/runs" / RUN / "metrics.json").is_file()
    until(lambda: not processes(folder))
    assert NOTHING in snakemake(folder, "-n")


def test_without_workers_every_job_is_a_process(folder: Path) -> None:
    config = folder / "config/demo.yaml"
    config.write_text(STUDY.replace("steps: 15000", "steps: 3"))
    snakemake(folder, "--config", "warm=no")
    assert not (folder / ".atlas/worker.log").exists()
    assert (folder / "results/demo/runs" / RUN / "metrics.json").is_file()
