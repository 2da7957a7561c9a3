"""The folders are the registration: what is wrong with a folder is one line, and never silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import atlas.methods
import atlas.tasks
from atlas.errors import UserError
from atlas.harness.registry import Method, Task, load, resolve
from atlas.settings import validate_settings

ENTRY = """
from atlas.harness.registry import method

method("{name}", task="image-classification", title="T", summary="S.", plugin="plugin:Nothing")
"""


@pytest.fixture(params=[atlas.methods, atlas.tasks], ids=["methods", "tasks"])
def folders(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A further place where folders of methods, or of tasks, are looked for."""
    monkeypatch.setattr(request.param, "__path__", [*request.param.__path__, str(tmp_path)])
    return tmp_path


def add(folder: Path, content: str, *, package: bool = True) -> Path:
    folder.mkdir()
    if package:
        (folder / "__init__.py").write_text('"""A paper."""\n')
    (folder / "entry.py").write_text(content)
    return folder


def line_of_load() -> str:
    with pytest.raises(UserError) as caught:
        load.__wrapped__()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("content", ["", "this is no Python", ENTRY.format(name="nobody")])
def test_a_folder_that_is_no_package_is_refused(folders: Path, content: str) -> None:
    add(folders / "left_out", content, package=False)
    message = line_of_load()
    assert str(folders / "left_out") in message
    assert "__init__.py" in message


def test_a_folder_that_cannot_be_imported_by_name_is_refused(folders: Path) -> None:
    add(folders / "my-paper", "")
    message = line_of_load()
    assert "my-paper" in message
    assert "my_paper" in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken_syntax", "x = 1\nthis is no Python\n", ":2: SyntaxError"),
        ("broken_name", "\n\nPAPER = papre('x')\n", ":3: NameError: name 'papre' is not defined"),
        ("broken_import", "import nothing_of_this_name\n", ":1: ModuleNotFoundError"),
        ("broken_double", ENTRY.format(name="attnscale"), "two methods of image-classification are called attnscale"),
    ],
)
def test_an_entry_that_fails_is_one_line_with_its_place(folders: Path, name: str, content: str, said: str) -> None:
    folder = add(folders / name, content)
    message = line_of_load()
    assert str(folder / "entry.py") in message
    assert said in message


def test_what_is_no_method_is_left_alone(folders: Path) -> None:
    (folders / "__pycache__").mkdir()
    (folders / "notes").mkdir()
    (folders / "notes" / "readme.txt").write_text("Nothing to import.")
    load.__wrapped__()


def test_the_command_line_says_it(tmp_path: Path) -> None:
    add(tmp_path / "left_out", "", package=False)
    program = f"import atlas.methods; atlas.methods.__path__.append({str(tmp_path)!r}); from atlas.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "list", "methods"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: left_out/entry.py")
    assert done.stderr.count("\n") == 1


METHODS = [pytest.param(entry, id=f"{entry.task}:{entry.name}") for entry in load().all_methods()]


@pytest.mark.parametrize("entry", [*METHODS, *(pytest.param(task, id=task.name) for task in load().tasks.values())])
def test_the_code_that_an_entry_names_is_there(entry: Method | Task) -> None:
    names = {getattr(entry, field, "") for field in ("plugin", "train", "evaluate", "amounts")} - {""}
    assert names
    assert all(callable(resolve(name, entry.package)) for name in names)


@pytest.mark.parametrize("entry", METHODS)
def test_presets_are_settings(entry: Method) -> None:
    complete = validate_settings(entry.settings, entry.preset, "preset", entry.name)
    assert validate_settings(entry.settings, complete, "preset", entry.name) == complete


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("plugin", 'write "module:name"'),
        ("plugins:AttnScale", "there is no module atlas.methods.anti_oversmoothing.plugins"),
        ("plugin:AttnScaled", "did you mean AttnScale?"),
    ],
)
def test_code_that_is_not_there_is_named(reference: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(reference, "atlas.methods.anti_oversmoothing")
    assert said in str(caught.value)
    assert reference in str(caught.value)
