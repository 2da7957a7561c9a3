"""Bars of library calls: on a terminal, on request, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from atlas.nn.bars import Bar, track, valued


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "shown", "drawn"), [(True, None, True), (False, None, False), (True, False, False), (False, True, True)]
)
def test_where_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bool | None, drawn: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar("compress", 3, shown) as bar:
        for step in range(3):
            bar.advance({"loss": 1 / (step + 1)})
    assert ("compress" in stream.getvalue()) == drawn
    assert bar.done == 3


def test_items_come_through_and_nothing_is_drawn_when_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track(range(4), "fit", 4, False)) == [0, 1, 2, 3]
    with Bar("fit", 2, done=2):
        pass
    assert stream.getvalue() == ""
    assert valued({"loss": 0.123456, "rate": 1.0}) == "loss 0.1235  rate 1"
