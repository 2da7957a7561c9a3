#!/usr/bin/env bash
# torch 2.15.0 (from PyPI): objects of one class that are compiled one by one share the limit of eight compilations.
#
# Expected: torch.compile returns a compiled function. Ten objects whose method is compiled by ten calls are ten compiled functions, and
#   the limit on compiling one of them anew (torch._dynamo.config.recompile_limit, 8) is for each.
# Seen: compilations are kept, and counted, with the code object, which all methods of a class share. Where the objects differ in
#   something that a graph depends on, here the names that they read, the ninth and all later ones are not compiled: they run as Python,
#   after a warning for the first, or with fullgraph=True raise an error at their first call, having never been compiled at all. A
#   program that makes its kernels one after the other, as a search over rules or a test suite does, meets it after minutes. A method
#   with a code object of its own (FunctionType(method.__code__.replace(), …)) is counted alone.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.3.5
cat > seen.py << 'PYTHON'
import logging
from types import FunctionType, MethodType

import torch
from torch._dynamo.utils import counters

logging.disable(logging.WARNING)


class Rule:
    """One of several things that are compiled, each by a call of torch.compile of its own."""

    def __init__(self, lags):
        self.names = [f"past{lag}" for lag in range(lags)]

    def step(self, kept):
        return sum(kept[name] for name in self.names)


def alone(method):
    """The method with a code object of its own."""
    function = method.__func__
    return MethodType(FunctionType(function.__code__.replace(), function.__globals__), method.__self__)


def graphs(own_code=False, **options):
    """How many graphs the first call of each of ten compiled methods made, or its error."""
    torch._dynamo.reset()
    found = []
    for rule in (Rule(1 + number) for number in range(10)):
        kernel = torch.compile(alone(rule.step) if own_code else rule.step, backend="eager", **options)
        counters.clear()
        try:
            kernel({name: torch.ones(4) for name in rule.names})
            found.append(counters["stats"]["unique_graphs"])
        except Exception as error:
            found.append(type(error).__name__)
    return found


shared, whole, apart = graphs(), graphs(fullgraph=True), graphs(own_code=True)
print(f"graphs made by the first call of each of ten compiled methods: {shared}")
print(f"with fullgraph=True: {whole}")
print(f"with code objects of their own: {apart}")
assert shared == [1] * 8 + [0] * 2
assert whole[:8] == [1] * 8
assert all(isinstance(error, str) for error in whole[8:])
assert apart == [1] * 10
PYTHON
env/bin/python seen.py
