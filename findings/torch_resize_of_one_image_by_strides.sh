#!/usr/bin/env bash
# torch 2.15.0 (from PyPI), on an x86-64 processor: how fast one image of bytes is resized depends on the stride of an axis of length 1.
#
# Expected: a picture (height, width, 3) of bytes is resized in the same time however its view (1, 3, height, width) was written down:
#   x.permute(2, 0, 1)[None] and x[None].permute(0, 3, 1, 2) are the same numbers at the same addresses.
# Seen: the two views differ in the stride of the batch axis alone, along which there is nothing to step. Only the second one's
#   result is written with the colours side by side, as its input is; the first takes a quarter longer, and has to be rearranged
#   for whoever wants a picture. All bytes are equal.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import time
from statistics import median

import torch
from torch.nn.functional import interpolate

torch.set_num_threads(1)
picture = torch.randint(256, (375, 500, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
views = {
    "x.permute(2, 0, 1)[None]": picture.permute(2, 0, 1)[None],
    "x[None].permute(0, 3, 1, 2)": picture[None].permute(0, 3, 1, 2),
}


def resized(view):
    return interpolate(view, (224, 224), mode="bicubic", antialias=True)


seconds = {name: [] for name in views}
for _ in range(200):
    for name, view in views.items():
        began = time.process_time()
        resized(view)
        seconds[name].append(time.process_time() - began)
for name, view in views.items():
    found = resized(view)
    print(f"{name:28} strides {view.stride()}, result {found.stride()}, {1e3 * median(seconds[name]):.2f} ms")
slow, fast = views.values()
ratio = median(a / b for a, b in zip(*seconds.values()))
print(f"the first takes {ratio:.2f} times as long; equal bytes: {torch.equal(resized(slow), resized(fast))}")
assert slow.data_ptr() == fast.data_ptr() and torch.equal(slow, fast) and torch.equal(resized(slow), resized(fast))
assert resized(slow).stride() != resized(fast).stride() and ratio > 1.05, "changed: both take the same road"
PYTHON
env/bin/python seen.py
