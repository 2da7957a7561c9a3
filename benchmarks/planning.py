"""What planning a study costs: CPU seconds of ``snakemake -n`` over the number of runs, and of the agenda alone.

Theory: the agenda opens three small files for each run (record, metrics, failure) and hashes the metrics of each table, so its
cost is linear in the runs, some 0.1 ms each; Snakemake then matches one job per run, which is its own cost and the larger one.
Measured on an Intel Xeon: 100, 1,000 and 4,000 runs take 2.4, 5.1 and 14.9 CPU seconds, of them the agenda 0.01, 0.13 and 0.52.

    python -m benchmarks.planning
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import copy, copytree
from statistics import median

from atlas.study import Study, agenda

ROOT = Path(__file__).resolve().parent.parent
HEAD = """
seeds: [0, 1]
batch_seeds: false
resources: {threads: 1, memory_mb: 500, minutes: 1}
image-classification:
  datasets:
    stacks:
      data: null
      methods:
"""
REPEATS = 3


def checkout(folder: Path, runs: int) -> None:
    """A checkout whose study has so many runs, none of them done."""
    for name in ("Snakefile", "pyproject.toml"):
        copy(ROOT / name, folder / name)
    for name in ("workflow", "profiles"):
        copytree(ROOT / name, folder / name)
    (folder / "config").mkdir()
    rows = "".join(f"        row{index}: {{method: random-stack, depth: {index + 8}}}\n" for index in range(runs // 2))
    (folder / "config" / "demo.yaml").write_text(HEAD + rows)


def dry_run_seconds(folder: Path) -> float:
    """CPU seconds of one dry run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(Path(sys.executable).parent / "snakemake"), "-n", "--quiet", "rules"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def agenda_seconds(folder: Path) -> float:
    """CPU seconds of the agenda alone."""
    study = Study.read("demo", folder)
    began = time.process_time()
    agenda(study)
    return time.process_time() - began


def main() -> None:
    """Print both costs for growing studies."""
    print("| runs | dry run, CPU s | of it the agenda, CPU s | agenda per run, ms |\n|---|---|---|---|")
    for runs in (100, 1000, 4000):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            checkout(folder, runs)
            dry, own = zip(*((dry_run_seconds(folder), agenda_seconds(folder)) for _ in range(REPEATS)), strict=True)
            print(f"| {runs} | {median(dry):.1f} | {median(own):.2f} | {1000 * median(own) / runs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
