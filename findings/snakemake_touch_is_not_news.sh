#!/usr/bin/env bash
# Snakemake 9.27.1 (from PyPI): an input that is newer than the output does not start a rerun unless its content differs, if it is small.
#
# Expected: as in make, whoever touches an input gets its dependants made again, all the more with `--rerun-triggers mtime`; a file that
#   stands for an event ("data checked") may be empty, its time being the news.
# Seen: for a file of up to 1 MB the checksum recorded at the last run wins: a newer time with the same content is nothing to do, whatever
#   the trigger asked for. An empty marker file therefore never starts anything after its first time. A file above the limit does start a
#   rerun at a touch, so that the same workflow behaves one way with the sample and another way with the data.
#   `--max-checksum-file-size 0` gives make's rule to all files but the empty ones.
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
    input: expand("{name}.out", name=["empty", "small", "large"])
rule use:
    input: "{name}"
    output: "{name}.out"
    shell: "wc -c < {input} > {output}"
SNAKEFILE

planned() { snakemake --dry-run --nocolor "$@" 2>&1 | sed -n 's/^ *output: \(.*\)\.out$/\1/p' | sort | xargs; }
make_all() { snakemake --cores 1 --quiet all > log.txt 2>&1; }

: > empty
echo 1 > small
head -c 2000000 /dev/zero > large
make_all
sleep 1.1
touch empty small large
by_default=$(planned)
by_time=$(planned --rerun-triggers mtime)
no_checksum=$(planned --rerun-triggers mtime --max-checksum-file-size 0)
make_all
sleep 1.1
echo 2 > small
other_content=$(planned)

echo "to be made again after touching all three inputs:  $by_default"
echo "  ... with --rerun-triggers mtime:                 $by_time"
echo "  ... and --max-checksum-file-size 0:              $no_checksum"
echo "after writing other content into the small one:    $other_content"
[ "$by_default|$by_time|$no_checksum|$other_content" = "large|large|large small|small" ] || { echo "changed: a touched input is handled otherwise" >&2; exit 1; }
