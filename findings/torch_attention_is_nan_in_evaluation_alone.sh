#!/usr/bin/env bash
# torch 2.15.0 (from PyPI), on a CPU; PyTorch's issue 41508 (gradients of such rows) and pull request 190486 (the two paths).
#
# Expected: a layer without dropout computes the same in training and in evaluation; a loss that stayed finite for all of training stays
#   finite when the model is evaluated on the same batch.
# Seen: where attention looks back a few tokens only and sequences are padded at their end, as with any batch of unequal lengths, the
#   last padded queries have nothing left to look at. In training nn.TransformerEncoderLayer gives them 0 from attention and goes on; in
#   evaluation under no_grad it takes a fused path whose softmax over nothing is nan. Two such layers hand the nan on as keys, but masked
#   ones, times 0: so every token of the sequence is nan, and so is the mean over the valid ones. set_fastpath_enabled(False) avoids it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5

cat > masks.py << 'PYTHON'
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)
tokens, look_back, valid = 16, 4, 6
layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2))
x = torch.randn(2, tokens, 32)
distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
hidden = (distance < 0) | (distance >= look_back)
padding = torch.zeros(2, tokens, dtype=torch.bool)
padding[1, valid:] = True


def lost(training, fused=True):
    layers.train(training)
    torch.backends.mha.set_fastpath_enabled(fused)
    with torch.no_grad():
        out = x
        for layer in layers:
            out = layer(out, src_mask=hidden, src_key_padding_mask=padding)
    return [int(out[index, :count].isnan().any(-1).sum()) for index, count in enumerate((tokens, valid))]


for name, seen in (("training", lost(True)), ("evaluation", lost(False)), ("evaluation, not fused", lost(False, False))):
    print(f"{name}: nan in {seen[0]} of {tokens} tokens of the whole sequence, in {seen[1]} of {valid} valid tokens of the padded one")
assert lost(True) == lost(False, False) == [0, 0] and lost(False)[1] > 0, "changed: evaluation is as finite as training"
PYTHON
OMP_NUM_THREADS=1 env/bin/python masks.py
