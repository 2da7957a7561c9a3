"""Faults injected into a real SLURM under a running workflow, and what happened, as a table.

Every case starts a SLURM of its own (slurm-wlm and munge; needs root), runs jobs that save their state on SIGTERM and know what
an uninterrupted run gives, breaks something, and looks at the end: the same metrics, or one error for the job that it hit, which
names the job, its log and what to do, after which starting the workflow again gives the same metrics. Jobs notice a second copy
of themselves that runs at the same time. ``--write`` puts the table into README.md.

    python benchmarks/faults.py [--write] [--only NAME] [--parallel 3]
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from real_slurm import RealSlurm, missing, wait_until  # noqa: E402
from workload import Workload  # noqa: E402

MARKS = ("<!-- faults: begin -->", "<!-- faults: end -->")


@dataclass(frozen=True)
class Case:
    """One kind of fault: how often it is injected, what is done, and what the jobs look like."""

    title: str
    times: int
    inject: Callable[[RealSlurm, Workload], str]
    jobs: int = 2
    steps: int = 100
    pause: float = 0.05
    resources: str = "mem_mb=200, runtime=10"


def ended_well(workload: Workload, process: subprocess.Popen[bytes], seconds: float = 300) -> str:
    """Wait for the workflow, and say whether it gave what an uninterrupted one gives."""
    status = workload.finish(process, seconds)
    starts = sum(map(workload.starts, workload.names))
    wrong = workload.wrong()
    if status or wrong:
        return f"WRONG: exit status {status}; {'; '.join(wrong)}"
    return f"completed, same metrics ({starts} starts of {len(workload.names)} jobs)"


def one_error(workload: Workload, process: subprocess.Popen[bytes], expected: str, jobs: int = 1) -> str:
    """Wait for the workflow, and say whether it reported exactly the jobs that were hit, usefully; then start it again."""
    status = workload.finish(process)
    errors = re.findall(r"message: (train \(name=\w+\), .*)", workload.log)
    good = status == 1 and len(errors) == jobs and all(expected in error for error in errors)
    useful = workload.log.count("Log of the job: ") == jobs and workload.log.count("What to do: ") == jobs
    if not good or not useful or any("two copies" in problem for problem in workload.wrong()):
        return f"WRONG: exit status {status}; {errors}; {workload.wrong()}"
    return f"one error: “{errors[0].partition('): ')[2]}”"


def and_again(workload: Workload, first: str) -> str:
    """Start the workflow again after an error."""
    second = ended_well(workload, workload.start())
    return f"{first}; started again: {second}"


def requeued(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    for count in range(1, 11):
        workload.wait_for_starts(count)
        for job in slurm.queue():
            slurm.run("scontrol", "requeue", job)
    return ended_well(workload, process)


def preempted(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    for count in (1, 2):
        workload.wait_for_starts(count)
        slurm.run("sbatch", "--partition=urgent", "--exclusive", "--mem=100", "--output=/dev/null", "--wrap=sleep 2")
        wait_until(lambda: "PENDING" in slurm.queue().values(), 60, "preempted job")
    return ended_well(workload, process)


def not_requeued(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    workload.wait_for_starts()
    slurm.run("sbatch", "--partition=urgent", "--exclusive", "--mem=100", "--output=/dev/null", "--wrap=sleep 2")
    return and_again(workload, one_error(workload, process, "requeue is false"))


def timed_out(slurm: RealSlurm, workload: Workload) -> str:
    return ended_well(workload, workload.start(), 400)


def killed(slurm: RealSlurm, workload: Workload) -> str:
    for seconds in (2.5, 3.5, 5, 7, 6):
        process = workload.start()
        time.sleep(seconds)
        process.kill()
        process.wait()
    return ended_well(workload, workload.start())


def interrupted(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    workload.wait_for_starts()
    process.send_signal(signal.SIGINT)
    workload.finish(process)
    return ended_well(workload, workload.start())


def without_controller(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    workload.wait_for_starts()
    slurm.stop("slurmctld", signal.SIGKILL)
    time.sleep(60)
    slurm.start("slurmctld")
    return ended_well(workload, process)


def started_without_controller(slurm: RealSlurm, workload: Workload) -> str:
    slurm.stop("slurmctld")
    process = workload.start()
    time.sleep(60)
    slurm.start("slurmctld")
    return ended_well(workload, process)


def daemon_restarted(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    workload.wait_for_starts()
    slurm.stop("slurmd", signal.SIGKILL)
    time.sleep(5)
    slurm.start("slurmd")
    return ended_well(workload, process)


def node_lost(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    workload.wait_for_starts()
    slurm.stop("slurmd", signal.SIGKILL)
    wait_until(lambda: "down" in slurm.run("sinfo", "-h", "-o", "%T"), 120, "node given up by the controller")
    slurm.start("slurmd")
    return ended_well(workload, process)


def cancelled(slurm: RealSlurm, workload: Workload) -> str:
    process = workload.start()
    workload.wait_for_starts()
    slurm.run("scancel", next(iter(slurm.queue())))
    return and_again(workload, one_error(workload, process, "cancelled in the scheduler"))


def out_of_memory(slurm: RealSlurm, workload: Workload) -> str:
    program = workload.folder / "train.py"
    good = program.read_text()
    greedy = 'if sys.argv[1] == "run0":\n    hoard = bytearray(800 * 2**20)\n    hoard[::4096] = b"x" * len(hoard[::4096])\n'
    greedy += "    time.sleep(20)\n"
    program.write_text(good.replace("step, value, generator", greedy + "step, value, generator", 1))
    first = one_error(workload, workload.start(), "memory")
    program.write_text(good)
    return and_again(workload, first)


def disk_full(slurm: RealSlurm, workload: Workload) -> str:
    disk = workload.folder / "metrics"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        ballast = disk / "ballast"
        with suppress(OSError):
            ballast.write_bytes(b"x" * 2**20)
        first = one_error(workload, workload.start(), "exit status")
        if f"The disk of {disk} is full" not in workload.log:
            return "WRONG: the full disk is not named"
        ballast.unlink()
        return and_again(workload, first)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def answer_lost(slurm: RealSlurm, workload: Workload) -> str:
    """The first sbatch is carried out, but its answer does not arrive."""
    sbatch = slurm.folder / "bin" / "sbatch"
    good = sbatch.read_text()
    lost = (
        good.replace("exec ", "")
        + f"echo 'sbatch: error: Socket timed out on send/recv operation' >&2\ncp {sbatch}.good {sbatch}\nexit 1\n"
    )
    sbatch.with_suffix(".good").write_text(good)
    sbatch.with_suffix(".good").chmod(0o755)
    sbatch.write_text(lost)
    return ended_well(workload, workload.start())


CASES = {
    "requeue": Case("preempted by `scontrol requeue`, ten times in a row", 10, requeued, jobs=1, steps=300),
    "preempt": Case("five jobs preempted by a partition of higher priority, twice", 10, preempted, jobs=5, steps=240),
    "no-requeue": Case(
        "preempted, with `requeue=false`", 1, not_requeued, jobs=1, steps=240, resources='mem_mb=200, requeue="false"'
    ),
    "limit": Case("time limit met by five jobs", 5, timed_out, jobs=5, steps=800, pause=0.1, resources="mem_mb=200, runtime=1"),
    "kill": Case("`kill -9` of Snakemake after 2.5, 3.5, 5, 7 and 6 seconds, and started again", 5, killed, jobs=4, steps=600),
    "ctrl-c": Case("Ctrl-C, and started again", 1, interrupted, steps=200),
    "controller": Case("slurmctld killed for 60 s while jobs run; they end meanwhile", 1, without_controller, steps=200),
    "controller-long": Case("slurmctld killed for 60 s while jobs run; they end later", 1, without_controller, steps=1600),
    "controller-start": Case("slurmctld away for the first 60 s", 1, started_without_controller),
    "slurmd": Case("slurmd killed and restarted after 5 s", 1, daemon_restarted, steps=400),
    "node": Case("slurmd killed until the node counts as lost; its jobs run on, and are requeued", 1, node_lost, steps=1600),
    "scancel": Case("one of two jobs cancelled by hand", 1, cancelled, steps=200),
    "memory": Case("one of two jobs out of memory", 1, out_of_memory),
    "disk": Case("disk of the output full", 1, disk_full, jobs=1),
    "answer": Case("sbatch takes the jobs, but its answer is lost", 1, answer_lost, jobs=3),
}


def run(name: str) -> tuple[str, str, float]:
    """Carry out one case on a SLURM of its own."""
    case = CASES[name]
    began = time.monotonic()
    with RealSlurm(cpus=5) as slurm, tempfile.TemporaryDirectory(prefix=f"fault-{name}-", dir="/tmp") as folder:
        environment = {**slurm.environment, "PYTHONPATH": str(ROOT / "src")}
        options = ("--submitit-poll-seconds", "2", "--submitit-stop-seconds", "20")
        workload = Workload(Path(folder), environment, case.jobs, case.steps, case.pause, case.resources, options)
        try:
            outcome = case.inject(slurm, workload)
        except Exception as error:
            outcome = f"WRONG: {type(error).__name__}: {error}"
        if "WRONG" in outcome:
            print(
                f"--- {name}\n{workload.log}\n{slurm.run('squeue', '-r', '-t', 'all', check=False)}", file=sys.stderr, flush=True
            )
        return name, outcome, time.monotonic() - began


def table(outcomes: dict[str, tuple[str, float]]) -> str:
    """The table, in Markdown."""
    lines = ["| fault | times | what happened | seconds |", "|---|--:|---|--:|"]
    for name, case in CASES.items():
        if name in outcomes:
            outcome, seconds = outcomes[name]
            lines.append(f"| {case.title} | {case.times} | {outcome} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--parallel", type=int, default=1, help="cases at a time")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    outcomes = {}
    with ThreadPoolExecutor(arguments.parallel) as pool:
        for name, outcome, seconds in pool.map(run, arguments.only):
            outcomes[name] = (outcome, seconds)
            print(f"{name}: {outcome} ({seconds:.0f} s)", flush=True)
    print(table(outcomes))
    if arguments.write:
        page = ROOT / "README.md"
        before, _, rest = page.read_text().partition(MARKS[0])
        page.write_text(f"{before}{MARKS[0]}\n{table(outcomes)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    if any("WRONG" in outcome for outcome, _ in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
