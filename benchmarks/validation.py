"""Accuracy of settings on held-out training images, to choose settings by; test images are not looked at.

Trains a row of a study with each group of overrides, for each seed, in a temporary folder, and prints the accuracy on the
validation split that the task's training returns.

    python benchmarks/validation.py image-classification/digits-mixed/diverse-demo \\
        --try "emb_cos=0.5 emb_contrast=0.5" --try "emb_cos=0.05 emb_contrast=0.05"
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from atlas.cli.overrides import apply_overrides
from atlas.harness.execute import train_run, training_summary
from atlas.study import Run, Study

ROOT = Path(__file__).resolve().parent.parent


def validation_accuracy(run: Run, overrides: list[str], fraction: float) -> float:
    """Train one run with some settings changed, and return its accuracy on the validation split, in [0, 1]."""
    changed = apply_overrides(run, [*overrides, f"protocol.data.validation_fraction={fraction}"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(ROOT / "data")
        moved = replace(changed, root=Path(folder))
        train_run(moved)
        summary = training_summary(moved)
        return float(next(value for name, value in summary.items() if name.startswith("validation_")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", help="task/dataset/method")
    parser.add_argument("--try", dest="groups", action="append", default=[], help="overrides that belong together")
    parser.add_argument("--tier", default="demo")
    parser.add_argument("--seeds", default="20,21,22", help="other seeds than the study's")
    parser.add_argument("--fraction", type=float, default=0.2, help="share of the training images to hold out")
    options = parser.parse_args()
    first = next(run for run in Study.read(options.tier, ROOT).runs if run.cell.rpartition("/")[0] == options.row)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for group in options.groups or [""]:
        values = [validation_accuracy(replace(first, seed=seed), group.split(), options.fraction) for seed in seeds]
        shown = " ".join(f"{100 * value:5.1f}" for value in values)
        print(f"{options.row} {group or 'as configured'}: {100 * statistics.mean(values):.1f} % (seeds {shown})", flush=True)


if __name__ == "__main__":
    main()
