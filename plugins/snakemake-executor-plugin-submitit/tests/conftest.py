"""Fixtures of the SLURM executor's tests."""

from made_up import clock, workdir
from slurm_fixtures import plain_environment, real_slurm, slurm_environment

__all__ = ["clock", "plain_environment", "real_slurm", "slurm_environment", "workdir"]
