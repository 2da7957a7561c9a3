"""What can go wrong, and how the command line says it: one line, and an exit code that a workflow can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start me again


class AtlasError(Exception):
    """A failure that one line explains; the command line prints that line and exits with ``exit_code``."""

    exit_code = EXIT_FAILURE


class UserError(AtlasError):
    """The request was wrong (a name, a setting, a file): says what, where, and what would be right."""

    exit_code = EXIT_USER_ERROR


class Interrupted(AtlasError):
    """A run was asked to stop, has saved its state, and goes on when it is started again."""

    exit_code = EXIT_INTERRUPTED


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Suggest the nearest known word, as the end of a sentence; list the choices if none is near.

    Examples
    --------
    >>> did_you_mean("flops_bugdet", ["flops_budget", "epochs"])
    'did you mean flops_budget?'
    """
    names = sorted(map(str, known))
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return f"choose from {', '.join(names)}" if names else "there is nothing to choose from"
