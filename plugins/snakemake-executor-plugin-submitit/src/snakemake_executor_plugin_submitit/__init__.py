"""A Snakemake executor on SLURM, through submitit, that loses nothing.

``snakemake --executor submitit`` sends ready jobs of one rule as one job array, follows all of them with one query per
interval, lets preempted and timed-out jobs go on where they were, waits while the controller does not answer, and finds its
jobs again after a restart.

What it stands on, module by module:

- :mod:`.ledger` — what has been submitted, on disk, before and after the scheduler was asked;
- :mod:`.job` — what runs on the node: it holds a :mod:`.lease`, passes on the scheduler's signals and leaves a result file;
- :mod:`.verdict` — what result file and scheduler together say about a job, as one pure function;
- :mod:`.schedulers` — SLURM, this machine, or the debugger behind one interface of three verbs;
- :mod:`.submission` and :mod:`.executor` — the queue of jobs to submit, and Snakemake's view of it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import Executor, common_settings
    from .settings import ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> Any:
    """Load Snakemake's side only where it is asked for: on the node, a job starts without it."""
    if name == "ExecutorSettings":
        from .settings import ExecutorSettings

        return ExecutorSettings
    if name in ("Executor", "common_settings"):
        from . import executor

        return getattr(executor, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
