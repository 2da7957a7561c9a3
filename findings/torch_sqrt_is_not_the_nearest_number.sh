#!/usr/bin/env bash
# torch 2.15.0 and NumPy 2.3.5 (from PyPI), on processors of both makers as qemu-user 7.2 or newer shows them (Haswell, EPYC-Rome),
#   and on a real EPYC and a real Xeon; PyTorch's issue 31250 tells of other roots on a CPU than on a GPU, not of makers.
#
# Expected: a square root is one of the operations that IEEE 754 asks to be rounded to the nearest number, every processor has an
#   instruction for it, and so torch.sqrt is the same everywhere, as NumPy's is.
# Seen: on an AMD a fifth of the roots of float32 are a neighbour of the nearest number, whatever MKL_CBWR and
#   torch.use_deterministic_algorithms say; on an Intel with AVX2 none is, but for MKL_CBWR=COMPATIBLE, which is asked for so that makers
#   agree; on a Xeon with AVX-512 642 of 100,000 are, 19,380 with COMPATIBLE, and none with MKL_CBWR=AVX2.
#   PyTorch calls MKL's vector functions, whose kernels for other makers refine the approximation of rsqrtps; that instruction differs
#   between processors, so emulation and the real processor differ as well. Adam divides by such roots: its steps move with them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5
emulator=$(command -v qemu-x86_64 || command -v qemu-x86_64-static || true)
if [ -z "$emulator" ]; then # Debian's, unpacked here only
    apt-get download -qq qemu-user-static
    dpkg -x qemu-user-static_*.deb qemu
    emulator="$work/qemu/usr/bin/qemu-x86_64-static"
fi

cat > roots.py << 'PYTHON'
import hashlib

import numpy as np
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
values = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 4 + 0.01
nearest = np.sqrt(values.double().numpy()).astype(np.float32)
found = torch.sqrt(values).numpy()
weight = torch.nn.Parameter(values.clone())
weight.grad = values * 0.1 - 0.2
torch.optim.Adam([weight], lr=0.01).step()
step = hashlib.sha256(weight.detach().numpy().tobytes()).hexdigest()[:8]
print(int((found != nearest).sum()), int((np.sqrt(values.numpy()) != nearest).sum()), step)
PYTHON

roots() { # processor ("real" for the one at hand), branch of MKL
    local run=("$emulator" -cpu "$1")
    [ "$1" != real ] || run=()
    MKL_CBWR=$2 OMP_NUM_THREADS=1 "${run[@]}" env/bin/python roots.py 2> log || { cat log >&2; exit 2; }
}

declare -A wrong
for processor in Haswell-noTSX EPYC-Rome real; do
    for branch in AUTO COMPATIBLE; do
        seen=$(roots $processor $branch)
        read -r wrong["$processor,$branch"] numpy step <<< "$seen"
        echo "$processor, MKL_CBWR=$branch: of 100000 roots ${wrong[$processor,$branch]} are not the nearest (NumPy: $numpy); Adam's step $step"
    done
done
[ "${wrong[Haswell-noTSX,AUTO]}" = 0 ] && [ "${wrong[Haswell-noTSX,COMPATIBLE]}" -gt 10000 ] \
    && [ "${wrong[EPYC-Rome,AUTO]}" -gt 10000 ] && [ "${wrong[EPYC-Rome,COMPATIBLE]}" -gt 10000 ] \
    || { echo "changed: torch's square roots are the nearest numbers on both, or on neither" >&2; exit 1; }
