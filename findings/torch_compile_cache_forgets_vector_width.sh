#!/usr/bin/env bash
# torch 2.15.0 (from PyPI) with g++, on a processor with AVX-512. Inductor's cache is looked up by FxGraphHashDetails
#   (torch/_inductor/codecache.py), which has the graph, the settings and GPUs, and not what CPU vectors the code was written for.
#
# Expected: ATEN_CPU_CAPABILITY=avx2, which is documented for finding out what a processor's kernels change, gives the numbers of
#   AVX2's kernels, for compiled functions too; and machines that share a cache in TORCHINDUCTOR_CACHE_DIR take from it what suits them.
# Seen: a function compiled first with AVX-512 and then, by another process, with AVX2 is taken from the cache as it was written for
#   vectors of 16 numbers, and compiled for vectors of 8: half of the numbers are never written, and nothing is said. With a cache of
#   its own, or a tag of its own (torch.compiler.config.cache_key_tag), each of the two is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5

cat > compiled.py << 'PYTHON'
import os

import torch

torch.set_num_threads(1)
torch.compiler.config.cache_key_tag = os.environ.get("TAG", "")
values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
plain = torch.log1p(values)
found = torch.compile(lambda x: torch.log1p(x.abs()))(values)
print(torch.backends.cpu.get_cpu_capability(), int(((found - plain).abs() > 1e-5).sum()))
PYTHON

right() { # capability, folder of the cache, tag
    ATEN_CPU_CAPABILITY=$1 TORCHINDUCTOR_CACHE_DIR=$work/$2 TAG=${3:-} OMP_NUM_THREADS=1 env/bin/python compiled.py 2> log || { cat log >&2; exit 2; }
}
told() { echo "$1: ${2% *}, of 100000 numbers ${2#* } are wrong"; }

wide=$(right avx512 shared)
[ "${wide% *}" = AVX512 ] || { echo "this processor has no AVX-512" >&2; exit 2; }
told "an empty cache" "$wide"
shared=$(right avx2 shared)
told "the same cache" "$shared"
alone=$(right avx2 alone)
told "a cache of its own" "$alone"
tagged=$(right avx2 shared other)
told "the same cache, another tag" "$tagged"
[ "$wide $alone $tagged" = "AVX512 0 AVX2 0 AVX2 0" ] && [ "${shared#* }" -gt 10000 ] \
    || { echo "changed: the cache is looked up by the vectors as well" >&2; exit 1; }
