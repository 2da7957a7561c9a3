"""Kill −9 at random moments: the final metrics equal the uninterrupted run's."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = "image-classification/digits/attnscale/seed10"
OPTIONS = ["--set", "protocol.epochs=8", "--set", "resources.save_minutes=0.005", "--set", "protocol.backbone.depth=3"]
# Keep settings.json's plan and the command line's the same: both verbs take the same overrides.


def atlas(workspace: Path, verb: str) -> list[str]:
    return [sys.executable, "-m", "atlas", "-C", str(workspace), verb, RUN, *OPTIONS]


def metrics(workspace: Path) -> dict[str, float]:
    subprocess.run(atlas(workspace, "evaluate"), check=True, capture_output=True)
    return json.loads((workspace / "results/demo/runs" / RUN / "metrics.json").read_text())["metrics"]


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
    killed = 0
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    state = workspace / "checkpoints/demo" / RUN / "state"
    while killed < 10:
        process = subprocess.Popen(atlas(workspace, "train"), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            # somewhere between the imports and well into the training
            process.wait(timeout=moments.uniform(0.5 * whole, 0.95 * whole) if killed % 2 else moments.uniform(0.3, 0.8) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            continue
        assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""
        shutil.rmtree(workspace / "checkpoints")  # it came to its end between two kills: begin again
    assert state.is_dir() or killed
    subprocess.run(atlas(workspace, "train"), check=True, capture_output=True)
    assert metrics(workspace) == expected
