#!/usr/bin/env bash
# pyautoattack 0.2.0 with torch 2.15.0 (from PyPI): the standard attack stops with an IndexError for fewer than ten classes.
#
# Expected: version "standard", the one that tables of robust accuracy mean, fits its targeted attacks to the classes that the model has,
#   or refuses such a model in words before it starts.
# Seen: both targeted attacks aim at the nine most likely wrong classes whatever the model has. For four or nine classes it warns that
#   this is too many, goes on, and raises IndexError out of the attack once the first attacks have been paid for; ten classes work.
#   Setting `n_target_classes` of `apgd_targeted` and `fab` to the number of classes less one is the way out.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python pyautoattack==0.2.0 torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import torch
from pyautoattack import AutoAttack


def outcome(classes, fitted):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, classes)).eval()
    images = torch.rand(4, 3, 4, 4)
    attack = AutoAttack(model, norm="Linf", eps=0.001, version="standard", device="cpu", seed=0)
    if fitted:
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = classes - 1
    try:
        attack.run_standard_evaluation(images, model(images).argmax(1))
    except IndexError as error:
        return f"IndexError: {error}"
    return "finished"


seen = {}
for classes, fitted in ((4, False), (9, False), (10, False), (4, True)):
    seen[classes, fitted] = outcome(classes, fitted)
    print(f"{classes:2} classes{', targets set by hand' if fitted else ''}: {seen[classes, fitted]}")
failed = [case for case, what in seen.items() if what != "finished"]
assert failed == [(4, False), (9, False)], "changed: few classes are handled otherwise"
PYTHON
env/bin/python seen.py 2> warnings.txt
