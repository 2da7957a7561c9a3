#!/usr/bin/env bash
# torch 2.15.0 (from PyPI), on a CPU: scaled_dot_product_attention can be differentiated once.
#
# Expected: a gradient penalty, a Hessian–vector product or a meta-gradient through attention works as through the four operations that
#   its documentation spells it out as; every other layer of torch.nn.TransformerEncoderLayer allows it.
# Seen: the fused kernel that is chosen by itself has no derivative of its backward pass: the second differentiation raises
#   RuntimeError at the end of all work, although the first one with create_graph=True went through without a warning. Under
#   sdpa_kernel(SDPBackend.MATH) it works, and so it does for inputs that the fused kernel does not take.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def second(context):
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 5, 8, requires_grad=True)
    with context:
        attended = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        (slope,) = torch.autograd.grad(attended.square().sum(), tokens, create_graph=True)
        try:
            (curvature,) = torch.autograd.grad(slope.square().sum(), tokens)
        except RuntimeError as error:
            return f"RuntimeError: {str(error).splitlines()[0]}"
    return f"a second derivative of norm {curvature.norm():.3f}"


chosen, plain = second(contextlib.nullcontext()), second(sdpa_kernel(SDPBackend.MATH))
print("kernel of torch's choice:", chosen)
print("plain mathematics:       ", plain)
assert chosen.startswith("RuntimeError"), "changed: the fused kernel can be differentiated twice"
assert plain.startswith("a second derivative"), "changed: the plain form cannot"
PYTHON
env/bin/python seen.py
