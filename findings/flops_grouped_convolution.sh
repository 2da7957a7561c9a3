#!/usr/bin/env bash
# torch 2.15.0 (from PyPI; torch.utils.flop_counter): a grouped convolution's weight gradient is charged once per group too often.
#
# Expected: the gradient with respect to the weights takes as many multiplications as the forward pass: both visit every pair of an output
#   position and a weight once. A depthwise convolution is as cheap to train, next to a dense one, as it is to run.
# Seen: FlopCounterMode counts the forward pass and the input gradient rightly, and the weight gradient as if the convolution were dense:
#   the right count times the number of groups, whatever that is. A training step of a depthwise layer with 32 channels is counted as
#   34 forward passes instead of 3.
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
from torch.utils.flop_counter import FlopCounterMode


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


print("groups   forward   by hand   gradient of weights   of inputs")
wrong = []
for groups in (1, 2, 8, 32):
    convolution = torch.nn.Conv2d(32, 32, 3, padding=1, groups=groups, bias=False)
    image = torch.randn(1, 32, 8, 8)
    by_hand = 2 * 8 * 8 * convolution.weight.numel()
    forward = counted(lambda: convolution(image))
    answer = convolution(image)
    weights = counted(lambda: torch.autograd.grad(answer.sum(), convolution.weight))
    image.requires_grad_()
    answer = convolution(image)
    inputs = counted(lambda: torch.autograd.grad(answer.sum(), image))
    print(f"{groups:6}{forward:10}{by_hand:10}{weights:22}{inputs:12}")
    assert forward == inputs == by_hand, "changed: the forward pass or the input gradient is counted otherwise"
    wrong.append(weights / by_hand)
assert wrong == [1, 2, 8, 32], "changed: the weight gradient is no longer counted once per group"
PYTHON
env/bin/python seen.py
