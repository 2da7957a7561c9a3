"""A person's own photographs and measurements, from the files to the page, by the commands that they would type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workflow_helpers import copy_checkout, snakemake

pytestmark = pytest.mark.slow

MINE = """
description: My own photographs and measurements.
seeds: [0]
resources: {threads: 1, memory_mb: 1000, minutes: 2}
image-classification:
  datasets:
    garden:
      data: {folder: photographs, size: 16}
      protocol:
        backbone: {patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2, drop_path_rate: 0}
        epochs: 12
        warmup_epochs: 0
        batch_size: 8
        mixup: 0
        cutmix: 0
      methods: {deit: {}}
feature-acquisition:
  datasets:
    kitchen:
      data: {csv: sensors.csv, label: activity, recording: day}
      protocol: {stream: {steps: 10, long_steps: 10}, hidden: 4, steps: 20, batch_size: 2, keep_best_every: 0}
      methods: {vanilla: {}, vfds: {}}
"""


def photograph(folder: Path) -> None:
    """JPEGs of two sizes, of red flowers and green leaves."""
    random = np.random.default_rng(0)
    for label, colour in (("flower", (220, 40, 40)), ("leaf", (40, 200, 60))):
        (folder / label).mkdir(parents=True)
        for index in range(20):
            size = (24, 32) if index % 2 else (40, 30)
            noise = random.integers(-30, 30, (*size, 3))
            Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(folder / label / f"IMG_{index}.JPG", "JPEG")


def measure(path: Path) -> None:
    """Six days of two sensors, of which the first tells what is done."""
    random = np.random.default_rng(0)
    rows = ["day,heat,noise,activity"]
    for day in range(6):
        for step in range(30):
            cooking = step // 10 % 2
            rows.append(f"{day},{cooking + 0.1 * random.standard_normal():.3f},{random.random():.3f},{('idle', 'cook')[cooking]}")
    path.write_text("\n".join(rows))


@pytest.fixture
def mine(tmp_path: Path, checkout: Path) -> Path:
    folder = copy_checkout(checkout, tmp_path / "atlas")
    (folder / "config" / "mine.yaml").write_text(MINE)
    photograph(folder / "photographs")
    measure(folder / "sensors.csv")
    return folder


def test_own_photographs_and_measurements_come_to_a_page(mine: Path) -> None:
    snakemake(mine, "--config", "tier=mine")
    found = {path.parts[-4]: json.loads(path.read_text()) for path in mine.glob("results/mine/runs/*/*/deit/*/metrics.json")}
    assert found["garden"]["metrics"]["top1"] > 0.9  # colours tell them apart
    assert (mine / "results/mine/tables/image-classification/garden.csv").read_text().count("\n") > 1
    table = (mine / "results/mine/tables/feature-acquisition/kitchen.csv").read_text()
    assert "vanilla" in table
    assert "vfds" in table
    page = (mine / "results/mine/report.html").read_text()
    assert "garden" in page
    assert "kitchen" in page
    assert "Nothing to be done" in snakemake(mine, "--config", "tier=mine")


def test_other_photographs_of_the_same_names_are_trained_on(mine: Path) -> None:
    (mine / "config" / "other.yaml").write_text(MINE.replace("size: 16", "size: 8"))
    snakemake(mine, "--config", "tier=mine", "only=garden")
    (metrics,) = mine.glob("results/mine/runs/*/garden/*/*/metrics.json")
    before = json.loads(metrics.read_text())
    (mine / "photographs" / "leaf").rename(mine / "photographs" / "bark")
    (mine / "photographs" / "flower").rename(mine / "photographs" / "leaf")
    assert "garden to acquire (photographs holds other files" in snakemake(mine, "-n", "--config", "tier=mine", "only=garden")
    snakemake(mine, "--config", "tier=mine", "only=garden")
    assert json.loads(metrics.read_text())["provenance"]["data_hash"] != before["provenance"]["data_hash"]
    assert "Nothing to be done" in snakemake(mine, "--config", "tier=mine", "only=garden")
    assert "garden to acquire (the study declares it otherwise" in snakemake(mine, "-n", "--config", "tier=other", "only=garden")
    snakemake(mine, "--config", "tier=other", "only=garden")
    assert len(list(mine.glob("results/other/runs/*/garden/*/*/metrics.json"))) == 1


def test_what_is_wrong_with_own_data_is_one_line_before_anything_runs(mine: Path) -> None:
    (mine / "photographs" / "leaf").rename(mine / "leaf")
    said = snakemake(mine, "-n", "--config", "tier=mine", check=False)
    assert "photographs has 1 folders: images go into one folder per class" in said
    assert "Traceback" not in said
    (mine / "leaf").rename(mine / "photographs" / "leaf")
    (mine / "sensors.csv").write_text((mine / "sensors.csv").read_text().replace("0,", "0,warm", 1))
    said = snakemake(mine, "-n", "--config", "tier=mine", check=False)
    assert "line 2: heat = 'warm" in said
    assert "is not a number (leave it empty if missing)" in said
