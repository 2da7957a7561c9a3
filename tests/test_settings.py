"""Settings of a library call: given as an object, by keyword, or both."""

from __future__ import annotations

import pytest

from atlas.settings import Natural, Positive, Settings


class Heat(Settings):
    """Two settings."""

    temperature: Positive = 1.0
    steps: Natural = 3


def test_keywords_win_over_the_object_and_that_over_defaults() -> None:
    assert Heat.chosen() == Heat()
    assert Heat.chosen(Heat(temperature=2.0), steps=5) == Heat(temperature=2.0, steps=5)


def test_a_keyword_that_is_no_setting_is_named() -> None:
    with pytest.raises(TypeError, match="temprature is not a setting of Heat; did you mean temperature?"):
        Heat.chosen(temprature=2.0)


def test_a_value_out_of_range_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^temperature = -1: input should be greater than 0$"):
        Heat.chosen(temperature=-1)
