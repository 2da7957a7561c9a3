#!/usr/bin/env bash
# torch 2.15.0 (from PyPI) with g++, on x86-64 with AVX2 or more; seen on an AMD EPYC.
#
# Expected: numbers that a compiled function takes from a tuple of its module are constants of the kernel, as the same numbers written in
#   its lines are; dynamic=True is about sizes, so that no other length of a tensor is compiled for anew.
# Seen: with dynamic=True those numbers (floats from a global or a closure; also where only their container is global) become inputs of
#   the kernel, which loads and converts each of them anew for every vector of coordinates, since what it writes might overlap them. A
#   polynomial of degree 8 by Horner's rule takes twice as long as with the numbers in its lines. Without dynamic=True the two are alike.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5

cat > ratio.py << 'PYTHON'
from statistics import median
from time import process_time_ns

import torch

torch.set_num_threads(1)
x = torch.randn(1 << 16)
NUMBERS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def looked_up(x):
    y = NUMBERS[0]
    for number in NUMBERS[1:]:
        y = y * x + number
    return y


def written(x):
    return (((((((0.1 * x + 0.2) * x + 0.3) * x + 0.4) * x + 0.5) * x + 0.6) * x + 0.7) * x + 0.8) * x + 0.9


def took(function):
    start = process_time_ns()
    for _ in range(50):
        function(x)
    return process_time_ns() - start


ratios = {}
for dynamic in (True, False):
    torch.compiler.reset()
    one, other = (torch.compile(function, dynamic=dynamic) for function in (looked_up, written))
    assert torch.equal(one(x), other(x))
    for function in (one, other):
        took(function)
    ratios[dynamic] = median(took(one) / took(other) for _ in range(31))
    print(f"dynamic={dynamic}: numbers looked up take {ratios[dynamic]:.2f} times as long as numbers written in the code")
raise SystemExit(ratios[True] < 1.5 or ratios[False] > 1.25)
PYTHON
OMP_NUM_THREADS=1 env/bin/python -W ignore ratio.py 2> errors || { cat errors >&2; exit 1; }
