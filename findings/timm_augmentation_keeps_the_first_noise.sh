#!/usr/bin/env bash
# timm 1.0.31 and torch 2.15.0 (from PyPI), on a processor: two RandAugment policies that share a dict of parameters share noise.
#
# Expected: rand_augment_transform("rand-m9-mstd3", parameters) has the standard deviation of magnitudes that its string names,
#   whatever the parameters (fill colour, interpolation) were used for before.
# Seen: the first policy that is made with a dict writes its deviation (mstd) and greatest magnitude (mmax) into it, and every
#   later one finds them there and keeps them: the strings of the later policies are read, and have no effect. No word is said.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 torchvision==0.29.2 numpy==2.3.5 timm==1.0.31
cat > seen.py << 'PYTHON'
from timm.data.auto_augment import rand_augment_transform


def spread(specification, parameters):
    """Deviation and greatest magnitude that a policy really draws with."""
    operation = rand_augment_transform(specification, parameters).ops[0]
    return operation.magnitude_std, operation.magnitude_max


asked = ("rand-m9-mstd0.5-mmax10", "rand-m9-mstd3-mmax20")
apart = [spread(one, {"img_mean": (124, 116, 104)}) for one in asked]
shared = {"img_mean": (124, 116, 104)}
together = [spread(one, shared) for one in asked]
print("each with a dict of its own:", dict(zip(asked, apart)))
print("both with the same dict:    ", dict(zip(asked, together)))
print("the dict afterwards:        ", shared)
assert apart == [(0.5, 10), (3.0, 20)], "changed: what the strings say is something else"
assert together == [(0.5, 10)] * 2 and shared["magnitude_std"] == 0.5, "changed: the second policy has its own deviation"
PYTHON
env/bin/python seen.py
