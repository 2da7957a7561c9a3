"""Calls that are to be refused with one line that says what would be right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Refusals = dict[str, tuple[Callable[[], object], str]]
"""By a name: a call with a wrong type, and what its refusal says, as a regular expression."""


def check_refusal(call: Callable[[], object], said: str) -> None:
    """Fail unless a call is refused, in one line that says what it should."""
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
