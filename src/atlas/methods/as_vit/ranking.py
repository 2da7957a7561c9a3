"""Rank correlation between a measure of untrained networks and their trained accuracy: Kendall's τ-b with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atlas.methods.as_vit.settings import RankingSettings
from atlas.nn.kinds import require_kind

DRAWS = RankingSettings().draws


@dataclass(frozen=True)
class Correlation:
    """τ-b in [−1, 1] with a 95 % bootstrap interval; ``nan`` where it is undefined (a constant input)."""

    tau: float
    low: float
    high: float


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's τ-b of two paired samples; ties count half-way, ``nan`` for a constant sample or where a value is ``nan``.

    Raises
    ------
    ValueError
        The samples differ in length or have fewer than 2 values.
    """
    a, b = _signs(first), _signs(second)
    if a.shape != b.shape:
        raise ValueError(f"samples of {len(a)} and {len(b)} values cannot be paired")
    return float(_tau(a[None], b[None])[0])


def _signs(values: Sequence[float]) -> np.ndarray:
    """Sign of every pairwise difference, (n, n)."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(f"a rank correlation needs a sequence of numbers, not {values!r}") from None
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"a rank correlation needs at least 2 values, not {array.size}")
    larger = array[:, None] > array[None, :]
    signs = larger.astype(np.float32) - larger.T.astype(np.float32)
    unknown = np.isnan(array)
    signs[unknown], signs[:, unknown] = np.nan, np.nan
    return signs


def _tau(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """τ-b of stacks of sign matrices, (draws, n, n) each → (draws,)."""
    agreement = np.einsum("dij,dij->d", first, second, dtype=np.float64)
    norms = np.einsum("dij,dij->d", first, first, dtype=np.float64) * np.einsum("dij,dij->d", second, second, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > 0, agreement / np.sqrt(norms), np.nan)


def bootstrap_taus(
    measures: Mapping[str, Sequence[float]], accuracy: Sequence[float], seed: int, draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Return τ-b of every measure over the same resamples of the architectures: name → (draws,)."""
    random = np.random.default_rng(seed)
    chosen = random.integers(len(accuracy), size=(draws, len(accuracy)))
    rows, columns = chosen[:, :, None], chosen[:, None, :]
    truth = _signs(accuracy)[rows, columns]
    return {name: _tau(_signs(values)[rows, columns], truth) for name, values in measures.items()}


def correlate(
    measures: Mapping[str, Sequence[float]], accuracy: Sequence[float], *, seed: int, reference: str, draws: int = DRAWS
) -> tuple[dict[str, Correlation], dict[str, Correlation]]:
    """Correlate measures with accuracy, and compare each with a reference on the same resamples.

    Parameters
    ----------
    measures : mapping of str to sequence of float
        One value per architecture, by name.
    accuracy : sequence of float
        Trained accuracy per architecture.
    seed, draws : int
        Of the bootstrap over architectures.
    reference : str
        Name of the measure that the others are compared with.

    Returns
    -------
    taus : dict
        τ-b by name.
    gaps : dict
        τ-b of the reference minus that of each other measure, by name, from paired resamples.
    """
    require_kind(Mapping, "a mapping of names to values", measures=measures)
    if reference not in measures:
        raise ValueError(f"reference {reference!r} is none of the measures {', '.join(measures)}")
    drawn = bootstrap_taus(measures, accuracy, seed, draws)
    exact = {name: kendall_tau(values, accuracy) for name, values in measures.items()}
    taus = {name: Correlation(exact[name], *_interval(drawn[name])) for name in measures}
    gaps = {
        name: Correlation(exact[reference] - exact[name], *_interval(drawn[reference] - drawn[name]))
        for name in measures
        if name != reference
    }
    return taus, gaps


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval; resamples without variation are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def log_fit(measured: Sequence[float], predictor: Sequence[float]) -> tuple[float, float]:
    """Return (R², slope) of the least-squares line of log(measured) on log(predictor); all values must be positive.

    Raises
    ------
    ValueError
        A value is not positive, or the predictor is constant.
    """
    x, y = np.asarray(predictor, dtype=float), np.asarray(measured, dtype=float)
    if (x <= 0).any() or (y <= 0).any():
        raise ValueError("a fit of logarithms needs positive values")
    x, y = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    if not x.any():
        raise ValueError("the predictor is constant")
    slope = float(x @ y / (x @ x))
    total = float(y @ y)
    return 1.0 - float(np.square(y - slope * x).sum()) / total if total else 1.0, slope
