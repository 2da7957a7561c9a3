"""Settings of a library call: given as an object, by keyword, or both."""

from __future__ import annotations

import pytest
from pydantic import model_validator

from atlas.errors import UserError
from atlas.settings import Natural, Positive, Settings, validate_settings


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


class Oven(Settings):
    """Settings that must go together, some inside others."""

    heat: Heat = Heat()
    limit: Natural = 10
    note: str = ""

    @model_validator(mode="after")
    def _enough(self) -> Oven:
        if self.heat.steps > self.limit:
            raise ValueError(f"heat.steps {self.heat.steps} is above limit {self.limit}")
        return self


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"heat": {"steps": 20}}, "mine: heat.steps 20 is above limit 10"),
        ({"heat": {"steps": 0}}, "mine.heat.steps = 0: input should be greater than or equal to 1"),
        ({"note": ["x" * 500]}, f"mine.note = ['{'x' * 58}…: input should be a valid string"),
        ({"limt": 1}, "mine.limt is not a setting of an oven; did you mean limit?"),
    ],
)
def test_a_refusal_shows_what_it_is_about_and_not_all_the_settings(values: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_settings(Oven, values, "mine", "an oven")
    assert str(caught.value) == line
    if "heat" in values and "above" in line:
        with pytest.raises(ValueError, match=r"^heat\.steps 20 is above limit 10$"):
            Oven.chosen(**values)
