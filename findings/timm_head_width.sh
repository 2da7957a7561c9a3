#!/usr/bin/env bash
# timm 1.0.31 and torch 2.15.0 (from PyPI), on a processor: the head width that EVA's and BEiT's attentions take cannot be used.
#
# Expected: attn_head_dim ("dimension of each attention head") other than dim / num_heads works, as it does in timm's other attentions,
#   whose output projection has as many inputs as all heads together are wide; so has that of these two.
# Seen: EvaAttention and BEiT's Attention are built, and fail in their first call: heads are put together to the width of the input
#   tokens, not to that of the heads.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 torchvision==0.29.2 numpy==2.3.5 timm==1.0.31
cat > seen.py << 'PYTHON'
import torch
from timm.layers import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention

tokens = torch.randn(1, 5, 64)
attentions = {
    "Attention": Attention(64, num_heads=2, attn_head_dim=16),
    "AttentionRope": AttentionRope(64, num_heads=2, attn_head_dim=16),
    "EvaAttention": EvaAttention(64, num_heads=2, attn_head_dim=16, scale_norm=False),
    "BeitAttention": BeitAttention(64, num_heads=2, attn_head_dim=16),
}
failed = set()
for name, attention in attentions.items():
    try:
        print(f"{name:15}", tuple(attention(tokens).shape))
    except RuntimeError as error:
        failed.add(name)
        print(f"{name:15}", error)
assert failed == {"EvaAttention", "BeitAttention"}, "changed: other attentions fail"
PYTHON
env/bin/python seen.py
