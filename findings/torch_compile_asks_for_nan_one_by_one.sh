#!/usr/bin/env bash
# torch 2.15.0 (from PyPI) with g++, on x86-64 with AVX2 or more; seen on an AMD EPYC.
#
# Expected: torch.nan_to_num, which is elementwise, costs a compiled function next to nothing: Inductor fuses it with its neighbours and
#   writes vectors, and a comparison with infinity is one instruction of those.
# Seen: Inductor's C++ has no vector form of isnan. It stores the vector, asks std::isnan of its numbers one at a time, and loads the
#   answers, in the middle of a loop that is vectorised otherwise. The compiled function takes several times as long as one that says the
#   same by |y| < inf, and longer than the same line uncompiled. The numbers are equal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5

cat > ratio.py << 'PYTHON'
import math
from statistics import median
from time import process_time_ns

import torch

torch.set_num_threads(1)
x = torch.randn(1 << 16)


def named(x):
    return torch.nan_to_num(2 * x + 1, nan=0.0, posinf=0.0, neginf=0.0) * 0.5


def compared(x):
    y = 2 * x + 1
    return torch.where(y.abs() < math.inf, y, 0.0) * 0.5


def took(function):
    start = process_time_ns()
    for _ in range(50):
        function(x)
    return process_time_ns() - start


fast, slow = torch.compile(compared), torch.compile(named)
odd = x.clone()
odd[::7], odd[3::11], odd[5::13] = math.nan, math.inf, -math.inf
assert torch.equal(fast(odd), slow(odd)) and torch.equal(slow(odd), named(odd))
for function in (fast, slow, named):
    took(function)
over_compared = median(took(slow) / took(fast) for _ in range(31))
over_eager = median(took(slow) / took(named) for _ in range(31))
print(f"nan_to_num compiled: {over_compared:.1f} times the compiled comparison, {over_eager:.1f} times itself uncompiled")
raise SystemExit(over_compared < 2)
PYTHON
OMP_NUM_THREADS=1 env/bin/python -W ignore ratio.py 2> errors || { cat errors >&2; exit 1; }
