#!/usr/bin/env bash
# Snakemake 9.27.1 (from PyPI; scheduling/job_scheduler.py): the scheduler's work grows with the number of jobs that have finished.
#
# Expected: while one long job holds the cores and others wait for them, the main process is idle until something finishes.
# Seen: to keep its limit of 100 job starts a second, which is on by default, every scheduling round that leaves jobs waiting starts a
#   timer that calls for another round a second later. A round that a timer called for starts the next timer, so it never ends, and every
#   finished job begins one such chain more: after n jobs the scheduler solves the selection of jobs n times a second although nothing
#   can have changed. The main process's CPU time grows with the jobs done times the time that others wait. A longer span, as in
#   `--max-jobs-per-timespan 1000/30s`, makes the timers' rounds as rare as it is long.
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
rule all:
    input: "long", "waiting", expand("quick/{number}", number=range(30))
rule quick:
    output: touch("quick/{number}")
    priority: 3
rule long:
    output: touch("long")
    priority: 2
    threads: 2
    shell: "sleep 10"
rule waiting:
    output: touch("waiting")
    threads: 2
SNAKEFILE

rounds_while_long_runs() {
    rm -rf .snakemake quick long waiting
    snakemake --cores 2 --verbose --nocolor "$@" > log.txt 2>&1
    sed -n '/^\(local\)\?rule long:/,/^Finished jobid: .*Rule: long/p' log.txt | grep -c '^Ready jobs: 1$'
}

usual=$(rounds_while_long_runs)
spaced=$(rounds_while_long_runs --max-jobs-per-timespan 1000/30s)
echo "scheduling rounds while one job sleeps 10 s, another waits and 30 have finished: $usual"
echo "  ... with --max-jobs-per-timespan 1000/30s:                                     $spaced"
[ "$usual" -gt 60 ] && [ "$usual" -gt $((4 * spaced)) ] || { echo "changed: the rounds no longer grow with the finished jobs" >&2; exit 1; }
