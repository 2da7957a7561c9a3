"""What was acquired: profiles, drift and its null, recovery, reaction, unions."""

from __future__ import annotations

import warnings

import pytest
import torch

from atlas.methods.vfds import (
    FeatureGroups,
    SelectiveGRU,
    activity_profile,
    averaged_prediction,
    context_drift,
    drift_null,
    fractions,
    reaction,
    recovery_f1,
    sensor_on,
)
from atlas.methods.vfds.measures import steady_context


def test_profile_by_hand() -> None:
    gates = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.5, 1.0]]])
    labels = torch.tensor([[0, 0, 1, 1]])
    assert activity_profile(gates, labels, 2).tolist() == [[1.0, 0.0], [0.25, 1.0]]
    assert activity_profile(gates, labels, 2, skip_first=False).tolist() == [[1.0, 0.5], [0.25, 1.0]]
    assert activity_profile(gates, labels, 3)[2].isnan().all()
    several = torch.stack([labels == 0, labels == 1], -1).long()
    assert torch.equal(activity_profile(gates, several, 2), activity_profile(gates, labels, 2))
    assert torch.equal(activity_profile(gates, torch.tensor([[0, -1, 1, 1]]), 2)[1], torch.tensor([0.25, 1.0]))
    for wrong in (labels[:, :2], labels + 1):
        with pytest.raises(ValueError):
            activity_profile(gates, wrong, 2)


def test_drift_of_a_static_selection_is_exactly_zero() -> None:
    torch.manual_seed(0)
    model = SelectiveGRU(5, 4, 3, policy="static")
    x, labels = torch.randn(20, 9, 5), torch.randint(3, (20, 9))
    gates = model(x, gates="threshold").gates
    assert context_drift(activity_profile(gates, labels, 3)) == 0.0
    assert float(drift_null(gates, labels, 3, draws=5).max()) == 0.0


def test_drift_stands_out_of_its_null_where_selection_follows_the_label() -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (60, 1)).repeat(1, 8)
    gates = (torch.arange(4) == labels[..., None]).float()
    drift = context_drift(activity_profile(gates, labels, 4))
    assert drift == pytest.approx(0.375)
    null = drift_null(gates, labels, 4, draws=100, seed=1)
    assert drift > torch.quantile(null, 0.99)
    assert torch.equal(null, drift_null(gates, labels, 4, draws=100, seed=1))


def test_recovery_and_reaction() -> None:
    truth = torch.tensor([[1, 0, 0], [0, 1, 0]])
    assert recovery_f1(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.6, 0.4]]), truth) == 1.0
    assert recovery_f1(torch.tensor([[0.9, 0.9, 0.0], [0.2, 0.4, 0.4]]), truth) == pytest.approx(0.5)
    context = torch.tensor([[0, 0, 1, 1, 1, 0]])
    assert steady_context(context).tolist() == [[False, True, False, True, True, False]]
    gates = truth[torch.tensor([[0, 0, 0, 1, 1, 1]])].float()  # one step late
    assert reaction(gates, context, truth, 3)[:3].tolist() == [0.0, 1.0, 1.0]


def test_sensors_and_unions() -> None:
    groups = FeatureGroups(torch.tensor([0, 1, 1]), torch.ones(2))
    gates = torch.zeros(1, 5, 2)
    gates[:, :3, 1] = 1
    assert sensor_on(gates, groups, torch.tensor([0, 0, 1])).tolist() == [0.5, 0.5]
    torch.manual_seed(0)
    model, x = SelectiveGRU(3, 4, 2), torch.randn(2, 6, 3)
    probabilities, union = averaged_prediction(model, x, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, 6))
    one = model(x, gates="sample", generator=torch.Generator().manual_seed(0)).gates
    assert (union >= one).all()
    assert union.mean() > one.mean()
    with pytest.raises(ValueError):
        averaged_prediction(model, x, 0)


def test_measures_take_gates_that_carry_a_gradient() -> None:
    """Gates of training do: counting them must not warn, nor change the count."""
    torch.manual_seed(0)
    gates = SelectiveGRU(3, 4, 2)(torch.randn(2, 5, 3)).gates
    assert gates.requires_grad
    cost = torch.ones(3, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 1, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fractions(gates, cost) == fractions(gates.detach())
        drift = context_drift(activity_profile(gates, labels, 2))
        assert drift == context_drift(activity_profile(gates.detach(), labels, 2))
        assert torch.equal(drift_null(gates, labels, 2, draws=3), drift_null(gates.detach(), labels, 2, draws=3))
        truth = torch.eye(3)[:2]
        assert recovery_f1(activity_profile(gates, labels, 2), truth) >= 0
        sensor_on(gates, FeatureGroups.per_feature(3), torch.tensor([0, 0, 1]))
        reaction(gates, labels, truth, 2)
