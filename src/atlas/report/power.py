"""How many seeds would settle a verdict: the paired t-test's power at the effect and the spread that were observed.

With n seeds of standard deviation s, a mean that lies d inside the region (or outside it) is told from its edge if the interval
does not reach it. t = d √n / s then follows the noncentral t distribution, so that

.. math:: P(\\text{settled}) = P\\bigl(T_{n-1,\\; d\\sqrt{n}/s} > t_{n-1,\\; 1-\\alpha/2}\\bigr).

The observed effect and spread are themselves uncertain, most of all with three seeds: the number is an order of magnitude.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from atlas.report.statistics import CONFIDENCE, Effects, clopper_pearson, mean_and_sd

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POWER = 0.8
MOST = 1000
"""Larger numbers of seeds are said to be more than this."""


def replicates(sample: Effects, low: float, high: float, confidence: float = CONFIDENCE) -> float:
    """Smallest number of seeds that tells an effect from the edge of a region with a power of 80 %.

    Parameters
    ----------
    sample : Effects
        The effects of the seeds at hand.
    low, high : float
        The region, on the scale of the effects' values (logarithms where they are logarithmic).

    Returns
    -------
    float
        ``inf`` for more than :data:`MOST`, ``nan`` where the sample has no spread to tell from.
    """
    if sample.decisions:
        return _of_decisions(sample, low, high, confidence)
    mean, sd = mean_and_sd(sample.values)
    if sample.certain:
        return 1.0
    if sample.agree or math.isnan(sd) or sd == 0:
        return math.nan
    inside = low <= mean <= high
    distances = [abs(mean - edge) / sd for edge in (low, high) if math.isfinite(edge)]
    return _smallest(distances if inside else [min(distances)], confidence)


def _smallest(distances: list[float], confidence: float) -> float:
    """Smallest n with which every edge, at a distance in standard deviations, is told apart with enough power."""
    import numpy as np

    counts = np.arange(2, MOST + 1)
    missed = np.sum([1 - power(distance, counts, confidence) for distance in distances], axis=0)
    enough = np.flatnonzero(1 - missed >= POWER)
    return float(counts[enough[0]]) if len(enough) else math.inf


def power(distance: float, counts: NDArray[np.integer] | int, confidence: float = CONFIDENCE) -> NDArray[np.floating]:
    """Probability that an interval of ``counts`` seeds leaves out an edge that lies ``distance`` standard deviations away."""
    import numpy as np
    from scipy.special import nctdtr, stdtrit

    n = np.asarray(counts, dtype=float)
    shift = distance * np.sqrt(n)
    quantile = stdtrit(n - 1, (1 + confidence) / 2)
    # the distribution function fails far out, where the probability is 1 to many digits
    near = shift < quantile + 30
    return np.where(near, 1 - nctdtr(n - 1, np.where(near, shift, 0.0), quantile), 1.0)


def _of_decisions(sample: Effects, low: float, high: float, confidence: float) -> float:
    """Smallest number of seeds after which as many decisions each, of the same share, keep the interval on one side."""
    mean = mean_and_sd(sample.values)[0]
    if math.isnan(mean):
        return math.nan
    each = sample.decisions / len(sample.values)
    for count in range(2, MOST + 1):
        left, right = clopper_pearson(mean, round(each * count), confidence)
        if (low <= left and right <= high) or right < low or left > high:
            return float(count)
    return math.inf
