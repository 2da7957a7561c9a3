"""Paired statistics over seeds.

Up to :data:`FEW` seeds the 95 % interval of a mean is Student's t, which is exact for normal differences and honest about how
little three seeds say. Beyond, it is the studentised bootstrap, which assumes no shape and keeps its error rate where
percentile and BCa intervals of a few dozen values are too narrow (Efron and Tibshirani, An Introduction to the Bootstrap,
Ch. 12).

Ratios are averaged on a logarithmic scale, so that a ÷ b and b ÷ a tell the same story.

Values that agree on every seed leave no spread to estimate an error from. Where settings alone decide them (a number of
parameters) they are exact. Anywhere else agreement may be chance, and there is no interval: three seeds on which ten decisions
fall alike are no proof. Where it is known of how many decisions a value is the share, the interval of Clopper and Pearson
(Biometrika, 1934) says how much they prove.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
COINCIDENCE = "seeds agree, perhaps by chance: no interval"
SHARE = "Clopper–Pearson"


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
    agree : bool
        They are the same on every seed, so that there is no spread to estimate an error from.
    certain : bool
        They agree because settings alone decide them, and not by chance.
    decisions : int
        Of how many decisions, over all seeds, the values are shares; 0 if they are none.
    """

    values: tuple[float, ...]
    logarithmic: bool = False
    agree: bool = False
    certain: bool = False
    decisions: int = 0

    @property
    def plain(self) -> tuple[float, ...]:
        """The effects as they are read: ratios, not their logarithms."""
        return tuple(map(math.exp, self.values)) if self.logarithmic else self.values


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is ``nan`` for fewer than two values."""
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[tuple[float, float]]:
    """Values of the seeds that both have, in order of the seeds."""
    return [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]


def effects(
    compare: Compare, ours: Mapping[int, float], theirs: Mapping[int, float] | None, exact: bool = False, decisions: int = 0
) -> Effects:
    """Effects of one row, against another where there is one, paired by seed.

    A ratio is left out where the baseline is 0, and taken as it is (not its logarithm) where a value is negative.
    """
    if compare == "value" or theirs is None:
        own = tuple(ours[seed] for seed in sorted(ours))
        return Effects(
            own, agree=_constant(own, own if exact else ()), certain=exact and _constant(own, own), decisions=decisions
        )
    pairs = paired(ours, theirs)
    sides = [mine for mine, _ in pairs], [other for _, other in pairs]
    certain = exact and all(_constant(side, side) for side in sides)
    if compare == "difference":
        values = tuple(mine - other for mine, other in pairs)
        return Effects(values, agree=_constant(values, [*sides[0], *sides[1]]), certain=certain)
    if pairs and all(mine > 0 and other > 0 for mine, other in pairs):
        values = tuple(math.log(mine) - math.log(other) for mine, other in pairs)
        return Effects(values, logarithmic=True, agree=_constant(values, [1.0]), certain=certain)
    values = tuple(mine / other for mine, other in pairs if other)
    return Effects(values, agree=_constant(values, values), certain=certain)


def _constant(values: Sequence[float], scale: Sequence[float]) -> bool:
    """Whether values are all the same, up to the rounding of numbers as large as ``scale``."""
    return bool(values) and max(values) - min(values) <= 1e-12 * max(map(abs, scale), default=0.0)


def interval(observed: Effects | Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of the mean effect; of logarithms, the geometric mean and its interval."""
    sample = observed if isinstance(observed, Effects) else Effects(tuple(observed), agree=_constant(observed, ()))
    plain = _interval(sample, confidence)
    if sample.decisions and plain.count > 1:
        return _of_decisions(sample, plain, confidence)
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
    if sample.agree:
        if sample.certain:
            return Interval(mean, mean, mean, count, EXACT)
        return Interval(mean, math.nan, math.nan, count, COINCIDENCE)
    if count <= FEW:
        half = t_quantile(count - 1, confidence) * sd / math.sqrt(count)
        return Interval(mean, mean - half, mean + half, count, STUDENT)
    low, high = _bootstrap(values, confidence)
    return Interval(mean, low, high, count, BOOTSTRAP)


def _of_decisions(sample: Effects, plain: Interval, confidence: float) -> Interval:
    """Interval of a share: what its number of decisions allows, and where seeds differ no narrower than their spread."""
    low, high = clopper_pearson(plain.mean, sample.decisions, confidence)
    if plain.bounded:
        low, high = min(low, plain.low), max(high, plain.high)
    return Interval(plain.mean, low, high, plain.count, f"{SHARE}, {sample.decisions} decisions")


def clopper_pearson(share: float, decisions: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a proportion that never covers less than it says, whatever the number of decisions."""
    from scipy.special import betaincinv

    taken, tail = round(share * decisions), (1 - confidence) / 2
    low = float(betaincinv(taken, decisions - taken + 1, tail)) if taken else 0.0
    high = float(betaincinv(taken + 1, decisions - taken, 1 - tail)) if taken < decisions else 1.0
    return low, high


def t_quantile(freedom: int, confidence: float) -> float:
    """Half width of Student's two-sided interval, in standard errors."""
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


def difference(ours: Mapping[int, float], theirs: Mapping[int, float], exact: bool = False) -> Interval:
    """Interval of the paired difference of two rows."""
    return interval(effects("difference", ours, theirs, exact))


def excludes_zero(bounds: Interval) -> bool:
    """Whether an interval leaves 0 out."""
    return bounds.bounded and (bounds.low > 0 or bounds.high < 0)
