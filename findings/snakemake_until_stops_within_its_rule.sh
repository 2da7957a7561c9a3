#!/usr/bin/env bash
# Snakemake 9.27.1 (from PyPI; dag.py, DAG.finish): `--until RULE` does not finish RULE where its jobs need one another.
#
# Expected: `--until step` carries out all jobs of that rule, and none that comes after it.
# Seen: of a chain of three jobs within the rule, all are counted, the first is made, and Snakemake ends with an error, some files not
#   built; its dry run does the same. When a job ends, those that wait for it are told so only if their rule is not the one that `--until`
#   names, so the second never becomes ready. `--omit-from` with the rule that comes after carries out the whole chain.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python snakemake==9.27.1
export PATH="$work/env/bin:$PATH"

cat > Snakefile << 'SNAKEFILE'
rule summary:
    input: "third.txt"
    output: "summary.txt"
    shell: "cp {input} {output}"
rule step:
    input: lambda wildcards: {"first": [], "second": ["first.txt"], "third": ["second.txt"]}[wildcards.name]
    output: "{name,first|second|third}.txt"
    shell: "echo {wildcards.name} > {output}"
SNAKEFILE

made() {
    find . -maxdepth 1 -name '*.txt' | wc -l
}

planned=$({ snakemake -n --until step 2> /dev/null || true; } | awk '$1 == "step" && NF == 2 { jobs = $2 } END { print jobs }')
status=0
snakemake --quiet all --cores 1 --until step 2> log || status=$?
until=$(made)
rm -rf ./*.txt .snakemake
snakemake --quiet all --cores 1 --omit-from summary
omitted=$(made)
echo "--until step: $planned jobs counted, $until made, exit status $status; --omit-from summary: $omitted made"
[ "$planned" = 3 ] && [ "$until" = 1 ] && [ "$status" != 0 ] && [ "$omitted" = 3 ] \
    || { echo "changed: --until carries out all jobs of its rule" >&2; exit 1; }
