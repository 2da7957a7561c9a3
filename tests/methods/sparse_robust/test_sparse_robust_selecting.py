"""Selection gives what sorting gives, ties included, and whatever lies outside the mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.methods.sparse_robust.selecting import above_kth, largest


def values(size: int, kind: str, seed: int = 0) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed)).abs()
    return {"distinct": drawn, "ties": (4 * drawn).round(), "zeros": torch.zeros(size), "bfloat16": drawn.bfloat16()}[kind]


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 300, 50_000])
def test_above_the_kth_smallest(kind: str, size: int) -> None:
    found = values(size, kind)
    for k in {1, (size + 1) // 3 or 1, size}:
        wanted = found > found.sort().values[k - 1]
        assert torch.equal(above_kth(found, k), wanted)
        mask = values(size, "distinct", seed=1) > 0.7
        masked = found * mask
        assert torch.equal(above_kth(masked, k, mask), masked > masked.sort().values[k - 1])
        assert torch.equal(above_kth(found, k, mask), wanted), "what is outside the mask counts if it is not 0"


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "bfloat16"])
@pytest.mark.parametrize("size", [1, 7, 300, 50_000])
def test_the_largest_of_equals_the_first(kind: str, size: int) -> None:
    scores = values(size, kind)
    order = scores.float().sort(descending=True, stable=True).indices
    for count in {0, 1, size // 10, size // 2, size}:
        assert torch.equal(largest(scores, count).sort().values, order[:count].sort().values)


def test_a_sample_that_misleads_costs_time_and_nothing_else() -> None:
    scores = torch.zeros(40_000)
    scores[:: 40_000 // 4096] = 1 + torch.rand(len(scores[:: 40_000 // 4096]))  # all that the sample sees is large
    for count in (1_000, 5_000, 9_000):
        wanted = scores.sort(descending=True, stable=True).indices[:count].sort().values
        assert torch.equal(largest(scores, count).sort().values, wanted)
        assert torch.equal(above_kth(scores, 40_000 - count), scores > scores.sort().values[-count - 1])
