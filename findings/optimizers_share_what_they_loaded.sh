#!/usr/bin/env bash
# torch 2.15.0 (from PyPI): an optimizer that loads another's state dict goes on with the other's own tensors.
#
# Expected: as Module.load_state_dict does, Optimizer.load_state_dict copies numbers, so that two trainings which begin from one state
#   (a population, a branch of a search, a trial that is taken back) are separate from then on; and a state dict that was kept is the
#   state of that moment.
# Seen: the state dict holds the live tensors, and loading casts them, which copies nothing where type and device agree already. A step
#   of the second optimizer moves the first one's moments and raises its step counter, and a state that was kept follows every later
#   step, so that loading it takes nothing back. Without a copy.deepcopy in between, both trainings are silently wrong. Where a cast
#   takes place (weights of another type or device) the same code gives separate optimizers.
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

KINDS = {"Adam": torch.optim.Adam, "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)}


def training(kind, dtype=torch.float32):
    weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    return weight, KINDS[kind]([weight])


def step(weight, optimizer, gradient):
    weight.grad = torch.full_like(weight, gradient)
    optimizer.step()


def numbers(weight, optimizer):
    return {name: value.clone() for name, value in optimizer.state[weight].items() if isinstance(value, torch.Tensor)}


for kind in KINDS:
    for how in ("as it is", "as a deep copy", "in double precision"):
        weight, optimizer = training(kind)
        step(weight, optimizer, 1.0)
        kept = optimizer.state_dict()
        branch = training(kind, torch.float64 if how == "in double precision" else torch.float32)
        branch[1].load_state_dict(copy.deepcopy(kept) if how == "as a deep copy" else kept)
        before = numbers(weight, optimizer)
        step(*branch, -5.0)
        after = numbers(weight, optimizer)
        moved = sorted(name for name in before if not torch.equal(before[name], after[name]))
        print(f"{kind:4} loaded {how:20}: a step of the second moves of the first: {moved}")
        if how == "as a deep copy":
            assert moved == []
        if how == "as it is":
            assert moved == sorted(before)
        if how == "in double precision":  # the counter of steps alone keeps its type, and is shared
            assert moved == (["step"] if kind == "Adam" else [])
PYTHON
env/bin/python seen.py
