"""Partitions and budgets of the paper's federations; see :mod:`atlas.nn.federation`."""

from atlas.nn.federation import budgets, partition_by_class, partition_uniform

__all__ = ["budgets", "partition_by_class", "partition_uniform"]
