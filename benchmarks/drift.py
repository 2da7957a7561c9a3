"""How far trainings drift apart that differ by one rounding part: every row of a study, twice, in one mode on one machine.

Theory: a training is a map of weights to weights. Where it contracts, two starts that differ by 1e-7 of every weight end
alike to five or six digits; where it is chaotic the difference grows by a factor per step, is of the order of the weights
after some hundred steps, and the end says as much about rounding as another seed would. So the drift of a metric is told in
units of its standard deviation over seeds: far below 1, bits do not matter to a verdict; near 1, a row has no more digits than
its seeds show, and only the same kernels give the same numbers.

Every optimizer of PyTorch that a training makes has its parameters multiplied by 1 + 1e-7 · N(0, 1) as it takes them over;
nothing else changes. Rows that train by other means (counts, formulas, searches without gradients) show no drift.

    python -m benchmarks.drift FOLDER [ROW…]       in FOLDER the study's data, checkpoints and results lie; see --help
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from atlas.harness.kernels import hold_kernels

FIELDS = ("task", "dataset", "method", "metric", "value", "perturbed", "sd", "drift")


@contextmanager
def perturbed(seed: int, size: float = 1e-7) -> Iterator[None]:
    """While it lasts, parameters change by a rounding part as an optimizer takes them over."""
    import torch

    original = torch.optim.Optimizer.add_param_group
    noise = torch.Generator().manual_seed(seed)

    def add(self: torch.optim.Optimizer, group: dict[str, object]) -> None:
        original(self, group)
        with torch.no_grad():
            for parameter in self.param_groups[-1]["params"]:
                if parameter.is_floating_point():
                    draw = torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
                    parameter.mul_((1 + size * draw).to(parameter.dtype))

    torch.optim.Optimizer.add_param_group = add  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.Optimizer.add_param_group = original  # type: ignore[method-assign]


def drifts(folder: Path, tier: str, patterns: list[str]) -> Iterator[dict[str, object]]:
    """For the first seed of every row its headline metric, the perturbed one, and their difference in sd over seeds."""
    from atlas.harness.execute import evaluate_run, train_run
    from atlas.study import Run, Study

    study = Study.read(tier, folder)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "data").symlink_to((folder / "data").resolve())

        def again(run: Run) -> Run:
            """The run and what it needs in another folder; what it needs is taken as it is, so that drift is the row's own."""
            needs = {role: again(needed) for role, needed in run.needs.items()}
            return replace(run, root=root, needs=needs)

        for run in study.runs:
            row = f"{run.task}/{run.dataset}/{run.method}"
            if run.seed != study.seeds[0] or not run.declared_metrics or not any(fnmatch(row, p) for p in patterns or ["*"]):
                continue
            metric = run.declared_metrics[0]
            seeds = study.matching(run.task, run.dataset, run.method)
            values = [json.loads(other.metrics.read_text())["metrics"].get(metric.name) for other in seeds]
            if any(value is None for value in values):
                continue
            other = again(run)
            for needed, copy in zip(_all_needs(run), _all_needs(other), strict=True):
                shutil.copytree(needed.checkpoint, copy.checkpoint, dirs_exist_ok=True)
            with perturbed(run.seed):
                train_run(other)
            moved = evaluate_run(other)["metrics"].get(metric.name)
            sd = statistics.stdev(values) if len(values) > 1 else math.nan
            value = values[0]
            yield {
                "task": run.task,
                "dataset": run.dataset,
                "method": run.method,
                "metric": metric.name,
                "value": value,
                "perturbed": moved,
                "sd": sd,
                "drift": abs(moved - value) / sd if sd > 0 else (0.0 if moved == value else math.inf),
            }


def _all_needs(run) -> list:  # type: ignore[no-untyped-def,type-arg]
    return [found for needed in run.needs.values() for found in (*_all_needs(needed), needed)]


def main() -> None:
    """Train the perturbed rows and write one line each as CSV."""
    hold_kernels()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", nargs="*", help="task/dataset/method, with * where any will do")
    parser.add_argument("--tier", default="demo")
    options = parser.parse_args()
    table = csv.DictWriter(sys.stdout, FIELDS)
    table.writeheader()
    for line in drifts(options.folder, options.tier, options.rows):
        table.writerow(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
