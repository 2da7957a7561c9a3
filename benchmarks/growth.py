"""What Snakemake's own process costs per run while a study is carried out, over the number of runs; the runs do nothing.

Theory: planning is linear in the runs (``benchmarks/planning.py``). Executing is not by itself: a scheduling round looks at every
job that is ready, and there is one for every job that ends; with Snakemake's limit of starts per second, on by default, every
round also leaves a timer that calls for another one a second later, without an end (``findings/snakemake_rounds_grow.sh``).
On one machine the workflow takes that limit away, and lets a round look at some of the ready jobs only.

    python -m benchmarks.growth                  # 1,000 and 4,000 runs
    python -m benchmarks.growth --runs 250 1000 --usual   # and Snakemake as it is without that
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.planning import checkout

COUNTED = """
import atexit, resource, sys
from snakemake.cli import main

def tell():
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [used.ru_utime + used.ru_stime for used in (own, others)]
    print("used", *seconds, own.ru_maxrss, file=sys.stderr)

atexit.register(tell)
main()
"""
SPARED = "        spare_the_scheduler()\n"
COMMAND = 'else "python -m atlas"'
GREEDY = "scheduler: greedy\n"


def make_idle(folder: Path, usual: bool) -> None:
    """Let every job be ``true``, and Snakemake, if asked for, be as it is."""
    rules = folder / "workflow/rules/common.smk"
    text = rules.read_text()
    if COMMAND not in text or SPARED not in text:
        sys.exit("common.smk has changed: adapt this program")
    rules.write_text(text.replace(COMMAND, 'else "true"').replace(SPARED, "" if usual else SPARED))
    profile = folder / "profiles/default/config.yaml"
    settings = profile.read_text()
    if GREEDY not in settings:
        sys.exit("the default profile has changed: adapt this program")
    profile.write_text(settings.replace(GREEDY, "" if usual else GREEDY))


def used(folder: Path, *options: str) -> tuple[float, float, float]:
    """CPU seconds of Snakemake's own process and of those that it started (jobs that do nothing, solvers), and its peak MiB."""
    command = [sys.executable, "-c", COUNTED, "--until", "train", "--quiet", "all", *options]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("used ")]
    _, own, others, kibibytes = line.split()
    return float(own), float(others), float(kibibytes) / 2**10


def main() -> None:
    """Print a row for every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--usual", action="store_true", help="also with Snakemake's defaults")
    arguments = parser.parse_args()
    print("| runs | scheduler | CPU s | of it planning | executing, ms per run | processes it starts, ms per run | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for runs in arguments.runs:
        for usual in (False, True)[: 1 + arguments.usual]:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                checkout(folder, runs)
                make_idle(folder, usual)
                plan, *_ = used(folder, "-n")
                whole, others, memory = used(folder)
            name = "Snakemake's defaults" if usual else "the workflow's"
            each = [1000 * seconds / runs for seconds in (whole - plan, others)]
            print(f"| {runs} | {name} | {whole:.1f} | {plan:.1f} | {each[0]:.1f} | {each[1]:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
