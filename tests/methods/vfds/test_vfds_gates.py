"""Gate estimators: given values, limits, the ARM identity, and the divergence behind the objective."""

from __future__ import annotations

import math

import pytest
import torch

from atlas.methods.vfds import (
    FeatureGroups,
    arm_pair,
    bernoulli_entropy,
    bernoulli_kl,
    bernoulli_st,
    estimators,
    relaxed_bernoulli,
)
from atlas.methods.vfds.estimators import bernoulli_hard, logistic_noise, st_concrete


def value(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.double)


@pytest.mark.parametrize(
    ("alpha", "u", "tau", "expected"),
    [
        (0, 0.5, 0.05, 0.5),
        (0, 0.5, 3.0, 0.5),
        (-1, 0.9, 0.5, 0.91640304),
        (1, 0.5, 0.05, 0.9999999979),
        (0.3, 0.2, 0.05, 3.669164e-10),
    ],
)
def test_concrete_values(alpha: float, u: float, tau: float, expected: float) -> None:
    found = relaxed_bernoulli(value(alpha), value(u), tau)
    assert float(found) == pytest.approx(expected, rel=1e-7, abs=1e-16)
    assert estimators.relaxed_bernoulli is relaxed_bernoulli


def test_concrete_at_the_ends_of_the_noise() -> None:
    assert float(logistic_noise(value(0))) == pytest.approx(-46.05, abs=0.01)
    for u in (0.0, 1.0):
        assert torch.isfinite(relaxed_bernoulli(torch.zeros(1), torch.tensor([u]), 0.05)).all()


def test_concrete_tends_to_the_hard_gate_and_opens_as_often() -> None:
    random = torch.Generator().manual_seed(0)
    alpha = torch.tensor([-1.5, -0.2, 0.0, 0.7, 2.0], dtype=torch.double)
    u = torch.rand(200_000, 1, generator=random, dtype=torch.double)
    hard = bernoulli_hard(alpha, u)
    assert torch.allclose(relaxed_bernoulli(alpha, u, 1e-9), hard, atol=1e-6)
    for tau in (0.05, 1.0, 5.0):
        assert torch.equal((relaxed_bernoulli(alpha, u, tau) > 0.5).double(), hard)
    assert torch.allclose(hard.mean(0), torch.sigmoid(alpha), atol=5e-3)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(tau: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        relaxed_bernoulli(torch.zeros(1), torch.rand(1), tau)


def test_straight_through() -> None:
    alpha = torch.linspace(-2, 2, 9, dtype=torch.double, requires_grad=True)
    u = torch.full((9,), 0.4, dtype=torch.double)
    gates = bernoulli_st(alpha, u)
    assert torch.equal(gates, (torch.sigmoid(alpha) > u).double())
    gates.sum().backward()
    probability = torch.sigmoid(alpha.detach())
    assert torch.allclose(alpha.grad, probability * (1 - probability))


def test_st_concrete_is_hard_forward_and_concrete_backward() -> None:
    alpha = torch.linspace(-2, 2, 9, dtype=torch.double, requires_grad=True)
    u = torch.full((9,), 0.4, dtype=torch.double)
    gates = st_concrete(alpha, u, 0.5)
    assert torch.equal(gates, bernoulli_hard(alpha, u))
    slope = torch.autograd.grad(gates.sum(), alpha)[0]
    assert torch.allclose(slope, torch.autograd.grad(relaxed_bernoulli(alpha, u, 0.5).sum(), alpha)[0])


def test_arm_pair_directions_and_means() -> None:
    random = torch.Generator().manual_seed(1)
    alpha = torch.linspace(-3, 3, 13, dtype=torch.double).expand(100_000, 13)
    u = torch.rand(alpha.shape, generator=random, dtype=torch.double)
    first, second = arm_pair(alpha, alpha, u)
    assert torch.equal(second, bernoulli_hard(alpha, u))
    assert torch.equal(first, bernoulli_hard(alpha, 1 - u))
    assert torch.equal(first, (u < torch.sigmoid(alpha)).double())
    for gates in (first, second):
        assert torch.allclose(gates.mean(0), torch.sigmoid(alpha[0]), atol=8e-3)
    probability = torch.sigmoid(alpha)
    middle = (u > 1 - probability) & (u < probability)
    assert (first[middle] * second[middle]).min() == 1
    assert ((first + second)[alpha >= 0] > 0).all()
    assert ((first * second)[alpha < 0] == 0).all()


def test_one_gate_arm_identity() -> None:
    u = (torch.arange(2_000_000, dtype=torch.double) + 0.5) / 2_000_000  # the integral, by the midpoint rule
    alpha = torch.full_like(u, 0.8)
    first, second = arm_pair(alpha, alpha, u)
    loss = torch.tensor([-1.0, 2.0], dtype=torch.double)
    estimate = ((loss[second.long()] - loss[first.long()]) * (u - 0.5)).mean()
    assert float(estimate) == pytest.approx(0.64172910, abs=1e-6)


def test_divergence_from_the_prior() -> None:
    logits, penalty = torch.logit(value(0.3)), value(1.4)
    prior = torch.sigmoid(-penalty)
    direct = 0.3 * torch.log(0.3 / prior) + 0.7 * torch.log(0.7 / (1 - prior))
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert float(bernoulli_entropy(logits)) == pytest.approx(entropy)
    assert float(bernoulli_kl(logits, penalty)) == pytest.approx(float(direct))
    assert float(direct) == pytest.approx(-entropy + 1.4 * 0.3 + math.log(1 + math.exp(-1.4)))


@pytest.mark.parametrize(
    ("groups", "cost", "message"),
    [
        ([0, 2], [1.0, 1.0], "without a gap"),
        ([1, 1], [1.0], "without a gap"),
        ([0, 1], [1.0, -1.0], "not negative"),
        ([0, 1], [1.0, math.inf], "finite"),
        ([0, 1], [0.0, 0.0], "all costs are zero"),
        ([0, 1], [1.0], "costs of shape"),
        ([0.0, 1.0], [1.0, 1.0], "whole numbers"),
    ],
)
def test_groups_refuse_what_they_cannot_mean(groups: list[float], cost: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureGroups(torch.tensor(groups), torch.tensor(cost), [str(index) for index in range(len(cost))])
    with pytest.raises(ValueError, match="names"):
        FeatureGroups(torch.tensor([0, 1]), torch.ones(2), ["one"])
