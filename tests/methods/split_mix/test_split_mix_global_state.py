"""Calls with seeds of their own leave the generator of the process where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from atlas.methods.split_mix import MLP, Client, FedTrainer, PrefixModel, Slicer, SplitMix

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CLIENTS = [Client(IMAGES[:12], torch.arange(12) % 10, 1.0), Client(IMAGES[12:], torch.arange(12) % 10, 0.5)]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_base_networks() -> None:
    SplitMix(MLP, atom=0.5)


@pytest.mark.parametrize("form", ["auto", "ensemble", "grouped", "dense"])
def test_merging(form: str) -> None:
    SplitMix(MLP, atom=0.5).customize(1.0, form=form)  # type: ignore[arg-type]


def test_prefixes() -> None:
    PrefixModel(MLP).customize(0.5)
    Slicer.from_factory(MLP)


@pytest.mark.parametrize("network", [MLP, convolutional])
@pytest.mark.parametrize("method", ["split-mix", "fedavg", "heterofl", "sheterofl"])
@pytest.mark.parametrize("rescale_layer", [False, True])
def test_federations(method: str, network: Callable[..., nn.Module], rescale_layer: bool) -> None:
    trainer = FedTrainer(method, network, rounds=1, atom=0.5, widths=(0.5, 1.0), rescale_layer=rescale_layer)  # type: ignore[arg-type]
    trainer.fit(CLIENTS, progress=False).model.customize(0.5)
