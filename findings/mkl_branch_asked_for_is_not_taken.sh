#!/usr/bin/env bash
# oneMKL 2026.2.0 (from PyPI), on processors of both makers as qemu-user 7.2 or newer shows them (Haswell, EPYC-Rome).
#
# Expected: MKL_CBWR=AVX2, which asks for the same bits wherever there is AVX2, gives one set of numbers on an Intel and on an AMD processor with
#   AVX2, or at least says that it does not.
# Seen: on the AMD every branch but COMPATIBLE is quietly taken for AUTO: AVX2, AVX and SSE4_2 give the bits of AUTO,
#   and MKL_CBWR_Get answers AUTO (2) where AVX2 (10) was asked for. On the Intel AVX2 is AVX2, with other bits. COMPATIBLE alone gives
#   both the same bits. It is meant for SSE2: on a real EPYC (Zen 5) the matrix products of a ViT took 2.5 times as long with it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python mkl==2026.2.0
emulator=$(command -v qemu-x86_64 || command -v qemu-x86_64-static || true)
if [ -z "$emulator" ]; then # Debian's, unpacked here only
    apt-get download -qq qemu-user-static
    dpkg -x qemu-user-static_*.deb qemu
    emulator="$work/qemu/usr/bin/qemu-x86_64-static"
fi

cat > product.py << 'PYTHON'
import ctypes
import glob
import hashlib
import random
import sys

mkl = ctypes.CDLL(glob.glob(f"{sys.prefix}/lib/libmkl_rt.so*")[0])
m, k, n = 64, 65, 66
draw = random.Random(0)
a = (ctypes.c_float * (m * k))(*[draw.random() - 0.5 for _ in range(m * k)])
b = (ctypes.c_float * (k * n))(*[draw.random() - 0.5 for _ in range(k * n)])
c = (ctypes.c_float * (m * n))()
one, zero = ctypes.c_float(1), ctypes.c_float(0)
mkl.cblas_sgemm(101, 111, 111, m, n, k, one, a, k, b, n, zero, c, n)  # row-major, nothing transposed
print(hashlib.sha256(bytes(c)).hexdigest()[:8], mkl.MKL_CBWR_Get(-1))  # -1: the branch
PYTHON

export MKL_THREADING_LAYER=SEQUENTIAL
product() { # processor, branch
    MKL_CBWR=$2 "$emulator" -cpu "$1" env/bin/python product.py 2> /dev/null
}

declare -A seen
for processor in Haswell-noTSX EPYC-Rome; do
    for branch in COMPATIBLE AVX2 AVX SSE4_2 AUTO; do
        seen[$processor,$branch]=$(product $processor $branch)
        printf '%-14s %-11s bits %s, branch %s\n' "$processor" "$branch" ${seen[$processor,$branch]}
    done
done

[ "${seen[Haswell-noTSX,COMPATIBLE]}" = "${seen[EPYC-Rome,COMPATIBLE]}" ] \
    && [ "${seen[EPYC-Rome,AVX2]}" = "${seen[EPYC-Rome,AUTO]}" ] \
    && [ "${seen[EPYC-Rome,SSE4_2]}" = "${seen[EPYC-Rome,AUTO]}" ] \
    && [ "${seen[EPYC-Rome,AVX2]##* }" = 2 ] && [ "${seen[Haswell-noTSX,AVX2]##* }" = 10 ] \
    && [ "${seen[Haswell-noTSX,AVX2]% *}" != "${seen[EPYC-Rome,AVX2]% *}" ] \
    || { echo "changed: MKL_CBWR=AVX2 is one set of numbers, or not taken for AUTO" >&2; exit 1; }
