"""The base of every plug-in: the object of a method that its task's loop works with."""

from __future__ import annotations

from typing import Any

from atlas.harness.run import Run


class Plugin:
    """Made from a run and the settings of one method of its recipe, once for the training and once for the evaluation.

    Each task has a subclass that lists the hooks its loop calls; a method overrides those that it needs. Nothing is kept from a
    training for an evaluation: what must outlast the training lies in files of ``run.checkpoint``.

    Parameters
    ----------
    run : Run
        The run that it works for.
    settings : Settings
        The method's settings, an instance of the class that its row names.
    """

    def __init__(self, run: Run, settings: Any) -> None:
        self.run, self.settings = run, settings
