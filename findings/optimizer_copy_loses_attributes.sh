#!/usr/bin/env bash
# torch 2.15.0 (from PyPI): a copy of an optimizer loses every attribute that its own class has added.
#
# Expected: copy.copy, copy.deepcopy and pickle give an optimizer that can take the next step, as they do for every optimizer of torch
#   and as Python does for objects in general; or else they refuse.
# Seen: torch.optim.Optimizer says what is copied (__getstate__) and names three things: defaults, state and param_groups. What a
#   subclass keeps elsewhere, say a network that proposes the step, is left out in silence. The copy looks whole until its next step
#   raises AttributeError. The optimizers of torch survive because all that they own is in those three.
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
import pickle

import torch


class Scaled(torch.optim.SGD):
    """Gradient descent whose learning rate is scaled by a number of the optimizer's own."""

    def __init__(self, params, lr, scale):
        super().__init__(params, lr)
        self.scale = scale

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(self.scale * group["lr"] * parameter.grad)


def outcome(optimizer):
    try:
        optimizer.step()
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "takes a step"


parameter = torch.nn.Parameter(torch.ones(2))
parameter.grad = torch.ones(2)
ways = {"the original": lambda kept: kept, "copy.copy": copy.copy, "copy.deepcopy": copy.deepcopy, "pickle": lambda kept: pickle.loads(pickle.dumps(kept))}
seen = {}
for optimizer in (torch.optim.Adam([parameter], 0.1), Scaled([parameter], 0.1, scale=0.5)):
    for way, copied in ways.items():
        # a copy's parameters are copies too; only those of the original carry the gradient, so hand it on
        twin = copied(optimizer)
        for group in twin.param_groups:
            for copied_parameter in group["params"]:
                copied_parameter.grad = torch.ones(2)
        seen[type(optimizer).__name__, way] = outcome(twin)
        print(f"{type(optimizer).__name__:8}{way:16}{seen[type(optimizer).__name__, way]}")
broken = {key for key, what in seen.items() if "no attribute 'scale'" in what}
assert broken == {("Scaled", way) for way in ways if way != "the original"}, "changed: copies no longer behave as described"
PYTHON
env/bin/python seen.py
