#!/usr/bin/env bash
# pyoperon 0.6.2 and NumPy 2.3.5 (from PyPI), on the processor at hand and on a Haswell as qemu-user shows it; seen on a real Intel
#   Xeon, and before that by its searches on an AMD EPYC. Eigen's generic math functions, which Operon evaluates trees with, have it
#   from EIGEN_FAST_MATH.
#
# Expected: pyoperon's wheel is compiled for x86-64-v3 and looks at no processor, so that one seed on one thread finds the same
#   equations on an Intel and on an AMD.
# Seen: it need not. Square roots in its trees refine the approximation of the instruction rsqrtps by one step of Newton, in float32.
#   A third of them are not the nearest number, and which ones depends on the processor, whose maker is free in what rsqrtps gives.
#   aq (a / sqrt(1 + b^2)), sqrt and sqrtabs are taken so; tanh, exp, log, cbrt, sin and square are the same everywhere. A search
#   compares fitnesses, so a last digit becomes another equation after some generations.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python pyoperon==0.6.2 numpy==2.3.5 scikit-learn==1.8.0
emulator=$(command -v qemu-x86_64 || command -v qemu-x86_64-static || true)
if [ -z "$emulator" ]; then # Debian's, unpacked here only
    apt-get download -qq qemu-user-static
    dpkg -x qemu-user-static_*.deb qemu
    emulator="$work/qemu/usr/bin/qemu-x86_64-static"
fi

cat > roots.py << 'PYTHON'
import hashlib

import numpy as np
import pyoperon as op

values = np.geomspace(0.01, 80, 8000, dtype=np.float32)
columns = np.asfortranarray(values[:, None])  # kept: the data set reads it where it lies
data = op.Dataset(columns)
name = data.Variables[0].Hash
for function in ("sqrt", "tanh", "exp", "log", "cbrt", "sin", "square"):
    leaf = op.Node.Variable(1.0)
    leaf.HashValue = leaf.CalculatedHashValue = name
    tree = op.Tree([leaf, getattr(op.Node, function.capitalize())()]).UpdateNodes()
    found = op.Evaluate(op.DispatchTable(), tree, data, op.Range(0, len(values))).reshape(-1)
    with np.errstate(over="ignore"):
        nearest = getattr(np, function)(values.astype(np.float64)).astype(np.float32)
    print(function, int((found != nearest).sum()), hashlib.sha256(found.tobytes()).hexdigest()[:8])
PYTHON
echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), then an emulated Haswell: function, how many of 8000 values are not the nearest, digest"
env/bin/python roots.py | tee real
"$emulator" -cpu Haswell-noTSX env/bin/python roots.py 2> log | tee emulated || { cat log >&2; exit 2; }
moved=$(diff real emulated | sed -n 's/^< \([a-z0-9]*\) .*/\1/p' | xargs)
echo "other on the emulated processor: ${moved:-none}"
wrong=$(sed -n 's/^sqrt \([0-9]*\) .*/\1/p' real)
[ "$moved" = sqrt ] && [ "$wrong" -gt 800 ] || { echo "changed: square roots no longer depend on the processor, or something else does" >&2; exit 1; }
