#!/usr/bin/env bash
# torch 2.15.0 (CPU, from PyPI; torch/_dynamo/guards.py): with dynamic=True a compiled function is compiled anew for where its inputs begin.
#
# Expected: a function compiled with `dynamic=True` takes rows of a matrix, whichever they are: shape, strides and type are the same. So an
#   optimizer may keep the last gradients in a ring and hand its kernel the rows from the newest to the oldest.
# Seen: each input's place in its storage is a symbol like its length is, and as with lengths 0 and 1 are values of their own, and so is
#   a place that happens to equal the length of another input (the second row of a matrix begins where one row's length says). The rows
#   of a ring take turns at these places, so that every rotation has kinds of its own: with twelve rows the limit of eight compilations
#   is reached and, with `fullgraph=True`, the call raises an error that is no `TorchDynamoException`, after steps in which
#   all went well. Rows that are tensors of their own, on the same memory (`torch.from_dlpack`), are compiled for once.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q uv==0.13.9
env/bin/uv pip install -q --python env/bin/python torch==2.15.0
cat > ring.py << 'PYTHON'
import torch
from torch._dynamo.exc import TorchDynamoException

LENGTH, SIZE = 12, 50


def blend(new, past):
    return sum(row * 0.5**lag for lag, row in enumerate(past, 1)) + new


def steps(own):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, ring, raised = torch.compile(blend, dynamic=True, fullgraph=True, backend="aot_eager"), torch.zeros(LENGTH, SIZE), None
    for step in range(30):
        rows = [ring[(step - lag) % LENGTH] for lag in range(1, LENGTH)]
        try:
            new = compiled(torch.ones(SIZE), [torch.from_dlpack(row) for row in rows] if own else rows)
        except Exception as error:
            raised = error
            break
        ring[step % LENGTH] = new
    return step, torch._dynamo.utils.counters["stats"]["unique_graphs"], raised


step, graphs, raised = steps(own=False)
print(f"rows of a ring: {graphs} compilations, then in step {step} of 30 {type(raised).__name__}: {raised}"[:160])
calm = steps(own=True)
print(f"the same memory as tensors of their own: {calm[1]} compilation(s), {calm[0] + 1} steps, {calm[2]}")
changed = raised is None or isinstance(raised, TorchDynamoException) or calm[1] > 2 or calm[2] is not None
raise SystemExit("changed: rows of a ring are no longer compiled for one by one" if changed else 0)
PYTHON
env/bin/python ring.py 2> log.txt || { tail -3 log.txt; exit 1; }
