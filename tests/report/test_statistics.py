"""Intervals and verdicts: by hand, and by simulation where nothing is true."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from atlas.harness.claims import Claim, Comparison
from atlas.report.power import power, replicates
from atlas.report.statistics import (
    BOOTSTRAP,
    COINCIDENCE,
    EXACT,
    SHARE,
    STUDENT,
    Effects,
    clopper_pearson,
    effects,
    interval,
    mean_and_sd,
    paired,
)
from atlas.report.verdicts import Judged, Part, verdict


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
    assert not interval([0.3, 0.3, 0.3]).bounded
    assert math.isnan(mean_and_sd([1.0])[1])
    assert paired({1: 2.0, 2: 3.0}, {2: 1.0, 3: 9.0}) == [(3.0, 1.0)]


def test_counted_numbers_that_are_the_same_on_every_seed_are_exact() -> None:
    found = interval(effects("difference", {0: 148.0, 1: 148.0}, {0: 100.0, 1: 100.0}, exact=True))
    assert (found.mean, found.low, found.high, found.method) == (48.0, 48.0, 48.0, EXACT)


@pytest.mark.parametrize("compare", ["value", "difference", "ratio"])
def test_measured_numbers_that_agree_are_not_exact(compare: Literal["value", "difference", "ratio"]) -> None:
    found = interval(effects(compare, {0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.5, 1: 0.5, 2: 0.5}))
    assert found.method == COINCIDENCE
    assert verdict(comparison(margin=0.1), found) == "inconclusive"


def test_rounding_is_spread_enough_for_measured_values() -> None:
    found = interval(effects("value", {0: 0.9999999999999831, 1: 0.9999999999999998, 2: 0.9999999999999989}, None))
    assert found.method == STUDENT
    assert verdict(comparison(margin=0.95), found) == "supported"


def test_a_share_of_few_decisions_is_bounded_by_their_number() -> None:
    # 10 of 10: the two-sided 95 % bound of Clopper and Pearson is 0.025^(1/10)
    assert clopper_pearson(1.0, 10)[0] == pytest.approx(0.025**0.1)
    assert clopper_pearson(0.0, 10)[1] == pytest.approx(1 - 0.025**0.1)
    assert clopper_pearson(0.3, 10) == pytest.approx((0.06673951, 0.65245285), abs=1e-6)
    shares = effects("value", {0: 1.0, 1: 1.0, 2: 1.0}, None, decisions=11)
    found = interval(shares)
    assert found.method == f"{SHARE}, 11 decisions"
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 11)), 1.0)
    assert verdict(comparison(margin=0.9), found) == "inconclusive"
    assert replicates(shares, 0.9, math.inf) == 10  # 36 decisions or more: 0.025^(1/36) is above 0.9, 3 2/3 per seed


def test_a_share_that_varies_is_no_surer_than_its_spread() -> None:
    values = {0: 1.0, 1: 0.2, 2: 0.9}
    assert interval(effects("value", values, None, decisions=3000)).low == pytest.approx(interval(list(values.values())).low)


@pytest.mark.parametrize(("distance", "count"), [(0.5, 34), (1.0, 10), (2.0, 5)])
def test_replicates_of_a_paired_t_test_are_those_of_the_tables(distance: float, count: int) -> None:
    """Two-sided 5 %, power 80 %: 34, 10 and 5 pairs for effects of 0.5, 1 and 2 standard deviations (Cohen, 1988)."""
    sample = Effects((distance - 1, distance, distance + 1))  # standard deviation 1
    assert replicates(sample, 0.0, math.inf) == count
    assert replicates(sample, -math.inf, 2 * distance) == count
    assert replicates(Effects(tuple(-value for value in sample.values)), 0.0, math.inf) == count  # to contradict


def test_power_is_that_of_simulated_studies() -> None:
    draws = np.random.default_rng(5).normal(0.8, 1.0, (4000, 12))
    settled = rates(draws, comparison())["supported"]
    assert float(power(0.8, 12)) == pytest.approx(settled, abs=0.03)


def test_replicates_have_an_end() -> None:
    assert replicates(Effects((-1.0, 0.001, 1.0)), 0.0, math.inf) == math.inf
    assert math.isnan(replicates(Effects((0.5, 0.5), agree=True), 0.0, math.inf))
    assert math.isnan(replicates(Effects((0.5,)), 0.0, math.inf))


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
        ([48.0, 48.0, 48.0], comparison("equal", margin=48), "inconclusive"),  # whether these are counted is not known here
        ([48.0, 48.1, 47.9], comparison("equal", margin=48, tolerance=1.0), "supported"),
        ([48.0, 48.1, 47.9], comparison("equal", margin=48), "inconclusive"),
    ],
)
def test_verdicts_by_hand(values: list[float], asked: Comparison, expected: str) -> None:
    assert verdict(asked, interval(values)) == expected


@pytest.mark.parametrize(
    ("value", "asked", "expected"),
    [
        (48.0, comparison("equal", margin=48), "supported"),
        (47.0, comparison("equal", margin=48), "contradicted"),
        (0.0, comparison(), "supported"),  # exactly at the margin, which is allowed
        (0.7 - 0.73, comparison(margin=-0.03), "supported"),  # -0.03000000000000003: up to rounding
    ],
)
def test_verdicts_on_counted_numbers(value: float, asked: Comparison, expected: str) -> None:
    assert verdict(asked, interval(effects("value", dict.fromkeys(range(3), value), None, exact=True))) == expected


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
    verdicts = [judged(study, parts).verdict for study in draws]
    assert verdicts.count("contradicted") / 2000 <= 0.035  # as for a single comparison
    assert verdicts.count("supported") / 2000 <= 0.025


def judged(study: np.ndarray, parts: int = 1) -> Judged:
    """A claim on simulated effects, (parts, seeds)."""
    asked = Comparison(metric="top1", method="a", compare="value")
    found = tuple(Part(asked, "image-classification", None, dict(enumerate(map(float, row))), parts=parts) for row in study)
    claim = Claim(id="x", statement="s", task="image-classification", paper="p", metric="top1", method="a", compare="value")
    return Judged(claim, "demo", "digits", found, "")


def test_what_one_seed_decides_is_fragile() -> None:
    firm = judged(np.array([[1.0, 1.01, 0.99, 1.0]]))
    assert (firm.verdict, firm.told, firm.fragile) == ("supported", "supported", "")
    # without the last seed the interval of 0.5, 0.2 and 0.35 reaches 0
    shaky = judged(np.array([[0.5, 0.2, 0.35, 0.36]]))
    assert (shaky.verdict, shaky.told) == ("supported", "supported, fragile")
    assert shaky.fragile == "not without seed 2 or 3"
    assert judged(np.array([[0.5, -0.4, 0.1]])).fragile == ""  # what is open is not fragile


def test_a_conjunction_is_as_fragile_as_each_of_its_parts() -> None:
    one = judged(np.array([[1.0, 1.01, 0.99, 1.0], [0.5, 0.2, 0.35, 0.36]]), parts=2)
    assert one.told == "supported, fragile"
    assert one.tightest is one.parts[1]
    assert one.decisive is one.parts[1]


def test_another_kernel_makes_a_verdict_fragile() -> None:
    one = replace(judged(np.array([[1.0, 1.01, 0.99, 1.0]])), kernels={"avx2": "inconclusive", "default": "supported"})
    assert one.told == "supported, fragile"
    assert one.fragile == "with other kernels, avx2: inconclusive"


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_without_an_effect_plain_verdicts_are_rarer_than_nominal(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.0, 1.0, (1000, 1, seeds))
    told = [judged(study).told for study in draws]
    assert told.count("supported") / 1000 <= 0.025
    assert told.count("contradicted") / 1000 <= 0.025
