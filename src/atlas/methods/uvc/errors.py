"""What can be wrong with a request to compress."""

from __future__ import annotations

from atlas.errors import AtlasError, UserError


class InfeasibleBudgetError(UserError, ValueError):
    """The budget is below what any surviving model costs; names the minimum."""


class UnsupportedArchitectureError(UserError, TypeError):
    """A part of the model is of a kind that cannot be pruned exactly; names its path."""


class PlanError(UserError, ValueError):
    """A plan does not fit the model, or empties a block that it keeps."""


class ExportError(AtlasError, RuntimeError):
    """The smaller model computes something else than the masked one."""
