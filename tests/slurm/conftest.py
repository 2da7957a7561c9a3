"""The plugin's own fixtures, for a study on a real SLURM."""

from slurm_fixtures import real_slurm, slurm_environment

__all__ = ["real_slurm", "slurm_environment"]
