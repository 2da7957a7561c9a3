#!/usr/bin/env bash
# torch 2.15.0 (from PyPI), on a processor: with one seed, the first normal numbers depend on how many are asked for.
#
# Expected: torch.randn draws from a stream, so that after one seed the first 15 of 16 numbers are the 15 that one gets alone, and 16
#   numbers are 8 and 8 more. torch.rand does so, and NumPy's generators do.
# Seen: below 16 numbers torch draws one by one; from 16 on it fills blocks of 16 by another method, and where the size is no multiple of
#   16 it draws the last 16 again. randn(15) and randn(16) share no number, and randn(17) differs from randn(16) in its first 16. A wider
#   layer, one more class or another batch size changes all of the noise and not only what was added, and a test that draws noise in
#   pieces disagrees with one that draws it whole.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import torch


def common(draw, few, many):
    """How many of the first ``few`` numbers are those among ``many``."""
    torch.manual_seed(0)
    alone = draw(few)
    torch.manual_seed(0)
    return int((alone == draw(many)[:few]).sum())


pairs = ((14, 15), (15, 16), (16, 17), (16, 32))
seen = {draw.__name__: [common(draw, *pair) for pair in pairs] for draw in (torch.rand, torch.randn)}
for name, counts in seen.items():
    for (few, many), count in zip(pairs, counts):
        print(f"torch.{name}: {count:2} of the {few} numbers of {name}({few}) are in place in {name}({many})")
assert seen["rand"] == [14, 15, 16, 16], "changed: uniform numbers are no stream"
assert seen["randn"] == [14, 0, seen["randn"][2], 16] and seen["randn"][2] < 16, "changed: normal numbers are drawn otherwise"
PYTHON
env/bin/python seen.py
