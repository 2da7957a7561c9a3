"""Settings of a library call: given as an object, by keyword, or both."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest
from pydantic import model_validator

from atlas.errors import UserError
from atlas.settings import DataclassSettings, Natural, Positive, Settings, validate_settings


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


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Heat(steps=0), "steps = 0: input should be greater than or equal to 1"),
        (lambda: Heat(stps=1), "stps is not a setting of Heat; did you mean steps?"),
        (lambda: Oven(heat={"steps": 0}), "heat.steps = 0: input should be greater than or equal to 1"),
        (lambda: Oven(heat={"stps": 1}), "heat.stps is not a setting of Oven; did you mean steps?"),
    ],
)
def test_settings_are_refused_in_one_line(make: object, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == line


class Kettle(DataclassSettings):
    """A record of settings."""

    volume: Positive
    power: Positive = 2.0
    heat: Heat = Heat()


class Urn(Kettle):
    """One that has more, which must go together with the rest."""

    taps: Natural = 1

    @model_validator(mode="after")
    def _enough(self) -> Urn:
        if self.taps > self.volume:
            raise ValueError(f"taps {self.taps} are more than volume {self.volume:g}")
        return self


def test_settings_can_be_a_frozen_dataclass() -> None:
    kettle = Kettle(1.5, 3)
    assert kettle == Kettle(volume=1.5, power=3.0) == dataclasses.replace(Kettle(1.5), power=3)
    assert len({kettle, Kettle(1.5, 3.0), Kettle(1.5)}) == 2
    assert [(field.name, field.type) for field in dataclasses.fields(kettle)][2] == ("heat", Heat)
    assert [field.default for field in dataclasses.fields(Urn)][1:] == [2.0, Heat(), 1]
    assert dataclasses.asdict(Urn(2, taps=2)) == {"volume": 2.0, "power": 2.0, "heat": Heat(), "taps": 2}
    assert str(inspect.signature(Kettle)).startswith("(volume: ")
    assert list(inspect.signature(Kettle).bind(1, 2).arguments) == ["volume", "power"]
    for twin in (copy.deepcopy(kettle), pickle.loads(pickle.dumps(kettle)), Kettle.model_validate(kettle.model_dump())):
        assert twin == kettle
        assert hash(twin) == hash(kettle)
    match kettle:
        case Kettle(volume, power):
            assert (volume, power) == (1.5, 3.0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot set power of Kettle; dataclasses.replace makes another"):
        kettle.power = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete power of Kettle"):
        del kettle.power


@pytest.mark.parametrize(
    ("make", "error", "line"),
    [
        (lambda: Kettle(-1), ValueError, "volume = -1: input should be greater than 0"),
        (lambda: Kettle(1, heat={"steps": 0}), ValueError, "heat.steps = 0: input should be greater than or equal to 1"),
        (lambda: Kettle(), ValueError, "volume: field required"),
        (lambda: Urn(1, taps=3), ValueError, "taps 3 are more than volume 1"),
        (lambda: dataclasses.replace(Urn(1), taps=0), ValueError, "taps = 0: input should be greater than or equal to 1"),
        (lambda: Kettle(1, 2, Heat(), 4), TypeError, "Kettle has 3 settings, not 4"),
        (lambda: Kettle(1, volume=2), TypeError, "volume of Kettle is given twice, by place and by keyword"),
        (lambda: Kettle(1, powr=2), TypeError, "powr is not a setting of Kettle; did you mean power?"),
    ],
)
def test_a_dataclass_of_settings_refuses_in_one_line(make: object, error: type[Exception], line: str) -> None:
    with pytest.raises(error) as caught:
        make()  # type: ignore[operator]
    assert type(caught.value) is error
    assert str(caught.value) == line


def test_a_dataclass_of_settings_is_read_from_a_study_as_other_settings_are() -> None:
    assert validate_settings(Urn, {"volume": 2, "heat": {"steps": 1}}, "mine", "an urn") == {
        "volume": 2.0, "power": 2.0, "heat": {"temperature": 1.0, "steps": 1}, "taps": 1
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^mine\.power = -1: input should be greater than 0$"):
        validate_settings(Urn, {"volume": 2, "power": -1}, "mine", "an urn")
    with pytest.raises(UserError, match=r"^mine\.tap is not a setting of an urn; did you mean taps\?$"):
        validate_settings(Urn, {"volume": 2, "tap": 1}, "mine", "an urn")
    with pytest.raises(ValueError, match=r"^power = -1: input should be greater than 0$"):
        Urn.chosen(Urn(2), power=-1)
