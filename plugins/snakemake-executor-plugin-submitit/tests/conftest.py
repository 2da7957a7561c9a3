"""Fixtures of the SLURM executor's tests."""

from slurm_fixtures import plain_environment, real_slurm, slurm_environment

__all__ = ["plain_environment", "real_slurm", "slurm_environment"]
