#!/usr/bin/env bash
# torch 2.15.0 (from PyPI): NAdam goes on from its own state dict as another optimiser where weights are bfloat16.
#
# Expected: state_dict and load_state_dict are there for resuming, and a resumed training is the one that was interrupted, to the last
#   bit where the machine is the same.
# Seen: loading casts every floating-point tensor of the state, but for "step", to the type of its parameter. NAdam keeps the product of
#   its momentum schedule in float32; after loading it is bfloat16, three digits, and stays so: it is a factor of every later step. ASGD's
#   rate is rounded in the same way. Adam, AdamW and SGD keep nothing but "step" in another type than their parameters and resume exactly.
#   An optimiser of one's own that keeps float32 state for bfloat16 weights has to put the types back in its load_state_dict.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import copy

import torch


def advance(weight, optimizer, steps):
    """Steps along gradients that depend on nothing but their number."""
    for step in steps:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
        optimizer.step()


def resumed(kind, dtype):
    """Largest difference between a training that went on and one that was stopped after three steps and loaded."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64).to(dtype))
    optimizer = kind([weight], lr=1e-2)
    advance(weight, optimizer, range(3))
    again = torch.nn.Parameter(weight.detach().clone())
    loaded = kind([again], lr=1e-2)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    types = [{name: value.dtype for name, value in each.state_dict()["state"][0].items()} for each in (optimizer, loaded)]
    changed = sorted(name for name in types[0] if types[0][name] != types[1][name])
    advance(weight, optimizer, range(3, 43))
    advance(again, loaded, range(3, 43))
    return float((weight - again).detach().abs().max()), changed


for kind in (torch.optim.NAdam, torch.optim.ASGD, torch.optim.AdamW):
    for dtype in (torch.float32, torch.bfloat16):
        difference, changed = resumed(kind, dtype)
        print(f"{kind.__name__:6} {str(dtype)[6:]:9} differs by {difference:g}; state of another type after loading: {changed}")
        rounded = {"NAdam": ["mu_product"], "ASGD": ["eta", "mu"]}.get(kind.__name__, []) if dtype is torch.bfloat16 else []
        assert changed == rounded
        assert (difference > 0) == (kind is torch.optim.NAdam and dtype is torch.bfloat16)
PYTHON
env/bin/python seen.py
