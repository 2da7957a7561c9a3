"""Selection gives what sorting gives, ties included, and an update by it what an update by sorting gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from atlas.methods.sparse_robust import FlyingBird
from atlas.methods.sparse_robust.selecting import above_kth, count, largest, places


def values(size: int, kind: str, seed: int = 0) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return {"distinct": drawn, "ties": (4 * drawn).round(), "zeros": torch.zeros(size), "bfloat16": drawn.bfloat16()}[kind]


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 300, 50_000])
def test_above_the_kth_smallest(kind: str, size: int) -> None:
    found = values(size, kind).abs()
    for k in {1, (size + 1) // 3 or 1, size}:
        assert torch.equal(above_kth(found, k), found > found.sort().values[k - 1])


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 300, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_largest_that_are_free_of_equals_the_first(kind: str, size: int, share: float) -> None:
    scores = values(size, kind)
    taken = torch.rand(size, generator=torch.Generator().manual_seed(1)) < share
    free = size - count(taken)
    order = scores.float().abs().masked_fill(taken, -1).sort(descending=True, stable=True).indices
    for number in {0, min(1, free), free // 10, free // 2, free}:
        assert torch.equal(largest(scores, number, taken).sort().values, order[:number].sort().values)
    assert torch.equal(places(taken), taken.nonzero()[:, 0])


def test_a_sample_that_misleads_costs_time_and_nothing_else() -> None:
    scores = torch.zeros(40_000)
    scores[:: 40_000 // 4096] = 1 + torch.rand(len(scores[:: 40_000 // 4096]))  # all that the sample sees is large
    for number in (1_000, 5_000, 9_000):
        wanted = scores.sort(descending=True, stable=True).indices[:number].sort().values
        assert torch.equal(largest(scores, number, torch.zeros(40_000, dtype=torch.bool)).sort().values, wanted)
        assert torch.equal(above_kth(scores, 40_000 - number), scores > scores.sort().values[-number - 1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("masks_too", [False, True])
def test_an_update_is_that_by_sorting_in_any_layout(layout: torch.memory_format, masks_too: bool) -> None:
    source = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(40, 64, 3, bias=False, dtype=torch.float64).to(memory_format=layout)
    mask = torch.rand(layer.weight.shape, generator=source) < 0.3
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    given = mask.to(memory_format=layout) if masks_too else mask
    bird = FlyingBird(layer, optimizer, init={"weight": given}, total_steps=1, interval=2, rate=0.4, rate_end=0.4)
    layer.weight.grad = torch.randn(layer.weight.shape, generator=source, dtype=torch.float64).to(memory_format=layout)
    assert bird.step() is None
    weight, memory = (value.detach().clone() for value in (layer.weight, optimizer.state[layer.weight]["momentum_buffer"]))

    existing = int(mask.sum())
    dropped = math.ceil(0.4 * existing)
    survivors = weight.abs() > weight[mask].abs().sort().values[dropped - 1]
    slopes = layer.weight.grad.abs().masked_fill(survivors, -1).flatten()
    wanted = survivors.flatten().index_fill(0, slopes.sort(descending=True).indices[:dropped], True).view_as(mask)

    update = bird._update()
    assert update is not None
    assert (update.pruned, update.grown) == ({"weight": dropped}, {"weight": dropped})
    assert update.density == existing / mask.numel()
    assert torch.equal(bird.masks["weight"], wanted)
    assert torch.equal(layer.weight, weight * wanted)
    assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"], memory * wanted)
