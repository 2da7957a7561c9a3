"""Damage, told in one line: decoders of damaged files raise nearly anything, and only their caller knows what they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from atlas.datasets.base import DatasetError
from atlas.errors import AtlasError, refusal

LONGEST = 300
"""Characters of a decoder's own message that are passed on."""


@contextmanager
def told_as(what: str, kind: type[DatasetError] = DatasetError) -> Iterator[None]:
    """Raise whatever fails in the block as ``kind``: ``what``, a colon and the reason, in one line.

    Errors of Atlas say by themselves what is wrong; a package that is missing and a disk that cannot be written are no damage
    of what is read. These pass.
    """
    try:
        yield
    except (AtlasError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and refusal(error) is not None:
            raise
        raise kind(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    own = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(own.split())[:LONGEST] or type(error).__name__
