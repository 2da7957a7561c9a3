#!/usr/bin/env bash
# torch 2.15.0 (from PyPI; torch.utils.flop_counter), on a processor: whole layers are counted as nothing, depending on the mode.
#
# Expected: FlopCounterMode gives the same count for the same layer whether or not gradients are recorded, and a layer that it cannot
#   count is reported or at least is never a layer as common as these.
# Seen: it knows some operators by name and takes every other one as free, without a word.
#   - TransformerEncoderLayer and MultiheadAttention in evaluation mode under no_grad take a fused path that it does not know: 0, while
#     the same layer on the same input is counted in full as soon as gradients are on.
#   - LSTM is 0 where GRU and LSTMCell are counted; Bilinear, and a matrix times a vector where times a matrix is counted, are 0 as well.
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
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counted(run, *inputs, gradients=True):
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        run(*inputs)
    return counter.get_total_flops()


rows, tokens = torch.randn(4, 8), torch.randn(2, 5, 8)
encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
seen = {
    "TransformerEncoderLayer": counted(encoder, tokens),
    "TransformerEncoderLayer, no_grad": counted(encoder, tokens, gradients=False),
    "MultiheadAttention": counted(attention, tokens, tokens, tokens),
    "MultiheadAttention, no_grad": counted(attention, tokens, tokens, tokens, gradients=False),
    "GRU": counted(nn.GRU(8, 8), tokens),
    "LSTMCell": counted(nn.LSTMCell(8, 8), rows),
    "LSTM": counted(nn.LSTM(8, 8), tokens),
    "Linear": counted(nn.Linear(8, 4), rows),
    "Bilinear": counted(nn.Bilinear(8, 8, 4), rows, rows),
    "matrix @ matrix": counted(torch.matmul, rows, rows.T),
    "matrix @ vector": counted(torch.matmul, rows, rows[0]),
}
for layer, operations in seen.items():
    print(f"{layer:34}{operations:8}")
free = {layer for layer, operations in seen.items() if operations == 0}
assert free == {
    "TransformerEncoderLayer, no_grad", "MultiheadAttention, no_grad", "LSTM", "Bilinear", "matrix @ vector",
}, "changed: other layers are counted as free"
PYTHON
env/bin/python seen.py
