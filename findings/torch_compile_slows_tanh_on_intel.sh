#!/usr/bin/env bash
# torch 2.15.0 (from PyPI) with g++, on an Intel Xeon with AVX-512 (one with AMX, model 207); needs an Intel.
#
# Expected: compiling a function of single operations makes it faster, or at worst leaves it as fast, since fewer passes are made over
#   memory and the kernels are vectorised on both sides.
# Seen: on an Intel torch.compile makes tanh several times as slow, and exp twice, on one thread. PyTorch takes MKL's vector functions for
#   them, which are at their best there; Inductor writes calls of SLEEF's. With MKL held to what it does on other makers' processors
#   (MKL_CBWR=COMPATIBLE) the compiled function is the faster one, as it was on AMD EPYCs. So the same line pays on one maker only.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
grep -q GenuineIntel /proc/cpuinfo || { echo "this processor is not Intel's" >&2; exit 2; }
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5

cat > ratio.py << 'PYTHON'
from statistics import median
from time import process_time_ns

import torch

torch.set_num_threads(1)
values = torch.randn(100_000)
for function in (torch.tanh, torch.exp):
    compiled = torch.compile(function)
    compiled(values)
    times = {function: [], compiled: []}
    for _ in range(40):
        for each, seen in times.items():
            start = process_time_ns()
            for _ in range(10):
                each(values)
            seen.append(process_time_ns() - start)
    print(round(median(slow / fast for fast, slow in zip(*times.values())), 2), end=" ")
PYTHON

ratios() { # branch of MKL
    MKL_CBWR=$1 TORCHINDUCTOR_CACHE_DIR=$work/cache OMP_NUM_THREADS=1 env/bin/python ratio.py 2> log || { cat log >&2; exit 2; }
}
read -r tanh exp <<< "$(ratios AUTO)"
echo "MKL's kernels for Intel: compiled takes $tanh times as long (tanh), $exp times (exp)"
read -r held_tanh held_exp <<< "$(ratios COMPATIBLE)"
echo "MKL's kernels for all makers: $held_tanh times (tanh), $held_exp times (exp)"
awk -v a="$tanh" -v b="$exp" -v c="$held_tanh" 'BEGIN { exit !(a > 1.5 && b > 1.2 && c < 1) }' \
    || { echo "changed: compiled functions are no slower on an Intel" >&2; exit 1; }
