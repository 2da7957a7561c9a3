"""Measures that need the model or its groups; those on gates alone are in :mod:`atlas.nn.selection`."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas.methods.vfds.groups import FeatureGroups
from atlas.methods.vfds.model import Mode, SelectiveGRU
from atlas.nn.selection import (
    Fractions,
    activity_profile,
    context_drift,
    drift_null,
    fractions,
    reaction,
    recovery_f1,
    steady_context,
)

__all__ = [
    "Fractions",
    "activity_profile",
    "averaged_prediction",
    "context_drift",
    "drift_null",
    "fractions",
    "reaction",
    "recovery_f1",
    "sensor_on",
    "steady_context",
]


def sensor_on(gates: Tensor, groups: FeatureGroups, sensors: Tensor) -> Tensor:
    """Share of steps after the first at which any gate of a sensor is open.

    Parameters
    ----------
    gates : Tensor
        (B, T, G).
    groups : FeatureGroups
        What the gates open.
    sensors : LongTensor
        (D,): sensor of every feature, 0 … S − 1.

    Returns
    -------
    Tensor
        (S,).
    """
    opened = groups.expand(gates)[:, 1:] > 0
    return torch.stack([opened[..., sensors == sensor].any(-1).double().mean() for sensor in range(int(sensors.max()) + 1)])


@torch.no_grad()
def averaged_prediction(
    model: SelectiveGRU, x: Tensor, samples: int, *, gates: Mode = "sample", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Bayesian prediction: mean class probabilities over samples of the gates, and the union of the masks that this acquires.

    Returns
    -------
    probabilities, union : Tensor
        (B, T, C), and (B, T, G): what was paid for.

    Raises
    ------
    ValueError
        ``samples`` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    rollouts = [model(x, gates=gates, generator=generator) for _ in range(samples)]
    probabilities = torch.stack([rollout.logits.softmax(-1) for rollout in rollouts]).mean(0)
    return probabilities, torch.stack([rollout.gates for rollout in rollouts]).amax(0)
