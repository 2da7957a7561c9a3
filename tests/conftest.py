"""Fixtures that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# folders of tests that start processes and wait for them
LONG = ("tests/workflow", "tests/tasks", "tests/harness", "tests/cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first: one that comes last, as those of the workflow do, keeps one core busy and leaves the other idle."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The project's own folder."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded datasets of the demo study, acquired once."""
    from atlas.datasets import acquire
    from atlas.study import Study

    root = tmp_path_factory.mktemp("acquired") / "data"
    for name in Study.read("demo", ROOT).datasets:
        acquire(name, root=root, mirror=None)
    return root


@pytest.fixture
def workspace(tmp_path: Path, data_folder: Path) -> Path:
    """A working directory of its own, with the acquired data and nothing else."""
    (tmp_path / "data").symlink_to(data_folder)
    return tmp_path
