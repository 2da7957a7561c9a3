"""Kendall's τ, its bootstrap, fits of logarithms, and the other proxies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

from atlas.methods.as_vit import Topology, build, correlate, grad_norm, kendall_tau, synflow
from atlas.methods.as_vit.geometry import great_circle
from atlas.methods.as_vit.proxies import mean_curvature
from atlas.methods.as_vit.ranking import bootstrap_taus, log_fit

SEED = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")[0]


def test_tau_of_identical_reversed_and_constant_rankings() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    assert kendall_tau(values, [math.exp(v) for v in values]) == pytest.approx(1)
    assert kendall_tau(values, [-v for v in values]) == pytest.approx(-1)
    assert math.isnan(kendall_tau(values, [1.0] * 4))


def test_tau_equals_scipys_with_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = random.integers(0, 6, 30).tolist(), random.normal(size=30).round(1).tolist()
        assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b, variant="b").statistic, abs=1e-12)


def test_tau_refuses_samples_that_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        kendall_tau([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="at least 2"):
        kendall_tau([1], [1])


def test_bootstrap_resamples_architectures_in_pairs() -> None:
    random = np.random.default_rng(1)
    truth = random.normal(size=25)
    good, noise = truth + 0.3 * random.normal(size=25), random.normal(size=25)
    drawn = bootstrap_taus({"good": good, "same": good}, truth, seed=0, draws=50)
    assert np.array_equal(drawn["good"], drawn["same"])
    index = np.random.default_rng(0).integers(25, size=(50, 25))[7]
    assert drawn["good"][7] == pytest.approx(kendalltau(good[index], truth[index]).statistic, abs=1e-9)
    taus, gaps = correlate({"good": good, "noise": noise, "flat": [1.0] * 25}, truth, seed=0, reference="good", draws=500)
    assert taus["good"].low < taus["good"].tau < taus["good"].high
    assert taus["good"].low > 0 > taus["noise"].low
    assert gaps["noise"].tau == pytest.approx(taus["good"].tau - taus["noise"].tau)
    assert gaps["noise"].low > 0
    assert math.isnan(taus["flat"].tau)
    assert math.isnan(gaps["flat"].low)


def test_log_fit_of_a_power_law_is_exact() -> None:
    x = [1.0, 2.0, 5.0, 9.0]
    assert log_fit([3 * v**1.7 for v in x], x) == pytest.approx((1, 1.7))
    assert log_fit([3, 1, 4, 1], x)[0] == pytest.approx(np.corrcoef(np.log(x), np.log([3, 1, 4, 1]))[0, 1] ** 2)
    with pytest.raises(ValueError, match="positive"):
        log_fit([1, 0], [1, 2])
    with pytest.raises(ValueError, match="constant"):
        log_fit([1, 2], [2, 2])


def test_synflow_of_a_linear_network_is_the_sum_over_paths_times_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    before = [p.detach().clone() for p in model.parameters()]
    first, second = (p.detach().double().abs() for p in model.parameters())
    assert synflow(model, (1, 2, 2)) == pytest.approx(math.log(2 * float((second @ first).sum())))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_grad_norm_equals_the_norm_of_the_accumulated_gradient() -> None:
    model = build(SEED, width=8, img_size=32, in_chans=1, num_classes=3)
    images, labels = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])
    found = grad_norm(model, images, labels)
    assert all(parameter.grad is None for parameter in model.parameters())
    nn.functional.cross_entropy(model(images), labels).backward()
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    assert found == pytest.approx(math.sqrt(squares))


def test_mean_curvature_leaves_the_model_and_is_inverse_to_its_scale() -> None:
    model = build(SEED, width=8, img_size=32, in_chans=1, generator=torch.Generator().manual_seed(0)).double().eval()
    circle = great_circle((1, 32, 32), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = mean_curvature(model, circle)
    last = model.stages[3].merge.reduction
    doubled = mean_curvature(nn.Sequential(_Twice(model)), circle)
    assert doubled == pytest.approx(plain / 2)
    assert isinstance(model.norm, nn.LayerNorm)
    assert last is model.stages[3].merge.reduction


class _Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner.features(x)  # type: ignore[operator]
