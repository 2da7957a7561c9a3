"""What the meter counts, against sizes worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from atlas.nn.meter import LiveMemory

WIDTH = 50
FLOAT = 4


def test_weights_and_activations_are_told_apart() -> None:
    def train(batch: int) -> LiveMemory:
        with LiveMemory() as memory:
            model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh(), nn.Linear(WIDTH, WIDTH, bias=False))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
            for _ in range(2):
                model(torch.ones(batch, WIDTH)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return memory

    small, large = train(10), train(1000)
    # weights, gradients and momenta of two matrices, and no more than one matrix of workspace
    assert 6 * WIDTH**2 * FLOAT <= small.weight_bytes <= 7 * WIDTH**2 * FLOAT
    assert large.weight_bytes == small.weight_bytes
    # input, two activations and the output at the least
    assert large.activation_bytes >= 3 * 1000 * WIDTH * FLOAT
    assert 90 <= large.activation_bytes / small.activation_bytes <= 100
    assert small.operations == large.operations > 0


def test_weights_that_are_gone_in_the_end_are_weights_all_the_same() -> None:
    def train(batch: int) -> None:
        model = nn.Linear(WIDTH, WIDTH, bias=False)
        model(torch.ones(batch, WIDTH)).sum().backward()

    with LiveMemory() as memory:
        train(10)
    assert 2 * WIDTH**2 * FLOAT <= memory.weight_bytes <= 3 * WIDTH**2 * FLOAT
    assert memory.activation_bytes < WIDTH**2 * FLOAT


def test_released_memory_is_given_back_and_views_cost_nothing() -> None:
    with LiveMemory() as memory:
        for _ in range(20):
            x = torch.zeros(1000)
            x.view(10, 100).t()
            del x
    assert memory.activation_bytes == 1000 * FLOAT
    assert memory.operations == 20


def test_works_inside_functional_transforms() -> None:
    with LiveMemory() as memory:
        gradient = torch.func.vmap(torch.func.grad(lambda w: (w**2).sum()))(torch.ones(3, 7))
    assert gradient.shape == (3, 7)
    assert memory.operations > 0
