#!/usr/bin/env bash
# pyoperon 0.6.2 (from PyPI): the minimum and the maximum are swapped.
#
# Expected: NodeType.Fmin is the smaller of two values and NodeType.Fmax the larger, and a search with allowed_symbols="fmin" builds
#   formulas out of minima.
# Seen: the two names are crossed. Node(NodeType.Fmin) is called fmax, is printed as max and evaluates to the larger value, and the other
#   way round. The regressor passes the names on: allowed to use fmin alone, it fits min(x, y) perfectly, as the negative of
#   max(-x, -y), so that good scores hide it. Printed formulas can be trusted; the list of allowed symbols means its opposite. A caller
#   who allows both sees nothing.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python pyoperon==0.6.2 numpy==2.3.5 scikit-learn==1.9.1
cat > seen.py << 'PYTHON'
import numpy as np
import pyoperon
from pyoperon.sklearn import SymbolicRegressor

table = np.asfortranarray(np.float32([[-2, 3], [2, -3], [0.5, 1]]))
dataset = pyoperon.Dataset(table)
names = {variable.Hash: variable.Name for variable in dataset.Variables}
smaller, larger = table.min(1), table.max(1)


def built(kind):
    node = pyoperon.Node(kind)
    leaves = [pyoperon.Node(pyoperon.NodeType.Variable, variable.Hash) for variable in dataset.Variables]
    for leaf in leaves:
        leaf.Value = 1
    tree = pyoperon.Tree([*leaves, node])
    tree.UpdateNodes()
    values = pyoperon.Evaluate(tree, dataset, pyoperon.Range(0, len(table)))
    return node.Name, pyoperon.InfixFormatter.Format(tree, names, 0), values


for name in ("Fmin", "Fmax"):
    print(f"NodeType.{name}:", *built(getattr(pyoperon.NodeType, name)))
points = np.random.default_rng(0).uniform(-2, 2, (200, 2))
target = points.min(1)
model = SymbolicRegressor(
    allowed_symbols="fmin,variable", generations=30, population_size=100, random_state=1, max_length=8, n_threads=1, optimizer_iterations=0
).fit(points, target)
formula, score = model.get_model_string(model.model_, precision=2), model.score(points, target)
print(f"min(x, y) fitted with fmin alone: {formula} (R2 {score:.3f})")
assert built(pyoperon.NodeType.Fmin)[0] == "fmax" and np.array_equal(built(pyoperon.NodeType.Fmin)[2], larger), "changed: Fmin"
assert built(pyoperon.NodeType.Fmax)[0] == "fmin" and np.array_equal(built(pyoperon.NodeType.Fmax)[2], smaller), "changed: Fmax"
assert "max(" in formula and "min(" not in formula, "changed: the regressor's fmin"
PYTHON
env/bin/python seen.py
