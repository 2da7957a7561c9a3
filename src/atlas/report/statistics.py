"""Paired statistics over seeds.

Up to :data:`FEW` seeds the 95 % interval of a mean is Student's t, which is exact for normal differences and honest about how
little three seeds say; beyond, the BCa bootstrap, which assumes no shape. With no spread at all the interval is the mean itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
FEW = 20
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """Mean of paired effects with its confidence interval; ``low`` and ``high`` are ``nan`` for a single seed."""

    mean: float
    low: float
    high: float
    count: int
    method: str


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is ``nan`` for fewer than two values."""
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def interval(effects: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of the mean of paired effects."""
    count = len(effects)
    mean, sd = mean_and_sd(effects)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count, "one seed: no interval")
    if sd <= 1e-12 * abs(mean):
        return Interval(mean, mean, mean, count, "no spread")
    if count <= FEW:
        half = _t_quantile(count - 1, confidence) * sd / math.sqrt(count)
        return Interval(mean, mean - half, mean + half, count, "Student t")
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(effects),),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), count, "BCa bootstrap")


def _t_quantile(freedom: int, confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> list[tuple[float, float]]:
    """Values of the seeds that both have, in order of the seeds."""
    return [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]


def differs(ours: dict[int, float], theirs: dict[int, float]) -> bool:
    """Whether the interval of the paired difference leaves 0 out."""
    found = interval([mine - other for mine, other in paired(ours, theirs)])
    return not math.isnan(found.low) and (found.low > 0 or found.high < 0)
