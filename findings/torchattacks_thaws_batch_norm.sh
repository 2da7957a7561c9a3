#!/usr/bin/env bash
# torchattacks 3.5.1 with torch 2.15.0 (from PyPI): an attack in the middle of a training thaws the layers that were kept in eval().
#
# Expected: an attack puts the model into evaluation mode, since adversarial images belong to the model as it predicts, and gives it back
#   as it was.
# Seen: it remembers one flag, that of the outermost module, and afterwards calls model.train() for the whole of it. Batch
#   normalisations that fine-tuning had frozen by eval() are in training mode from the first attack on: the running means move with
#   every batch, and what the model computes in the same step of the training is of the batch's statistics. Call eval() on them again
#   after each attack, or give the attack a model of its own over the same weights.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torchattacks==3.5.1 torch==2.15.0 torchvision==0.29.2 numpy==2.3.5 requests==2.25.1
cat > seen.py << 'PYTHON'
import torch
import torchattacks
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 10))
images, labels = torch.rand(16, 3, 8, 8), torch.randint(10, (16,))
model.train()
frozen = model[1].eval()


def step():
    """What a step of training does to the frozen layer's statistics."""
    model(images)
    return frozen.running_mean.clone()


before = step()
assert torch.equal(before, torch.zeros(4))
torchattacks.PGD(model, eps=0.01, alpha=0.005, steps=2)(images, labels)
print(f"the batch normalisation is in training mode: {frozen.training}")
assert frozen.training
moved = (step() - before).abs().max().item()
print(f"its running mean moved in the next step by {moved:.4f}")
assert moved > 0
PYTHON
env/bin/python seen.py
