#!/usr/bin/env bash
# torch 2.15.0 (from PyPI), on a CPU: a forward-mode derivative along the input of a linear layer takes three matrix products.
#
# Expected: two, W x and W dx. The weight does not change, and the backward pass likewise leaves out what nobody asked for.
# Seen: torch.func.jvp (and torch.autograd.forward_ad) makes zeros in the place of the weight's derivative and multiplies them with
#   the input, so that a linear layer or a convolution costs three products and about three times as long as its forward pass, whether
#   or not the weight requires a gradient. torch.utils.flop_counter counts the third one too: it is carried out.
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
from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Keeps of every matrix product whether one of its factors is all zeros."""

    def __init__(self):
        super().__init__()
        self.zeros = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.zeros.append(any(bool((factor == 0).all()) for factor in args))
        return func(*args, **(kwargs or {}))


layer = torch.nn.Linear(512, 512, bias=False).requires_grad_(False)
x, dx = torch.randn(256, 512), torch.randn(256, 512)
with torch.no_grad(), Products() as seen:
    torch.func.jvp(layer, (x,), (dx,))
print(f"{len(seen.zeros)} products, {sum(seen.zeros)} of them with zeros")
assert seen.zeros.count(True) == 1, "changed: what does not change has no derivative"
assert len(seen.zeros) == 3
PYTHON
env/bin/python seen.py
