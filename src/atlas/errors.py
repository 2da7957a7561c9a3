"""What can go wrong, and how the command line says it: one line, and an exit code that a workflow can act on."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start me again
REFUSALS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})
"""Why a system does not let a program write, or read: rights, a read-only file system, a full disk, a quota."""


class AtlasError(Exception):
    """A failure that one line explains; the command line prints that line and exits with ``exit_code``."""

    exit_code = EXIT_FAILURE


class UserError(AtlasError):
    """The request was wrong (a name, a setting, a file): says what, where, and what would be right."""

    exit_code = EXIT_USER_ERROR


class Interrupted(AtlasError):
    """A run was asked to stop, has saved its state, and goes on when it is started again."""

    exit_code = EXIT_INTERRUPTED


def refusal(error: OSError) -> str | None:
    """Say in one line what the system refuses and where, or return ``None`` for an error of another kind.

    Examples
    --------
    >>> refusal(OSError(errno.EROFS, "Read-only file system", "results/demo/claims.csv"))
    'cannot write results/demo/claims.csv: Read-only file system'
    """
    if error.errno not in REFUSALS:
        return None
    path = error.filename2 or error.filename
    if not isinstance(path, str | os.PathLike):
        return f"cannot write: {error.strerror}"
    unread = Path(path).is_file() and not os.access(path, os.R_OK)
    return f"cannot {'read' if unread else 'write'} {path}: {error.strerror}"


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
