"""Intervals and verdicts: by hand, and by simulation where nothing is true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atlas.harness.claims import Comparison
from atlas.report.statistics import interval, mean_and_sd, paired
from atlas.report.verdicts import verdict


def comparison(direction: str = "higher", margin: float = 0.0, tolerance: float = 0.0) -> Comparison:
    return Comparison(metric="m", method="a", baseline="b", direction=direction, margin=margin, tolerance=tolerance)


def test_t_interval_by_hand() -> None:
    # mean 2, sd 1, n 3: half width 4.30265 / √3
    found = interval([1.0, 2.0, 3.0])
    assert found.method == "Student t"
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.302652729911275 / math.sqrt(3), abs=1e-9)
    assert found.low == pytest.approx(2 - 2.4841377118, abs=1e-9)


def test_many_seeds_use_the_bootstrap() -> None:
    draws = np.random.default_rng(0).normal(0.5, 1.0, 100)
    found = interval(list(draws))
    assert found.method == "BCa bootstrap"
    half = 1.984 * draws.std(ddof=1) / 10
    assert found.low == pytest.approx(draws.mean() - half, abs=0.05)
    assert found.high == pytest.approx(draws.mean() + half, abs=0.05)


def test_few_values() -> None:
    assert interval([]).count == 0
    assert math.isnan(interval([0.3]).low)
    assert interval([0.3, 0.3, 0.3]).low == 0.3
    assert math.isnan(mean_and_sd([1.0])[1])
    assert paired({1: 2.0, 2: 3.0}, {2: 1.0, 3: 9.0}) == [(3.0, 1.0)]


@pytest.mark.parametrize(
    ("effects", "asked", "expected"),
    [
        ([1.0, 1.1, 1.2], comparison(), "supported"),
        ([-1.0, -1.1, -1.2], comparison(), "contradicted"),
        ([1.0, -1.1, 0.2], comparison(), "inconclusive"),
        ([1.0], comparison(), "inconclusive"),
        ([], comparison(), "not run"),
        ([-0.01, -0.011, -0.012], comparison(margin=-0.03), "supported"),
        ([1.0, 1.1, 1.2], comparison("lower"), "contradicted"),
        ([1.0, 1.1, 1.2], comparison("lower", margin=2.0), "supported"),
        ([48.0, 48.0, 48.0], comparison("equal", margin=48), "supported"),
        ([47.0, 47.0, 47.0], comparison("equal", margin=48), "contradicted"),
        ([48.0, 48.1, 47.9], comparison("equal", margin=48, tolerance=1.0), "supported"),
        ([48.0, 48.1, 47.9], comparison("equal", margin=48), "inconclusive"),
    ],
)
def test_verdicts_by_hand(effects: list[float], asked: Comparison, expected: str) -> None:
    assert verdict(asked, interval(effects)) == expected


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_an_effect_verdicts_keep_their_error_rate(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.0, 1.0, (3000, seeds))
    verdicts = [verdict(comparison(), interval(list(row))) for row in draws]
    rate = 1 - verdicts.count("inconclusive") / len(verdicts)
    assert rate == pytest.approx(0.05, abs=0.015)
    assert verdicts.count("supported") / len(verdicts) == pytest.approx(0.025, abs=0.01)
