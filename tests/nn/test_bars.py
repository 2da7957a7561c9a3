"""Bars of library calls: on a terminal, on request, and nowhere else."""

from __future__ import annotations

import importlib
import inspect
import io
import sys

import pytest
import torch

from atlas.nn.bars import Bar, track, valued

MINUTES = [
    "as_vit:grow",
    "as_vit:random_search",
    "as_vit:reinforce",
    "optimizer_amalgamation:amalgamate",
    "optimizer_amalgamation:train_choice",
    "sinnerf:SinNeRF.fit",
    "sparse_robust:robust_bird",
    "split_mix:FedTrainer.fit",
    "symbolic_l2o:distill",
    "uvc:compress",
    "vfds:fit",
]
"""Calls of the library that may take minutes: package and name."""


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


@pytest.mark.parametrize("name", MINUTES)
def test_calls_that_take_minutes_have_a_bar_that_one_argument_turns_off(name: str) -> None:
    package, _, path = name.partition(":")
    call = importlib.import_module(f"atlas.methods.{package}")
    for part in path.split("."):
        call = getattr(call, part)
    assert inspect.signature(call).parameters["progress"].default is None
    assert "Bar(" in inspect.getsource(inspect.getmodule(call)) or "track(" in inspect.getsource(inspect.getmodule(call))


def test_a_search_and_a_growth_show_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas.methods.as_vit import Measures, SearchSpace, grow, random_search, reinforce

    for shown in (None, False):
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        score = lambda topology, *_: Measures(1.0, 1.0)  # noqa: E731
        options = {"generator": torch.Generator().manual_seed(0), "progress": shown}
        best = reinforce(SearchSpace.official(), score, steps=2, **options).best
        random_search(SearchSpace.official(), score, steps=2, **options)
        grow(best, score, width0=8, target=300_000, num_classes=10, progress=shown)
        for label in ("search", "search at random", "grow"):
            assert (label in stream.getvalue()) == (shown is None)


def test_a_bar_may_stand_within_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Bar("outer", 2, True) as outer:
        assert list(track(range(3), "inner", 3, True)) == [0, 1, 2]
        outer.advance()
    assert outer.done == 1
