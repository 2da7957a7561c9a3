"""Robust overfitting and the robust generalization gap, from the curves of one training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atlas.nn.kinds import require_sequence


@dataclass(frozen=True)
class RobustReport:
    """Summary of one adversarial training; accuracies in the unit of the curves.

    Attributes
    ----------
    best_epoch : int
        First epoch (from 0) of the highest robust accuracy on the validation split.
    ra_best, sa_best : float
        Robust and clean TEST accuracy at that epoch.
    ra_final, sa_final : float
        The same at the last epoch.
    overfitting : float
        Robust overfitting, ``ra_best − ra_final``; below 0 only where validation and test disagree.
    gap : float
        Robust generalization gap: robust accuracy on the training split at the last epoch, minus ``ra_final``.
    """

    best_epoch: int
    ra_best: float
    ra_final: float
    overfitting: float
    sa_best: float
    sa_final: float
    gap: float

    @property
    def sa_difference(self) -> float:
        """Clean accuracy of the best network minus that of the final one, ``sa_best − sa_final``."""
        return self.sa_best - self.sa_final


def best_epoch(val_ra: Sequence[float]) -> int:
    """Return the first epoch (from 0) of the highest value.

    Raises
    ------
    ValueError
        There is none, or one is not a number.
    """
    values = [float(value) for value in val_ra]
    if not values or any(math.isnan(value) for value in values):
        raise ValueError("val_ra must hold a number for every epoch")
    return values.index(max(values))


def robust_report(
    val_ra: Sequence[float], test_ra: Sequence[float], test_sa: Sequence[float], train_ra_final: float
) -> RobustReport:
    """Summarise a training.

    Parameters
    ----------
    val_ra : sequence of float
        Robust accuracy on the validation split after every epoch; it alone chooses the best.
    test_ra, test_sa : sequence of float
        Robust and clean accuracy on the test split; only the best and the last epoch are read.
    train_ra_final : float
        Robust accuracy after the last epoch on the training split, without augmentation, in evaluation mode, by the same
        attack.

    Raises
    ------
    ValueError
        The curves have different lengths, or ``val_ra`` is empty or has gaps.
    """
    require_sequence("a sequence of numbers, one for every epoch,", val_ra=val_ra, test_ra=test_ra, test_sa=test_sa)
    best = best_epoch(val_ra)
    if not len(val_ra) == len(test_ra) == len(test_sa):
        raise ValueError(f"the curves have {len(val_ra)}, {len(test_ra)} and {len(test_sa)} epochs")
    ra_best, ra_final = float(test_ra[best]), float(test_ra[-1])
    return RobustReport(
        best_epoch=best,
        ra_best=ra_best,
        ra_final=ra_final,
        overfitting=ra_best - ra_final,
        sa_best=float(test_sa[best]),
        sa_final=float(test_sa[-1]),
        gap=float(train_ra_final) - ra_final,
    )
