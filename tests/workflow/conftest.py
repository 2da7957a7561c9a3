"""Fixtures of the workflow's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from workflow_helpers import copy_checkout, snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A checkout in which the small study has run."""
    folder = copy_checkout(checkout, tmp_path_factory.mktemp("finished") / "atlas")
    snakemake(folder)
    return folder


@pytest.fixture
def small(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished checkout to change."""
    return Path(shutil.copytree(finished, tmp_path / "atlas", symlinks=True))
