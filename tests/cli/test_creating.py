"""`atlas new`: what it writes passes its own tests, the conformance suite and the linter as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.cli.creating import EXAMPLES, new_dataset, new_method
from atlas.errors import UserError
from atlas.harness.registry import load


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A copy of what a checkout's code needs, with a new method in every task and a new data set."""
    folder = tmp_path_factory.mktemp("grown")
    for name in ("src", "tests/conformance"):
        shutil.copytree(checkout / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/conftest.py", "config/demo.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, folder / name)
    for task in EXAMPLES:
        done = python(folder, "-m", "atlas", "new", "method", f"new-{task}", "--task", task)
        assert f"tests/methods/new_{task.replace('-', '_')}" in done.stdout, done.stderr
    assert "atlas acquire new-stripes" in python(folder, "-m", "atlas", "new", "dataset", "new-stripes").stdout
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a checkout, on its own code."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


# Its rows need pictures with boxes, which no library bundles: what is written could not be tried at once.
WITHOUT_TEMPLATE = {"object-detection"}


def test_every_task_has_a_template() -> None:
    assert set(EXAMPLES) == set(load().tasks) - WITHOUT_TEMPLATE


@pytest.mark.slow
def test_what_is_written_passes_its_own_tests_and_the_linter(grown: Path) -> None:
    done = python(grown, "-m", "pytest", "tests/methods", "tests/datasets", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert f"{2 * len(EXAMPLES) + 3} passed" in done.stdout
    files = [str(path) for path in grown.rglob("*.py") if "new_" in str(path.relative_to(grown))]
    for arguments in (["check"], ["format", "--check"]):
        linted = python(grown, "-m", "ruff", *arguments, *files)
        assert linted.returncode == 0, linted.stdout
    assert "new-feature-acquisition" in python(grown, "-m", "atlas", "describe", "new-feature-acquisition").stdout


@pytest.mark.slow
def test_what_is_written_passes_the_conformance_suite(grown: Path) -> None:
    done = python(grown, "-m", "pytest", "tests/conformance", "-k", "new-", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("uvc", "image-classification", "there is a method or a paper called uvc already"),
        ("My Method", "image-classification", "'My Method' cannot be a name: write small letters"),
        ("class", "image-classification", "'class' cannot be a name"),
        ("mine", "image-clasification", "--task image-clasification: did you mean image-classification?"),
    ],
)
def test_what_cannot_be_made(name: str, task: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src/atlas/methods").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        new_method(name, task)
    assert not list(tmp_path.rglob("*.py"))


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="go to one, or say atlas -C FOLDER new"):
        new_method("mine", "image-classification")
    (tmp_path / "src/atlas/methods/mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"src/atlas/methods/mine/__init__\.py is there already"):
        new_method("mine", "image-classification")
    with pytest.raises(UserError, match="there is a data set called digits already"):
        new_dataset("digits")
