#!/usr/bin/env bash
# pyautoattack 0.2.0 with torch 2.15.0 (from PyPI): an evaluation reseeds the whole process and stops its tracing.
#
# Expected: measuring robust accuracy in the middle of a training leaves the training as it was: a program that called torch.manual_seed
#   gives the same numbers each time, and a debugger or a coverage tool goes on watching.
# Seen: every attack seeds torch's global generator with a seed of its own, the clock where none was given. What the program draws next
#   is new in each run although it seeded itself, and with a seed given it is the attack's stream, the same after every evaluation. A
#   check for changing models sets the interpreter's trace function and then removes whatever was there, so that code after the
#   evaluation shows as not covered. Saving and setting back torch.get_rng_state() and sys.gettrace() is the way out.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python pyautoattack==0.2.0 torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import sys
import time

import torch
from pyautoattack import AutoAttack


def watcher(*event):
    """Stands for a debugger's or a coverage tool's trace function; it looks at nothing."""


def after_evaluation(program_seed, **options):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)).eval()
    attack = AutoAttack(model, norm="Linf", eps=0.001, version="standard", device="cpu", **options)
    attack.attacks_to_run = ["apgd-ce"]
    images = torch.rand(4, 3, 4, 4)
    torch.manual_seed(program_seed)
    sys.settrace(watcher)
    attack.run_standard_evaluation(images, model(images).argmax(1))
    watched = sys.gettrace() is watcher
    sys.settrace(None)
    return torch.rand(1).item(), watched


torch.manual_seed(0)
undisturbed = torch.rand(1).item()
first, watched = after_evaluation(0)
time.sleep(1.1)
second, _ = after_evaluation(0)
given, _ = after_evaluation(0, seed=5)
given_again, _ = after_evaluation(1, seed=5)
print(f"the number drawn after manual_seed(0), with nothing between:   {undisturbed:.4f}")
print(f"  ... with an evaluation between, twice:                       {first:.4f} {second:.4f}")
print(f"  ... with seed=5 for the attack, manual_seed(0) and (1):      {given:.4f} {given_again:.4f}")
print(f"the trace function is still there after the evaluation:        {watched}")
assert len({undisturbed, first, second}) == 3, "changed: the global generator is no longer seeded from the clock"
assert given == given_again, "changed: the global generator is no longer seeded with the attack's seed"
assert not watched, "changed: the trace function survives"
PYTHON
env/bin/python seen.py
