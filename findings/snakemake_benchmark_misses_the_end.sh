#!/usr/bin/env bash
# Snakemake 9.27.1 (from PyPI; benchmark.py): the CPU time in a benchmark file ends with the last sample, up to half a minute too early.
#
# Expected: `cpu_time` in the file that `benchmark:` writes is the CPU time of the job, as its `s` is the whole of its time.
# Seen: the job's processes are looked at twice a second for the first 15 s or so and every 30 s from then on, and not at the end. A job
#   that computes for 28 s is credited with the first 15 s, and `mean_load`, which divides by all of the time, says that it used half a
#   core. Jobs of under a minute, of which comparisons of methods have many, are the most wrong: a job of 16 s is about right and one of
#   40 s reads as less than half.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python snakemake==9.27.1
export PATH="$work/env/bin:$PATH"

cat > compute.py << 'PYTHON'
import os
import time

end = time.monotonic() + 28
while time.monotonic() < end:
    pass
times = os.times()
print(times.user + times.system)
PYTHON
cat > Snakefile << 'SNAKEFILE'
rule compute:
    output: "used.txt"
    benchmark: "benchmark.tsv"
    shell: "python compute.py > {output}"
SNAKEFILE
snakemake --cores 1 --quiet all > log.txt 2>&1
python - << 'PYTHON'
import csv

with open("benchmark.tsv") as file:
    (row,) = csv.DictReader(file, delimiter="\t")
with open("used.txt") as file:
    used = float(file.read())
told, load, seconds = float(row["cpu_time"]), float(row["mean_load"]), float(row["s"])
print(f"the job took {seconds:.1f} s and used {used:.1f} s of a core: {used / seconds:.0%}")
print(f"the benchmark file says {told:.1f} s, and a mean load of {load:.0f} %")
assert told < 0.85 * used, "changed: the CPU time is complete"
PYTHON
