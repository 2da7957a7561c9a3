"""Intervals and verdicts: by hand, and by simulation where nothing is true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atlas.harness.claims import Comparison
from atlas.report.statistics import BOOTSTRAP, COINCIDENCE, EXACT, STUDENT, Effects, effects, interval, mean_and_sd, paired
from atlas.report.verdicts import Part, verdict


def comparison(direction: str = "higher", margin: float = 0.0, tolerance: float = 0.0) -> Comparison:
    return Comparison(metric="m", method="a", baseline="b", direction=direction, margin=margin, tolerance=tolerance)


def test_t_interval_by_hand() -> None:
    # mean 2, sd 1, n 3: half width 4.30265 / √3
    found = interval([1.0, 2.0, 3.0])
    assert found.method == STUDENT
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.302652729911275 / math.sqrt(3), abs=1e-9)
    assert found.low == pytest.approx(2 - 2.4841377118, abs=1e-9)


def test_wider_confidence_by_hand() -> None:
    # the 97.5 % interval of three values: t of 98.75 % with 2 degrees of freedom is 6.2053
    found = interval([1.0, 2.0, 3.0], confidence=0.975)
    assert found.high - found.mean == pytest.approx(6.205346816570709 / math.sqrt(3), abs=1e-9)


def test_many_seeds_use_the_bootstrap() -> None:
    draws = np.random.default_rng(0).normal(0.5, 1.0, 100)
    found = interval(list(draws))
    assert found.method == BOOTSTRAP
    half = 1.984 * draws.std(ddof=1) / 10
    assert found.low == pytest.approx(draws.mean() - half, abs=0.05)
    assert found.high == pytest.approx(draws.mean() + half, abs=0.05)


def test_few_values() -> None:
    assert interval([]).count == 0
    assert not interval([0.3]).bounded
    assert interval([0.3, 0.3, 0.3]).low == 0.3
    assert math.isnan(mean_and_sd([1.0])[1])
    assert paired({1: 2.0, 2: 3.0}, {2: 1.0, 3: 9.0}) == [(3.0, 1.0)]


def test_numbers_that_are_the_same_on_every_seed_are_exact() -> None:
    found = interval(effects("difference", {0: 148.0, 1: 148.0}, {0: 100.0, 1: 100.0}))
    assert (found.mean, found.low, found.high, found.method) == (48.0, 48.0, 48.0, EXACT)


def test_a_difference_that_is_equal_by_coincidence_has_no_interval() -> None:
    found = interval(effects("difference", {0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25}))
    assert found.method == COINCIDENCE
    assert not found.bounded
    assert verdict(comparison(), found) == "inconclusive"


def test_ratios_are_averaged_on_a_logarithmic_scale() -> None:
    ours, theirs = {0: 2.0, 1: 8.0}, {0: 1.0, 1: 1.0}
    there, back = interval(effects("ratio", ours, theirs)), interval(effects("ratio", theirs, ours))
    assert there.mean == pytest.approx(4.0)
    assert there.mean * back.mean == pytest.approx(1.0)
    assert there.low * back.high == pytest.approx(1.0)


def test_a_ratio_to_nothing_is_left_out() -> None:
    assert effects("ratio", {0: 1.0, 1: 4.0}, {0: 0.0, 1: 2.0}).values == (2.0,)


@pytest.mark.parametrize(
    ("values", "asked", "expected"),
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
        ([0.0, 0.0, 0.0], comparison(), "supported"),  # exactly at the margin, which is allowed
        ([0.7 - 0.73] * 3, comparison(margin=-0.03), "supported"),  # -0.03000000000000003: up to rounding
    ],
)
def test_verdicts_by_hand(values: list[float], asked: Comparison, expected: str) -> None:
    assert verdict(asked, interval(values)) == expected


def rates(draws: np.ndarray, asked: Comparison) -> dict[str, float]:
    """Share of each verdict over simulated studies, one per row."""
    verdicts = [verdict(asked, interval(list(row))) for row in draws]
    return {name: verdicts.count(name) / len(verdicts) for name in ("supported", "contradicted", "inconclusive")}


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 20])
def test_without_an_effect_verdicts_keep_their_error_rate(seeds: int) -> None:
    found = rates(np.random.default_rng(seeds).normal(0.0, 1.0, (3000, seeds)), comparison())
    assert found["supported"] == pytest.approx(0.025, abs=0.01)
    assert found["contradicted"] == pytest.approx(0.025, abs=0.01)


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_at_the_edge_of_a_margin_the_error_rate_is_the_same(direction: str) -> None:
    draws = np.random.default_rng(1).normal(-0.03, 0.02, (3000, 4))
    found = rates(draws, comparison(direction, margin=-0.03))
    assert found["supported"] == pytest.approx(0.025, abs=0.01)
    assert found["contradicted"] == pytest.approx(0.025, abs=0.01)


def test_equivalence_is_rarely_supported_at_its_edge() -> None:
    draws = np.random.default_rng(2).normal(1.0, 0.3, (3000, 5))
    found = rates(draws, comparison("equal", margin=0.0, tolerance=1.0))
    assert found["supported"] <= 0.035


def test_a_real_effect_is_found() -> None:
    draws = np.random.default_rng(3).normal(2.0, 1.0, (500, 10))
    assert rates(draws, comparison())["supported"] > 0.99


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_the_bootstrap_keeps_its_error_rate(kind: str) -> None:
    generator = np.random.default_rng(4)
    shape = (500, 25)
    draws = generator.normal(0, 1, shape) if kind == "normal" else generator.exponential(1.0, shape) - 1.0
    assert interval(list(draws[0])).method == BOOTSTRAP
    assert 1 - rates(draws, comparison())["inconclusive"] <= 0.075


@pytest.mark.parametrize("grid", [540, 40])
def test_coarse_accuracies_keep_the_error_rate(grid: int) -> None:
    """Accuracies are multiples of 1 / test images; seeds that agree by chance must not pass for certainty."""
    generator = np.random.default_rng(grid)
    ours, theirs = (np.round(generator.normal(0.8, 0.02, (3000, 3)) * grid) / grid for _ in range(2))
    called = 0
    for mine, other in zip(ours, theirs, strict=True):
        found = interval(effects("difference", dict(enumerate(mine)), dict(enumerate(other))))
        called += verdict(comparison(), found) != "inconclusive"
    assert called / 3000 <= 0.06


@pytest.mark.parametrize("parts", [2, 4])
def test_a_claim_of_several_parts_keeps_its_error_rate(parts: int) -> None:
    draws = np.random.default_rng(parts).normal(0.0, 1.0, (2000, parts, 4))
    asked = comparison()
    contradicted = supported = 0
    for study in draws:
        found = [Effects(tuple(map(float, row))) for row in study]
        verdicts = [Part(asked, "", None, interval(one), interval(one, 1 - 0.05 / parts), 4).verdict for one in found]
        contradicted += "contradicted" in verdicts
        supported += all(one == "supported" for one in verdicts)
    assert contradicted / 2000 <= 0.035  # as for a single comparison
    assert supported / 2000 <= 0.025
