#!/usr/bin/env bash
# Snakemake 9.27.1 and DVC 3.67.1 (from PyPI): one configuration file, two readings.
#
# Expected: a YAML file that both tools read, Snakemake as `configfile:` and DVC as its parameters, means the same to both.
# Seen: Snakemake reads YAML 1.1 and DVC YAML 1.2. "lr: 1e-3" is text for Snakemake and a number for DVC (1.0e-3 is a number for both);
#   "time: 1:30:00" is 5400 for Snakemake and text for DVC; "seed: 010" is 8 and 10; "amp: on" is true and the text "on". Neither says
#   anything. Quotes, or a spelling that both versions share, are the way out.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python snakemake==9.27.1 dvc==3.67.1
export PATH="$work/env/bin:$PATH" DVC_NO_ANALYTICS=1

printf '%s\n' 'lr: 1e-3' 'decay: 1.0e-3' 'time: 1:30:00' 'seed: 010' 'amp: on' > params.yaml
cat > Snakefile << 'SNAKEFILE'
import json
configfile: "params.yaml"
with open("snakemake.json", "w") as file:
    json.dump(dict(config), file)
rule all:
SNAKEFILE
snakemake --dry-run --quiet all > log.txt 2>&1
git init -q .
dvc init -q
python - << 'PYTHON'
import json

import dvc.api

with open("snakemake.json") as file:
    by_snakemake = json.load(file)
by_dvc = dvc.api.params_show("params.yaml")
for name in by_snakemake:
    print(f"{name:8}Snakemake {by_snakemake[name]!r:10}DVC {by_dvc[name]!r}")
assert by_snakemake == {"lr": "1e-3", "decay": 0.001, "time": 5400, "seed": 8, "amp": True}, "changed: Snakemake's reading"
assert by_dvc == {"lr": 0.001, "decay": 0.001, "time": "1:30:00", "seed": 10, "amp": "on"}, "changed: DVC's reading"
PYTHON
