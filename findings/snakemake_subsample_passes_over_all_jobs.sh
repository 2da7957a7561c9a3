#!/usr/bin/env bash
# Snakemake 9.27.1 (from PyPI; scheduling/job_scheduler.py, scheduling/milp.py): a subsample of the ready jobs does not bound a round.
#
# Expected: with `--scheduler-subsample 10` every scheduling round considers ten jobs, so what it costs to carry out a job does not depend
#   on how many are still to come.
# Seen: the default scheduler is given ten jobs to choose from, and beside them all that are left, ready or not. Before it solves its
#   program it collects the temporary inputs of each of these, in every round, also where no rule has temporary files; a round follows
#   every job that ends, so the whole is quadratic. And the program of ten jobs is solved by a process that is started for it: one for
#   every job. `--scheduler greedy` is handed the same lists and looks at the ten alone, which is a fraction of the CPU time.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python snakemake==9.27.1
export PATH="$work/env/bin:$PATH"

cat > Snakefile << 'SNAKEFILE'
COUNT = int(config["count"])
rule all:
    input: expand("done/{number}", number=range(COUNT))
rule one:
    input: "start"
    output: touch("done/{number}")
SNAKEFILE
touch start

cat > watched.py << 'PYTHON'
import atexit
import resource
import sys

import snakemake.scheduling.greedy as greedy
import snakemake.scheduling.milp as milp
from snakemake.cli import main
from snakemake.jobs import Job

rounds, looked, inside = 0, 0, False
plain = Job.input.fget


def counted(job):
    global looked
    looked += inside
    return plain(job)


def watched(choose):
    def select(self, *arguments, **named):
        global rounds, inside
        rounds, inside = rounds + 1, True
        try:
            return choose(self, *arguments, **named)
        finally:
            inside = False

    return select


Job.input = property(counted, Job.input.fset)
for module in (milp, greedy):
    module.Scheduler.select_jobs = watched(module.Scheduler.select_jobs)


def tell():
    seconds = [used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))]
    print("told", rounds, looked, *seconds, file=sys.stderr)


atexit.register(tell)
main()
PYTHON

jobs() {  # number of jobs, scheduler: jobs whose inputs a round looked at
    rm -rf done .snakemake
    python watched.py --cores 1 --quiet all --scheduler-subsample 10 --max-jobs-per-timespan 1000/30s --scheduler "$2" \
        --config count="$1" 2> log.txt
    read -r _ rounds looked own others < <(grep '^told' log.txt)
    echo "$1 jobs, $2: $rounds rounds; a round looks at the inputs of $((looked / rounds)) jobs; CPU $own s, and $others s in other processes" >&2
    echo $((looked / rounds))
}

few=$(jobs 100 ilp)
many=$(jobs 400 ilp)
greedy=$(jobs 400 greedy)
[ "$many" -gt $((3 * few)) ] && [ "$many" -gt 150 ] && [ "$greedy" -le 20 ] \
    || { echo "changed: a round no longer looks at all jobs that are left" >&2; exit 1; }
