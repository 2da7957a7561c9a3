#!/usr/bin/env bash
# Snakemake 9.27.1 (from PyPI): behind ancient(), an output stays stale even when its input was made anew with other content in the same run.
#
# Expected: ancient() takes the time of a file out of the question, so that a rewritten file with the same content starts nothing. Where the
#   job that makes the file is itself rerun because its own input changed, in the same invocation, and writes other content, the
#   dependants follow; for small files a checksum of the content is recorded.
# Seen: the dependant does not run, in that invocation or in any later one, and Snakemake says that nothing is left to be done. Without
#   ancient(), the same change runs both jobs.
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
    input: "ancient.out", "usual.out"
rule middle:
    input: "source"
    output: "middle"
    shell: "cp {input} {output}"
rule behind_ancient:
    input: ancient("middle")
    output: "ancient.out"
    shell: "cp {input} {output}"
rule usual:
    input: "middle"
    output: "usual.out"
    shell: "cp {input} {output}"
SNAKEFILE

echo old > source
snakemake --cores 1 --quiet all > log.txt 2>&1
sleep 1.1
echo new > source
snakemake --cores 1 --quiet all > log.txt 2>&1
left=$(snakemake --dry-run 2>&1 | grep -c '^Nothing to be done' || true)

echo "source: $(cat source), made from it: $(cat middle)"
echo "made from that, as usual: $(cat usual.out), behind ancient(): $(cat ancient.out)"
echo "nothing is left to be done, says Snakemake: $([ "$left" = 1 ] && echo yes || echo no)"
[ "$(cat middle usual.out ancient.out | xargs) $left" = "new new old 1" ] || { echo "changed: ancient() works otherwise" >&2; exit 1; }
