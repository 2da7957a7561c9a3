"""Interleaved timing: who is called when, and what counts."""

from __future__ import annotations

import time

import pytest

from atlas.nn.timing import interleaved_seconds, median_ratio


def test_rounds_are_interleaved_and_warm_ups_do_not_count() -> None:
    called: list[str] = []
    seconds = interleaved_seconds([lambda: called.append("a"), lambda: called.append("b")], 3, warmup=2)
    assert called == ["a", "b"] * 5
    assert [len(values) for values in seconds] == [3, 3]


def test_a_slow_call_takes_longer() -> None:
    fast, slow = interleaved_seconds([lambda: None, lambda: time.sleep(0.02)], 3)
    assert min(slow) >= 0.02
    assert median_ratio(slow, fast) > 1


def test_the_ratio_is_the_median_over_rounds() -> None:
    assert median_ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == pytest.approx(3.0)
