#!/usr/bin/env bash
# torch 2.15.0 (from PyPI): looking at validation data changes the training that follows.
#
# Expected: a DataLoader with shuffle=False and no worker processes draws no random number, so that a training that is evaluated after
#   each epoch ends with the same weights as one that is not.
# Seen: every iteration over a DataLoader begins with a draw from torch's global generator (the seed that its workers would get, if it
#   had any). Evaluating one time more moves all later shuffles and dropout masks. A generator of the loader's own keeps the training as
#   it was.
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
from torch.utils.data import DataLoader, TensorDataset

rows = torch.linspace(-1, 1, 64)[:, None]
data = TensorDataset(rows, rows.sin())


def trained(validation):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    descent = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        for given, wanted in DataLoader(data, 8, shuffle=True):
            descent.zero_grad()
            (model(given) - wanted).square().mean().backward()
            descent.step()
        if validation is not None:
            with torch.no_grad():
                for given, wanted in validation:
                    (model(given) - wanted).square().mean()
    return model.weight.item()


alone = trained(None)
watched = trained(DataLoader(data, 8, shuffle=False))
own = trained(DataLoader(data, 8, shuffle=False, generator=torch.Generator()))
print(f"trained weight, never evaluated:                        {alone:.9f}")
print(f"  ... evaluated after each epoch:                       {watched:.9f}")
print(f"  ... evaluated, the loader with its own generator:     {own:.9f}")
assert alone == trained(None), "one seed gives two trainings on this machine"
assert watched != alone, "changed: an unshuffled loader leaves the global generator alone"
assert own == alone, "changed: a generator of its own no longer keeps the loader apart"
PYTHON
env/bin/python seen.py
