"""Measures of optimizers: best log loss, optimization stability, and what varies between evaluations and between replicates.

T. Huang et al., *Optimizer Amalgamation*, ICLR 2022, §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _positive(V: ArrayLike) -> NDArray[np.float64]:
    losses = np.asarray(V, dtype=np.float64)
    if losses.ndim == 0 or losses.shape[-1] == 0:
        raise ValueError("there is no loss")
    if bool((losses <= 0).any()):
        raise ValueError("losses must be positive")
    return losses


def best_log_loss(V: ArrayLike) -> Any:
    """Logarithm of the smallest loss along the last axis (epochs); losses that are not numbers are passed over.

    Parameters
    ----------
    V : array
        (…, epochs) of positive losses.

    Returns
    -------
    float or ndarray
        (…); not a number where no loss is one.

    Raises
    ------
    ValueError
        A loss is not positive, or there is none.
    """
    losses = _positive(V)
    lowest = np.where(np.isnan(losses), np.inf, losses).min(-1)
    best = np.log(np.where(np.isnan(losses).all(-1), np.nan, lowest))
    return float(best) if best.ndim == 0 else best


def optimization_stability(V: ArrayLike, sigma: float = 2.0) -> Any:
    """Standard deviation over epochs of log(smoothed loss) − log(loss): how much a curve jumps about its own trend.

    Smoothing is a Gaussian filter of ``sigma`` epochs that repeats the nearest value at the ends; the deviation is that of the
    population.

    Parameters
    ----------
    V : array
        (…, epochs) of positive losses.

    Raises
    ------
    ValueError
        A loss is not positive, there is none, or ``sigma`` is not positive.
    """
    from scipy.ndimage import gaussian_filter1d

    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    losses = _positive(V)
    smooth = gaussian_filter1d(losses, sigma, axis=-1, mode="nearest")
    deviation = (np.log(smooth) - np.log(losses)).std(-1)
    return float(deviation) if deviation.ndim == 0 else deviation


@dataclass(frozen=True)
class RandomEffects:
    """A mean over replicates and evaluations, and where its variation comes from.

    Attributes
    ----------
    mean, se : float
        Grand mean and its standard error.
    eval_sd, meta_sd : float
        Standard deviation between evaluations of one replicate, and between replicates.
    """

    mean: float
    se: float
    eval_sd: float
    meta_sd: float

    def interval(self, replicates: int, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean, by Student's t with R − 1 degrees of freedom."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2, replicates - 1)) * self.se
        return self.mean - half, self.mean + half


def random_effects(y: ArrayLike) -> RandomEffects:
    """Balanced one-way random effects, by REML in closed form.

    y_rj = μ + a_r + ε_rj with a ~ N(0, σ_meta²), ε ~ N(0, σ_eval²): σ_eval² = MSW, σ_meta² = max(0, (MSB − MSW)/n),
    SE(μ) = √(MSB/(R n)).

    Parameters
    ----------
    y : array
        (R, n): n evaluations of each of R replicates.

    Raises
    ------
    ValueError
        Fewer than two replicates or evaluations: their variance is undefined. Or a value is not finite; says where.
    """
    values = np.asarray(y, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(
            f"y must hold at least 2 replicates of at least 2 evaluations, not {values.shape}: variance is undefined"
        )
    if not np.isfinite(values).all():
        replicate, evaluation = np.argwhere(~np.isfinite(values))[0]
        value = values[replicate, evaluation]
        raise ValueError(
            f"y[{replicate}, {evaluation}] = {value} is not finite; leave replicates out that went wrong, and say so"
        )
    replicates, evaluations = values.shape
    means = values.mean(1)
    between = evaluations * means.var(ddof=1)
    within = ((values - means[:, None]) ** 2).sum() / (replicates * (evaluations - 1))
    return RandomEffects(
        mean=float(values.mean()),
        se=float(np.sqrt(between / (replicates * evaluations))),
        eval_sd=float(np.sqrt(within)),
        meta_sd=float(np.sqrt(max(0.0, (between - within) / evaluations))),
    )
