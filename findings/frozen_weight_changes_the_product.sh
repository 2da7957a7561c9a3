#!/usr/bin/env bash
# torch 2.15.0 (from PyPI), on an x86-64 processor: freezing a layer changes the last bits of what it computes under torch.no_grad().
#
# Expected: under torch.no_grad() nothing asks for gradients, so whether a weight has requires_grad set changes nothing: a model gives
#   the same numbers before and after requires_grad_(False).
# Seen: for an input whose tokens do not lie in a row in memory (windows cut out of a map, a transposed batch) a linear layer in
#   float64 gives other last bits once its weight is frozen. Whether the product is taken as one of two matrices or as a batch of
#   them depends on the weight's requires_grad alone; that gradients are off is not asked. With an input in a row, and here in
#   float32, both are the same bits. A trained model and its frozen copy can so differ where exact equality is tested.
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
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
layer = nn.Linear(64, 192, dtype=torch.float64)
frozen = copy.deepcopy(layer).requires_grad_(False)
maps = torch.randn(2, 14, 14, 64, dtype=torch.float64)
windows = maps.reshape(2, 2, 7, 2, 7, 64).transpose(2, 3)  # four windows of 7 x 7 tokens from each map
with torch.no_grad():
    scattered = (layer(windows) - frozen(windows)).abs().max().item()
    in_a_row = (layer(windows.contiguous()) - frozen(windows.contiguous())).abs().max().item()
    between = (layer(windows) - layer(windows.contiguous())).abs().max().item()
    between_frozen = (frozen(windows) - frozen(windows.contiguous())).abs().max().item()
print(f"trainable and frozen weights, tokens scattered: largest difference {scattered:.1e}")
print(f"trainable and frozen weights, tokens in a row:  largest difference {in_a_row:.1e}")
print(f"scattered and in a row: {between:.1e} with trainable weights, {between_frozen:.1e} with frozen ones")
assert 0 < scattered < 1e-12
assert in_a_row == 0
PYTHON
env/bin/python seen.py
