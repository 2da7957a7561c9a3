"""What the portable kernels cost: CPU time of whole trainings under ``ATLAS_KERNELS=portable``, ``avx2`` and ``native``, in turn.

Theory: AVX2 multiplies 8 floats at once where AVX-512 multiplies 16, and MKL's compatible branch 4; a training whose time is in
large matrix products can cost up to four times as much, one whose time is in small operations and in Python nothing.

    python -m benchmarks.kernels DATA [ROW…] [--pairs PAIRS]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from atlas.study import Run, Study

ROOT = Path(__file__).resolve().parent.parent
MODES = ("native", "avx2", "portable")
ROWS = (
    "image-classification/digits/deit",
    "image-classification/digits-compressed/deit",
    "adversarial-robustness/digits/dense",
    "federated-learning/digits-domains/split-mix",
    "feature-acquisition/synth/vfds",
    "learned-optimization/digits/rp-small",
    "novel-view-synthesis/analytic/nerf1",
    "novel-view-synthesis/analytic/sinnerf-geom",
    "novel-view-synthesis/motorcycle/dsnerf",
)


def cpu_seconds(folder: Path, row: str, kernels: str) -> float:
    """CPU seconds of a training from the beginning, start-up included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "atlas", "train", "--force", row]
    environment = {**os.environ, "ATLAS_KERNELS": kernels, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def needs(run: Run) -> Iterator[str]:
    """Runs that must be there before this one, in the order in which they can be trained."""
    for needed in run.needs.values():
        yield from needs(needed)
        yield needed.cell


def line(name: str, seconds: list[list[float]]) -> str:
    """Median seconds in every mode, and the median of the rounds' ratios to native."""
    columns = list(zip(*seconds, strict=True))
    told = [f"native {median(columns[0]):6.1f} s"]
    for mode, column in zip(MODES[1:], columns[1:], strict=True):
        ratio = median(held / native for held, native in zip(column, columns[0], strict=True))
        told.append(f"{mode} {median(column):6.1f} s, ratio {ratio:.2f}")
    return f"{name:50} {'  '.join(told)}"


def main() -> None:
    """Print one line per row, and one for all rows together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with the acquired data")
    parser.add_argument("rows", nargs="*", metavar="ROW", default=ROWS, help="rows of the demo, some of each task by default")
    parser.add_argument("--pairs", type=int, default=3, help="trainings under each mode")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(ROOT / "config", folder / "config")
        (folder / "data").symlink_to(options.data.resolve())
        study, measured = Study.read("demo", folder), []
        for row in options.rows:
            for needed in needs(study.find(f"{row}/seed10")):
                cpu_seconds(folder, needed, "portable")
            measured.append([[cpu_seconds(folder, f"{row}/seed10", kernels) for kernels in MODES] for _ in range(options.pairs)])
            print(line(row, measured[-1]), flush=True)
        print(line("all", [[sum(mode) for mode in zip(*pair, strict=True)] for pair in zip(*measured, strict=True)]))


if __name__ == "__main__":
    main()
