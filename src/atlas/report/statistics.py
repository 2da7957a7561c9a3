"""Paired statistics over seeds.

Up to :data:`FEW` seeds the 95 % interval of a mean is Student's t, which is exact for normal differences and honest about how
little three seeds say. Beyond, it is the studentised bootstrap, which assumes no shape and keeps its error rate where
percentile and BCa intervals of a few dozen values are too narrow (Efron and Tibshirani, An Introduction to the Bootstrap,
Ch. 12).

Ratios are averaged on a logarithmic scale, so that a ÷ b and b ÷ a tell the same story. Numbers that are the same on every
seed have no error to estimate and are taken as exact; a *difference* that happens to be the same while the numbers themselves
vary is a coincidence, and gets no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
FEW = 20
RESAMPLES = 9999
Compare = Literal["difference", "ratio", "value"]

STUDENT = "Student’s t"
BOOTSTRAP = "studentised bootstrap"
EXACT = "the same on every seed"
ONE_SEED = "one seed: no interval"
COINCIDENCE = "equal by coincidence: no interval"


@dataclass(frozen=True)
class Interval:
    """Mean of paired effects with its confidence interval; ``low`` and ``high`` are ``nan`` where there is none.

    Attributes
    ----------
    count : int
        Number of seeds.
    method : str
        How the interval was found, in words.
    """

    mean: float
    low: float
    high: float
    count: int
    method: str

    @property
    def bounded(self) -> bool:
        """Whether there is an interval at all."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Effects:
    """One effect per seed.

    Attributes
    ----------
    logarithmic : bool
        The values are logarithms of ratios.
    exact : bool
        Every number that they were made from is the same on every seed.
    """

    values: tuple[float, ...]
    logarithmic: bool = False
    exact: bool = False


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is ``nan`` for fewer than two values."""
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> list[tuple[float, float]]:
    """Values of the seeds that both have, in order of the seeds."""
    return [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]


def effects(compare: Compare, ours: dict[int, float], theirs: dict[int, float] | None) -> Effects:
    """Effects of one row, against another where there is one, paired by seed.

    A ratio is left out where the baseline is 0, and taken as it is (not its logarithm) where a value is negative.
    """
    if compare == "value" or theirs is None:
        own = tuple(ours[seed] for seed in sorted(ours))
        return Effects(own, exact=_constant(own))
    pairs = paired(ours, theirs)
    exact = _constant([mine for mine, _ in pairs]) and _constant([other for _, other in pairs])
    if compare == "difference":
        return Effects(tuple(mine - other for mine, other in pairs), exact=exact)
    if pairs and all(mine > 0 and other > 0 for mine, other in pairs):
        return Effects(tuple(math.log(mine) - math.log(other) for mine, other in pairs), logarithmic=True, exact=exact)
    return Effects(tuple(mine / other for mine, other in pairs if other), exact=exact)


def _constant(values: Sequence[float]) -> bool:
    return bool(values) and max(values) - min(values) <= 1e-12 * max(map(abs, values))


def interval(found: Effects | Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of the mean effect; of logarithms, the geometric mean and its interval."""
    sample = found if isinstance(found, Effects) else Effects(tuple(found), exact=_constant(tuple(found)))
    plain = _interval(sample, confidence)
    if not sample.logarithmic:
        return plain
    mean, low, high = (math.exp(value) for value in (plain.mean, plain.low, plain.high))
    return Interval(mean, low, high, plain.count, plain.method)


def _interval(sample: Effects, confidence: float) -> Interval:
    values = sample.values
    count = len(values)
    mean, sd = mean_and_sd(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count, ONE_SEED)
    if sd <= 1e-12 * abs(mean):
        if sample.exact:
            return Interval(mean, mean, mean, count, EXACT)
        return Interval(mean, math.nan, math.nan, count, COINCIDENCE)
    if count <= FEW:
        half = _t_quantile(count - 1, confidence) * sd / math.sqrt(count)
        return Interval(mean, mean - half, mean + half, count, STUDENT)
    low, high = _bootstrap(values, confidence)
    return Interval(mean, low, high, count, BOOTSTRAP)


def _t_quantile(freedom: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _bootstrap(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Interval whose width comes from resampled t statistics; the same for the same values."""
    import numpy as np

    sample, count = np.asarray(values), len(values)
    drawn = sample[np.random.default_rng(0).integers(0, count, (RESAMPLES, count))]
    spread = drawn.std(axis=1, ddof=1)
    usable = spread > 0
    statistics = (drawn.mean(axis=1)[usable] - sample.mean()) / spread[usable]
    low, high = np.quantile(statistics, [(1 + confidence) / 2, (1 - confidence) / 2])
    mean, sd = float(sample.mean()), float(sample.std(ddof=1))
    return mean - float(low) * sd, mean - float(high) * sd


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Interval:
    """Interval of the paired difference of two rows."""
    return interval(effects("difference", ours, theirs))


def excludes_zero(found: Interval) -> bool:
    """Whether an interval leaves 0 out."""
    return found.bounded and (found.low > 0 or found.high < 0)
