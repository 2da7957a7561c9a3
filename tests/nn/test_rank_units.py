"""Units of a batch on several ranks: who passes which, and what batch normalisation keeps of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from atlas.nn.rank_units import Units
from atlas.nn.ranks import ALONE, Ranks, here
from ranks import Among, on_ranks

IMAGES, UNIT, STEPS = 10, 2, 3


@pytest.mark.parametrize(("total", "size", "ranks"), [(8, 2, 4), (10, 2, 2), (7, 3, 3), (64, 2, 8), (5, 5, 1)])
def test_every_example_is_passed_once_and_weighs_as_in_one_process(total: int, size: int, ranks: int) -> None:
    whole = Units(total, size).own
    assert [place for unit in whole for place in unit] == list(range(total))
    every = [Units(total, size, Among(rank, ranks)) for rank in range(ranks)]
    assert [unit for units in every for unit in units.own] == whole
    for units in every:
        places = range(total)[units.places]
        assert list(places) == [place for unit in units.own for place in unit]
        assert all(units.factor(unit) / ranks == pytest.approx(len(unit) / total) for unit in units.own)


def network() -> nn.Sequential:
    """A layer under batch normalisation, and another normalisation with a momentum of its own."""
    torch.manual_seed(0)
    own = nn.BatchNorm1d(3, momentum=0.3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU(), own).double()


def passed(ranks: Ranks) -> dict[str, list[float]]:
    """Buffers of the network after some steps, of which this process passes its units."""
    model = network()
    units = Units(IMAGES, UNIT, ranks)
    random = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randn(IMAGES, 4, dtype=torch.float64, generator=random)
        with units.statistics(model):
            for unit in units.own:
                model(batch[list(unit)])
    return {name: value.tolist() for name, value in model.named_buffers()}


def tell() -> None:
    """Print a rank's buffers."""
    print(json.dumps(passed(here())))


def test_statistics_of_two_ranks_are_those_of_units_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = passed(ALONE)
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    for output in on_ranks(2, "test_rank_units:tell"):
        found = json.loads(output.strip().splitlines()[-1])
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-14), name
    assert expected["1.num_batches_tracked"] == STEPS * IMAGES / UNIT


def test_statistics_that_forget_nothing_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    said = r"0: batch normalisation without momentum has no running statistics in units"
    with pytest.raises(ValueError, match=said), Units(4, 2, Among(0, 2)).statistics(model):
        pass
    with Units(4, 2).statistics(model):
        model(torch.randn(4, 3))
