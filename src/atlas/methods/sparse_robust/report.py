"""Robust overfitting and the robust generalization gap, from the curves of one training."""

from atlas.nn.robustness import RobustReport, robust_report

__all__ = ["RobustReport", "robust_report"]
