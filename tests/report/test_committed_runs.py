"""What is committed of a run is committed whole: a history that is still being written says less than it seems to."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def git(*command: str, given: str = "") -> str:
    """What a command of git prints, of what is committed or staged; working files may be in the middle of a training."""
    done = subprocess.run(["git", *command], cwd=ROOT, input=given, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout


def committed() -> dict[str, set[str]]:
    """Names of committed files by the folder of their run."""
    runs: dict[str, set[str]] = defaultdict(set)
    for path in git("ls-files", "results/*/runs/**").split():
        folder, _, name = path.rpartition("/")
        runs[folder].add(name)
    return runs


def test_a_committed_history_has_the_record_of_its_run() -> None:
    runs = committed()
    assert len(runs) > 100
    assert [run for run, names in runs.items() if names == {"history.csv"}] == []


def test_histories_of_a_row_end_at_the_same_step() -> None:
    runs = [run for run, names in committed().items() if "history.csv" in names]
    said = git("cat-file", "--batch=%(objectsize)", given="".join(f":{run}/history.csv\n" for run in runs))
    ends: dict[str, dict[str, str]] = defaultdict(dict)
    for run in runs:
        size, _, said = said.partition("\n")
        text, said = said[: int(size)], said[int(size) + 1 :]
        ends[run.rpartition("/")[0]][run] = text.splitlines()[-1].split(",")[0]
    assert {row: seeds for row, seeds in ends.items() if len(set(seeds.values())) > 1} == {}
