#!/usr/bin/env bash
# pyoperon 0.6.2 (from PyPI): its reader of formulas leaves off what follows an operator that has no space around it.
#
# Expected: InfixParser.Parse reads "2-x" and "2 - x" alike, or refuses one of them, as readers of formulas do; spaces don't matter.
# Seen: an operator is one only with a space on either side. Otherwise the formula ends there, with no error: "2-X1" and "2*X1" are read
#   as the constant 2, "sin(X1)-X2" as sin(X1), and "-sin(X1)" as X1. Formulas from a paper or from SymPy, which writes "2*x", become
#   other functions. The library's own printer puts the spaces in.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python pyoperon==0.6.2 numpy==2.3.5
cat > seen.py << 'PYTHON'
import numpy as np
import pyoperon

table = np.asfortranarray(np.float32([[-2, 3], [2, -3], [0.5, 1]]))
dataset = pyoperon.Dataset(table)
first, second = table.T
identifiers = {variable.Name: variable.Hash for variable in dataset.Variables}


def read(formula):
    tree = pyoperon.InfixParser.Parse(formula, identifiers)
    return pyoperon.Evaluate(tree, dataset, pyoperon.Range(0, len(table)))


formulas = {
    "2 - X1": 2 - first,
    "2-X1": 2 - first,
    "2 * X1": 2 * first,
    "2*X1": 2 * first,
    "sin(X1) - X2": np.sin(first) - second,
    "sin(X1)-X2": np.sin(first) - second,
    "0 - sin(X1)": -np.sin(first),
    "-sin(X1)": -np.sin(first),
}
wrong = set()
for formula, right in formulas.items():
    values = read(formula)
    if not np.allclose(values, right, atol=1e-4):
        wrong.add(formula)
    print(f"{formula:14}{'read otherwise' if formula in wrong else 'read as meant':16}{values} for {right}")
assert wrong == {"2-X1", "2*X1", "sin(X1)-X2", "-sin(X1)"}, "changed: formulas are read otherwise"
PYTHON
env/bin/python seen.py
