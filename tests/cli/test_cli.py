"""The command line: listings, one-line errors and their exit codes, and runs by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "image-classification/random-stacks/residual/seed10"


def atlas(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "atlas", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path, checkout: Path) -> Path:
    shutil.copytree(checkout / "config", tmp_path / "config")
    return tmp_path


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("papers", "anti-oversmoothing"),
        ("tasks", "image-classification"),
        ("methods", "attnscale"),
        ("datasets", "imagenet"),
        ("claims", "aos.acc-d12"),
        ("runs", RUN),
    ],
)
def test_listings(folder: Path, what: str, expected: str) -> None:
    done = atlas(folder, "list", what)
    assert done.returncode == 0
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "paper"], "did you mean papers?"),
        (["train", "image-classification/digits/atnscale/seed10"], "did you mean image-classification/digits/attnscale/seed10?"),
        (["train", "image-classification/digits/deit/seed10"], "the dataset digits is not there; run: atlas acquire digits"),
        (["evaluate", RUN], f"{RUN} has not been trained; run: atlas train --tier demo {RUN}"),
        (["train", RUN, "--set", "depht=9"], "--set.depht is not a setting of random-stack; did you mean depth?"),
        (["train", RUN, "--set", "depth"], "write key=value"),
        (["train", RUN, "--set", "depth=["], "--set depth is not YAML: "),
        (
            ["train", RUN, "--set", "protocol={epochs: 1, epochs: 2}"],
            "--set protocol: epochs stands twice, in line 1",
        ),
        (["list", "runs", "--tier", "../demo"], "--tier '../demo' cannot name a folder: it holds '/'"),
        (["table", "image-classification/digit"], "did you mean image-classification/digits?"),
        (["acquire", "digit"], "did you mean digits?"),
        (["list", "runs", "--tier", "dem"], "did you mean demo?"),
        (["-C", "nowhere", "list", "runs"], "--directory nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder: Path, arguments: list[str], message: str) -> None:
    done = atlas(folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_failures_exit_with_1_and_are_recorded(folder: Path) -> None:
    done = atlas(folder, "train", RUN, "--set", "heads=3")
    assert done.returncode == 1
    assert "width 64 is not a multiple of heads 3" in done.stderr
    failure = json.loads((folder / "results/demo/runs" / RUN / "failure.json").read_text())
    assert failure["stage"] == "train"
    assert "width 64" in failure["error"]


def test_a_run_by_hand(folder: Path) -> None:
    settings = ["--set", "repeats=1", "--set", "depth=8"]
    assert atlas(folder, "train", RUN, *settings).returncode == 0
    assert "already trained" in atlas(folder, "train", RUN, *settings).stderr
    done = atlas(folder, "evaluate", RUN, *settings)
    assert done.returncode == 0
    content = json.loads((folder / "results/demo/runs" / RUN / "metrics.json").read_text())
    assert content["settings"]["settings"]["random-stack"]["depth"] == 8
    assert not (folder / "checkpoints/demo" / RUN / "state").exists()
    stale = atlas(folder, "evaluate", RUN)
    assert stale.returncode == 2
    assert "must be trained again, its settings changed" in stale.stderr
    assert not (folder / "results/demo/runs" / RUN / "failure.json").exists()


def test_an_evaluation_in_advance_is_taken_once_and_for_its_own_training(folder: Path) -> None:
    short = ["--set", "depth=8", "--set", "repeats=1"]
    left = folder / "checkpoints/demo" / RUN / "evaluation.json"
    metrics = folder / "results/demo/runs" / RUN / "metrics.json"

    def evaluated() -> dict[str, float]:
        done = atlas(folder, "evaluate", RUN, *short)
        assert done.returncode == 0, done.stderr
        assert not left.exists()
        values: dict[str, float] = json.loads(metrics.read_text())["metrics"]
        return values

    assert atlas(folder, "train", RUN, "--evaluate", *short).returncode == 0
    assert not metrics.exists()
    ahead = json.loads(left.read_text())
    first = evaluated()
    assert first == ahead["content"]["metrics"]
    assert evaluated() == first
    # numbers that belong to another training are not taken
    wrong = dict.fromkeys(first, -1.0)
    left.write_text(json.dumps({"record": "0" * 64, "content": {**ahead["content"], "metrics": wrong}}))
    assert evaluated() == first


def test_doctor_examines_and_fixes(folder: Path) -> None:
    (folder / ".dvc").mkdir()
    done = atlas(folder, "doctor")
    assert done.returncode == 0
    assert "digits missing" in done.stdout
    assert "run: atlas acquire digits" in done.stdout
    assert "no remote is configured" in done.stdout
    assert atlas(folder, "doctor", "--fix").returncode == 0
    assert "atlas-dvc-storage" in (folder / ".dvc" / "config.local").read_text()
    assert "has a remote" in atlas(folder, "doctor").stdout
