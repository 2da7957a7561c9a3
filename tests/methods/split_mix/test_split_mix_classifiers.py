"""Classifiers of every kind in a merged network: it computes the mean of the logits, of the shape of one network's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from atlas.methods.split_mix import SplitMix, by_width

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def by_convolution(groups: int = 1) -> nn.Module:
    """A network that classifies every pixel and averages."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 10, 1, groups=groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


CLASSIFIERS = {
    "convolution": by_convolution,
    "convolution with groups": lambda: by_convolution(2),
    "linear layer on the image": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "convolution on the image": lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()),
}


@pytest.mark.parametrize("form", ["grouped", "dense"])
@pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_merged_classifiers_give_mean_logits(make: Callable[[], nn.Module], form: str) -> None:
    model = SplitMix(by_width(make, IMAGES), atom=0.25)
    merged = model.customize(0.5, form=form)(IMAGES)  # type: ignore[arg-type]
    assert merged.shape == (6, 10)
    assert torch.allclose(merged, model(IMAGES, width=0.5), atol=1e-5)
