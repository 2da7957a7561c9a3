"""Processes that compile nothing do not load the compiler; those that do, find it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from atlas.harness.startup import defer_compiler
defer_compiler()
defer_compiler()
import torch, timm

def loaded():
    return "sympy" in sys.modules

layer = torch.nn.Linear(2, 1)
optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)

def step():
    optimizer.zero_grad()
    layer(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return [parameter.detach().clone() for parameter in layer.parameters()]

before = [parameter.detach().clone() for parameter in layer.parameters()]
assert not torch.equal(step()[0], before[0])
saved = optimizer.state_dict()
timm.create_model("vit_tiny_patch16_224", img_size=32)
assert not loaded()

compiled = torch.compile(lambda x: x.sin() + 1, backend="eager", fullgraph=True)
x = torch.randn(3)
assert torch.equal(compiled(x), x.sin() + 1)
assert loaded()
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.__file__
import torch._dynamo.config
from torch._dynamo.utils import counters
assert counters["stats"]["unique_graphs"] == 1
optimizer.load_state_dict(saved)
step()
"""


def test_the_compiler_comes_when_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_submodule_of_the_compiler_brings_all_of_it() -> None:
    program = """
import sys
from atlas.harness.startup import defer_compiler
defer_compiler()
import torch._dynamo.config
from torch._dynamo import OptimizedModule
assert "sympy" in sys.modules and torch._dynamo.__file__
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
