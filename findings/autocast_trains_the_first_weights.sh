#!/usr/bin/env bash
# torch 2.15.0 (from PyPI): a training that is called inside a block of autocast computes every step with the weights of the first.
#
# Expected: autocast casts weights where a product uses them. Whoever wraps a whole training, or calls one of a library's under it,
#   gets the usual mixed precision; at worst the backward pass is computed in lower precision than it needs.
# Seen: what was cast of a weight is kept until the outermost block ends, and an optimiser's step, which changes the weight in place,
#   does not count. The loss of every step is the first one's to the last bit, without a warning, while the weights walk away along one
#   gradient. With biases, norms or embeddings, which are not cast, the loss moves a little, and nothing gives it away. A library whose
#   functions train calls torch.clear_autocast_cache() after every step; a caller opens autocast for the forward pass alone.
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
from torch import nn


def losses(around, within, clear=False):
    """Ten steps on one batch, with a context around the whole training and one around each forward pass."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 16, bias=False), torch.randn(32, 16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0)
    found = []
    with around():
        for _ in range(10):
            with within():
                loss = layer(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if clear:
                torch.clear_autocast_cache()
            found.append(loss.item())
    return found


def mixed():
    return torch.autocast("cpu", torch.bfloat16)


nothing = contextlib.nullcontext
usual, whole, cleared = losses(nothing, mixed), losses(mixed, nothing), losses(mixed, nothing, clear=True)
print(f"autocast around each forward pass: loss {usual[0]:.4f} to {usual[-1]:.4f}")
print(f"autocast around the training:      loss {whole[0]:.4f} to {whole[-1]:.4f}, {len(set(whole))} value in {len(whole)} steps")
print(f"and the cache cleared every step:  loss {cleared[0]:.4f} to {cleared[-1]:.4f}")
assert len(set(whole)) == 1, "changed: the loss moves"
assert usual[-1] < usual[0] / 2 and abs(cleared[-1] - usual[-1]) < 0.05 * usual[0]
PYTHON
env/bin/python seen.py
