"""Kill −9 at random moments: the final metrics equal the uninterrupted run's."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 10
RUN = "image-classification/digits/attnscale/seed10"
SHORT = ["--set", "protocol.epochs=8", "--set", "resources.save_minutes=0.005", "--set", "protocol.backbone.depth=3"]


def atlas(folder: Path, verb: str) -> list[str]:
    return [sys.executable, "-m", "atlas", "-C", str(folder), verb, RUN, *SHORT]


def metrics(folder: Path) -> dict[str, float]:
    subprocess.run(atlas(folder, "evaluate"), check=True, capture_output=True)
    return json.loads((folder / "results/demo-trial/runs" / RUN / "metrics.json").read_text())["metrics"]


def killed(folder: Path, after: float) -> bool:
    """Start a training and kill it after some seconds; whether it was still alive."""
    process = subprocess.Popen(atlas(folder, "train"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert process.wait(timeout=after) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


@pytest.mark.slow
def test_ten_kills_change_nothing(workspace: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shutil.copytree(checkout / "config", workspace / "config")
    quiet = tmp_path_factory.mktemp("quiet")
    shutil.copytree(checkout / "config", quiet / "config")
    (quiet / "data").symlink_to(workspace / "data")
    began = time.monotonic()
    subprocess.run(atlas(quiet, "train"), check=True, capture_output=True)
    whole = time.monotonic() - began
    expected = metrics(quiet)

    moments = random.Random(0)
    kills = 0
    while kills < KILLS:
        if killed(workspace, moments.uniform(0.3, 0.95) * whole):
            kills += 1
        else:  # it came to its end between two kills: begin again
            shutil.rmtree(workspace / "checkpoints")
    subprocess.run(atlas(workspace, "train"), check=True, capture_output=True)
    assert metrics(workspace) == expected
