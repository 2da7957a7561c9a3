"""Types of arguments: what is of another is refused in one line that says what would be right. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any


def require_kind(kind: type[Any] | tuple[type[Any], ...], needed: str, **values: Any) -> None:
    """Refuse, by their names, what is no instance of a class.

    Parameters
    ----------
    kind : type or tuple of types
        What is right.
    needed : str
        How the message names it, with its article.

    Raises
    ------
    TypeError
        One is of another type; says of which.

    Examples
    --------
    >>> require_kind(dict, "a mapping", masks=[1])
    Traceback (most recent call last):
        ...
    TypeError: masks is a list; a mapping is needed
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} is a {told(value)}; {needed} is needed")


def require_callable(needed: str, **values: Any) -> None:
    """Refuse, by their names, what cannot be called; ``needed`` says what would be right.

    Raises
    ------
    TypeError
        One cannot be called.
    """
    for name, value in values.items():
        if not callable(value):
            raise TypeError(f"{name} is a {told(value)}; {needed} is needed")


def require_whole(**values: Any) -> None:
    """Refuse, by their names, what is no whole number; truth values are none.

    Raises
    ------
    TypeError
        One is of another type.
    """
    for name, value in values.items():
        if not is_whole(value):
            raise TypeError(f"{name} must be a whole number, not {value!r}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy; truth values are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_sequence(needed: str, **values: Any) -> None:
    """Refuse, by their names, text and what cannot be passed over; ``needed`` says what would be right.

    Raises
    ------
    TypeError
        One is text, or no sequence.
    """
    for name, value in values.items():
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            shown = repr(value) if isinstance(value, str | bytes | int | float) else f"a {told(value)}"
            raise TypeError(f"{name} is {shown}; {needed} is needed")


def told(value: Any) -> str:
    """What a message calls a value: the name of its type, or of a class that was given in the place of an object."""
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
