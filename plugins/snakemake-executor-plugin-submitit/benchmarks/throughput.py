"""Many trivial jobs: wall time and calls of the scheduler, beside snakemake-executor-plugin-slurm on the same SLURM in one run.

The other plugin is no dependency of this one; install it, without its dependencies, into a folder of its own and name that:

    pip install --target /tmp/other --no-deps snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep throttler
    python benchmarks/throughput.py --other /tmp/other

Both run the same workflow with Snakemake's and their own defaults; ``--other-options`` gives the other plugin more. Needs root,
slurm-wlm and munge.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from real_slurm import RealSlurm, missing  # noqa: E402

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({jobs}))
rule trivial:
    output: "out/{{i}}"
    resources: mem_mb=500, runtime=5
    shell: "touch {{output}}"
"""


def measure(slurm: RealSlurm, jobs: int, options: list[str], path: str) -> tuple[float, dict[str, int]]:
    """Run the workflow once; return seconds and calls by command."""
    before = slurm.calls()
    with tempfile.TemporaryDirectory(prefix="throughput-", dir="/tmp") as folder:
        (Path(folder) / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs))
        command = [sys.executable, "-m", "snakemake", "--jobs", "1000", *options]
        began = time.monotonic()
        with (Path(folder) / "out.log").open("wb") as out:
            done = subprocess.run(
                command, cwd=folder, env={**slurm.environment, "PYTHONPATH": path}, stdout=out, stderr=subprocess.STDOUT
            )
        seconds = time.monotonic() - began
        made = len(list((Path(folder) / "out").glob("*"))) if (Path(folder) / "out").is_dir() else 0
        if done.returncode or made != jobs:
            sys.exit(f"{' '.join(options)}: exit status {done.returncode}\n{(Path(folder) / 'out.log').read_text()[-5000:]}")
    return seconds, {name: count - before.get(name, 0) for name, count in slurm.calls().items() if count > before.get(name, 0)}


def main() -> None:
    """Measure both and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--cpus", type=int, default=4, help="cores that the node claims to have")
    parser.add_argument("--other", help="folder that holds the other plugin")
    parser.add_argument(
        "--other-options", default="--slurm-status-command squeue", help="its further options; this SLURM has no accounting"
    )
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    source = str(ROOT / "src")
    contenders = {"submitit": (["--executor", "submitit"], source)}
    if arguments.other:
        contenders["slurm"] = (["--executor", "slurm", *arguments.other_options.split()], arguments.other)
    print(f"{arguments.jobs} jobs, {arguments.cpus} at a time\n| executor | seconds | calls | by command |\n|---|--:|--:|---|")
    with RealSlurm(cpus=arguments.cpus) as slurm:
        for name, (options, path) in contenders.items():
            seconds, calls = measure(slurm, arguments.jobs, options, path)
            by_command = ", ".join(f"{count} {command}" for command, count in calls.items())
            print(f"| {name} | {seconds:.0f} | {sum(calls.values())} | {by_command} |", flush=True)


if __name__ == "__main__":
    main()
