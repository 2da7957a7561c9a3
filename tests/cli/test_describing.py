"""What `atlas describe` says: every setting, and a row that a study takes as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from atlas.cli.describing import describe, describe_method, describe_task, row
from atlas.errors import UserError
from atlas.harness.registry import Method, load
from atlas.settings import validate_settings

METHODS = list(load().all_methods())


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: f"{entry.task}:{entry.name}")
def test_the_row_to_paste_is_valid_and_complete(entry: Method) -> None:
    content = yaml.safe_load(row(entry))
    assert list(content) == [entry.name]
    assert validate_settings(entry.settings, content[entry.name] or {}, "pasted", entry.name) == (content[entry.name] or {})
    text = describe_method(entry)
    assert all(f"{name}" in text for name in entry.settings.model_fields)
    assert max(map(len, text.splitlines())) < 200


def test_defaults_ranges_and_source_are_shown() -> None:
    text = describe("uvc")
    assert "S. Yu, T. Chen, J. Shen" in text
    assert "budget                0.5          number > 0 and ≤ 1" in text
    assert "gate                  gumbel_soft  gumbel_soft | gumbel_hard | softl0" in text
    assert "needs     the same recipe without it (as its dense)" in text
    assert "search.population" in describe("recovery")


def test_presets_are_the_defaults_of_a_row() -> None:
    entry = next(one for one in METHODS if one.preset)
    name, value = next(iter(entry.preset.items()))
    assert yaml.safe_load(row(entry))[entry.name][name] == yaml.safe_load(yaml.safe_dump(value))


def test_tasks_and_papers() -> None:
    assert "backbone.patch_size" in describe("image-classification")
    assert "embedding" in describe("diverse-vit")
    for task in load().tasks.values():
        assert next(iter(load().methods[task.name])) in describe_task(task)
    assert "attnscale " in describe("anti-oversmoothing")


def test_a_wrong_name(checkout: Path) -> None:
    with pytest.raises(UserError, match="atnscale is not a method, a task or a paper; did you mean attnscale?"):
        describe("atnscale")
