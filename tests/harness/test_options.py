"""What is said with ``snakemake --config``: understood, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from atlas.errors import UserError
from atlas.study import WorkflowOptions


def test_nothing_said_is_the_demo() -> None:
    options = WorkflowOptions.read({})
    assert (options.tier, options.only, options.here, options.code, options.warm) == ("demo", (), False, None, True)


@pytest.mark.parametrize(("said", "meant"), [("yes", True), ("no", False), ("True", True), (True, True), (False, False)])
@pytest.mark.parametrize("key", ["here", "warm"])
def test_yes_and_no_mean_what_they_say(key: str, said: Any, meant: bool) -> None:
    assert getattr(WorkflowOptions.read({key: said}), key) is meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [("vfds", ("vfds",)), ("a/*,b", ("a/*", "b")), (["a", 10], ("a", "10")), (10, ("10",)), (None, ())],
)
def test_only_is_one_pattern_or_several(said: Any, meant: tuple[str, ...]) -> None:
    assert WorkflowOptions.read({"only": said}).only == meant


def test_a_study_may_be_called_by_a_number() -> None:
    assert WorkflowOptions.read({"tier": 2024}).tier == "2024"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"teir": "mine"}, "--config teir is not a setting of the workflow; did you mean tier?"),
        ({"onyl": "nope"}, "--config onyl is not a setting of the workflow; did you mean only?"),
        (
            {"tier": "mine", "quiet": 1},
            "--config quiet is not a setting of the workflow; choose from code, here, only, tier, warm",
        ),
        ({"code": "old"}, "--config code = 'old': input should be 'new'"),
        ({"code": "NEW"}, "--config code = 'NEW': input should be 'new'"),
        ({"here": "maybe"}, "--config here = 'maybe': input should be a valid boolean, unable to interpret input"),
        ({"warm": 2}, "--config warm = 2: input should be a valid boolean, unable to interpret input"),
        ({"tier": None}, "--config tier = None: input should be a valid string"),
        ({"tier": ["a", "b"]}, "--config tier = ['a', 'b']: input should be a valid string"),
        ({"only": {"a": "b"}}, "--config only: input should be a valid tuple"),
    ],
)
def test_what_means_nothing_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        WorkflowOptions.read(config)
    assert str(refused.value) == said
