"""Costs of sparse networks and of their adversarial training."""

from atlas.nn.sparse_costs import EpochCost, FlopsReport, flops, training_flops

__all__ = ["EpochCost", "FlopsReport", "flops", "training_flops"]
