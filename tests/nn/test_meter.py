"""What the meter counts, against sizes worked out by hand."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import torch
from torch import nn

from atlas.nn.apart import apart
from atlas.nn.counts import forward_flops
from atlas.nn.meter import LiveMemory, Meter
from atlas.nn.work import ONCE, work

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


def test_memory_grows_with_the_examples_of_the_work_that_made_it() -> None:
    weight = nn.Parameter(torch.ones(7))
    with Meter() as meter:
        data = torch.zeros(1000)  # read once, however many examples a step has
        with work("train"):
            batch = torch.zeros(10)
            gradient = 2 * weight
            with work("validation"):
                seen = torch.zeros(20)
            del seen, batch, gradient
        del data
    assert meter.memory.grown({"train": 100, "validation": 3}) == (1000 + 100 * 10 + 7 + 3 * 20) * FLOAT
    assert meter.memory.grown({}) == (1000 + 10 + 7 + 20) * FLOAT
    assert meter.memory.grown({"train": 0, "validation": 0}) == (1000 + 7) * FLOAT


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


def test_each_kind_of_work_is_counted_apart_and_the_innermost_counts() -> None:
    layer, once = nn.Linear(WIDTH, WIDTH, bias=False), 2 * WIDTH**2
    with Meter() as meter:
        layer(torch.ones(1, WIDTH))
        for _ in range(3):
            with work("train"):
                layer(torch.ones(2, WIDTH))
                with work("validation"):
                    layer(torch.ones(5, WIDTH))
                forward_flops(layer, torch.ones(1, WIDTH))
    flops = {kind: spent.flops for kind, spent in meter.spent.items()}
    assert flops == {ONCE: (1 + 3) * once, "train": 3 * 2 * once, "validation": 3 * 5 * once}
    assert meter.spent["train"].launches > 0
    assert sum(spent.launches for spent in meter.spent.values()) == meter.memory.operations


def test_work_goes_on_where_nobody_counts() -> None:
    with work("train"), work("validation"):
        assert nn.Linear(1, 1)(torch.ones(1, 1)).shape == (1, 1)


def test_a_failure_ends_its_kind_of_work() -> None:
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    with Meter() as meter:
        with suppress(ValueError), work("train"):
            raise ValueError
        layer(torch.ones(1, WIDTH))
    assert meter.spent[ONCE].flops == 2 * WIDTH**2


def test_work_apart_counts_for_itself_on_the_way_back_too() -> None:
    def spent(told: bool) -> tuple[dict[str, float], torch.Tensor]:
        torch.manual_seed(0)
        entry, encoder, head = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))
        encoder.requires_grad_(False)
        x = torch.randn(3, 4)
        meter = Meter()
        with meter if told else nullcontext(), work("train"):
            inner = entry(x)
            seen = apart("encoding", encoder, inner) + apart("encoding", encoder, 2 * inner)
            head(seen).sum().backward()
        assert entry.weight.grad is not None
        return {kind: one.flops for kind, one in meter.spent.items() if one.flops}, entry.weight.grad

    product = 2 * 3 * 4 * 4
    counted, gradient = spent(told=True)
    # entry: forward, weight; head: forward, input, weight; the encoder, twice: forward, input
    assert counted == {"train": 5 * product, "encoding": 4 * product}
    assert torch.equal(gradient, spent(told=False)[1])


def test_work_apart_without_gradients_is_of_its_kind() -> None:
    encoder = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)
    with Meter() as meter, work("train"):
        apart("encoding", encoder, torch.randn(3, 4))
        with torch.no_grad():
            apart("encoding", encoder, torch.randn(3, 4, requires_grad=True))
    assert {kind: one.flops for kind, one in meter.spent.items() if one.flops} == {"encoding": 2 * 2 * 3 * 16}


def test_stacked_copies_of_weights_grow_with_the_copies_and_not_with_the_batch() -> None:
    layer, convolution = nn.Linear(6, 5, bias=False), nn.Conv2d(3, 4, 2, bias=False)
    with LiveMemory() as memory:
        layer(torch.ones(1, 6)), convolution(torch.ones(1, 3, 2, 2))
        stacked, grouped = torch.zeros(2, 5, 6), torch.zeros(2 * 4, 3, 2, 2)
        images = torch.zeros(2, 3, 2, 2)  # no multiple of the convolution's four kernels
        held = images.numel() * FLOAT
        del stacked, grouped, images
    kept = memory.grown({"once": 0.0}, copies=0.0)
    assert memory.grown({"once": 0.0}, copies=10.0) - kept == 10 * 2 * (5 * 6 + 4 * 3 * 2 * 2) * FLOAT
    assert memory.grown({"once": 1.0}, copies=0.0) - kept >= held


def test_transposed_copies_of_weights_are_stacks_too() -> None:
    layer = nn.Linear(6, 5, bias=False)
    with LiveMemory() as memory:
        layer(torch.ones(1, 6))
        turned = torch.zeros(2, 6, 5)  # as batched products make the gradients of a stack
        del turned
    kept = memory.grown({"once": 0.0}, copies=0.0)
    assert memory.grown({"once": 0.0}, copies=10.0) - kept == 10 * 2 * 6 * 5 * FLOAT
