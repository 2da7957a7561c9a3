"""The demo study through ``snakemake --profile slurm`` on a real SLURM of this machine; its tables beside the local run's.

    make demo                       # the local run, in this checkout
    python benchmarks/slurm_study.py [--study demo]

Clones the checkout, runs the study there from nothing, and compares every table, file by file and bit for bit. Needs root,
slurm-wlm and munge.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "plugins" / "snakemake-executor-plugin-submitit"
sys.path.insert(0, str(PLUGIN / "tests"))

from real_slurm import RealSlurm, missing  # noqa: E402


def main() -> None:
    """Run, compare, and exit with 1 where a table differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="demo")
    parser.add_argument("--cpus", type=int, default=2, help="cores that the node claims to have")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    results = Path("results") / arguments.study
    with tempfile.TemporaryDirectory(prefix="study-", dir="/tmp") as folder, RealSlurm(cpus=arguments.cpus) as slurm:
        clone = Path(folder) / "atlas"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shutil.rmtree(clone / results, ignore_errors=True)
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--submitit-poll-seconds", "5"]
        command += ["--config", f"tier={arguments.study}"]
        environment = {**slurm.environment, "PYTHONPATH": f"{clone / 'src'}:{clone / PLUGIN.relative_to(ROOT) / 'src'}"}
        began = time.monotonic()
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if done.returncode:
            sys.exit(done.stderr[-5000:])
        # the JSON beside a table holds the digest of its metrics files, which say when and on what they were made
        found = [path for ending in ("csv", "md", "tex") for path in (ROOT / results / "tables").glob(f"*/*.{ending}")]
        tables = sorted(path.relative_to(ROOT) for path in found)
        same = [filecmp.cmp(ROOT / path, clone / path, shallow=False) for path in tables]
        starts = done.stderr.count("Submitted ")
        print(f"{seconds:.0f} s, {starts} submissions, calls of the scheduler: {slurm.calls()}")
        print(f"{sum(same)} of {len(tables)} table files are the local run's, bit for bit")
        differing = [str(path) for path, equal in zip(tables, same, strict=True) if not equal]
        again = subprocess.run([*command, "-n"], cwd=clone, env=environment, capture_output=True, text=True)
        print("a second run has nothing to do" if "Nothing to be done" in again.stdout + again.stderr else again.stdout[-2000:])
    if differing or not tables:
        sys.exit(f"differ: {', '.join(differing) or 'there are no local tables; run make demo first'}")


if __name__ == "__main__":
    main()
