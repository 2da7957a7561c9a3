"""Names of studies, benchmarks and rows: each becomes a folder, and a part of a pattern of the workflow's rules."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

RESERVED = "/{}"
"""What separates folders, and what opens and closes a wildcard of Snakemake."""
LONGEST = 200
"""Bytes of a name; file systems take 255, and some files' names add to it."""


def name_fault(name: str) -> str | None:
    """What keeps a name from naming a folder, as the end of a sentence that begins with the name; or ``None``.

    Examples
    --------
    >>> name_fault("attnscale+uvc")
    >>> name_fault("a/b")
    "cannot name a folder: it holds '/'"
    """
    odd = next((letter for letter in name if letter in RESERVED or not letter.isprintable()), None)
    if not name:
        fault = "it is empty"
    elif odd is not None:
        fault = f"it holds {odd!r}"
    elif name.startswith("."):
        fault = "it begins with a dot"
    elif name != name.strip():
        fault = "it begins or ends with a space"
    elif len(name.encode()) > LONGEST:
        fault = f"it has {len(name.encode())} bytes, and {LONGEST} is the most"
    else:
        return None
    return f"cannot name a folder: {fault}"


def shown_name(name: str) -> str:
    """A name as messages print it: in quotes, in one line, and short."""
    return repr(name if len(name) <= 60 else f"{name[:60]}…")


def ignores_case(file: Path) -> bool:
    """Whether the file system of an existing file takes names that differ in case for one name."""
    other = file.with_name(file.name.swapcase())
    return other.name != file.name and other.exists() and other.samefile(file)


def case_twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two different names that differ in case alone."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            return first, name
    return None
