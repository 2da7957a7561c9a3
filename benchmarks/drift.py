"""How far trainings drift apart that differ by one rounding part: every row of a study, twice, in one mode on one machine.

Theory: a training is a map of weights to weights. Where it contracts, two starts that differ by 1e-7 of every weight end
alike to five or six digits; where it is chaotic the difference grows by a factor per step, is of the order of the weights
after some hundred steps, and the end says as much about rounding as another seed would. So the drift of a metric is told in
units of its standard deviation over seeds: far below 1, bits do not matter to a verdict; near 1, a row has no more digits than
its seeds show, and only the same kernels give the same numbers.

Every optimizer that a training makes, PyTorch's or one of ours for models side by side, has its parameters multiplied by
1 + 1e-7 · N(0, 1) as it takes them over; nothing else changes. The column `weights` counts them. Rows that have none (counts,
formulas, optimizers made by hand) have no drift to show.

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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from atlas.harness.kernels import hold_kernels

if TYPE_CHECKING:
    from torch import Tensor

FIELDS = ("task", "dataset", "method", "metric", "value", "perturbed", "sd", "drift", "weights")


@dataclass
class Noise:
    """Multiplies weights by 1 + ``size`` · N(0, 1), and counts them."""

    seed: int
    size: float = 1e-7
    weights: int = 0

    def __post_init__(self) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(self.seed)

    def on(self, tensors: Iterable[Tensor]) -> None:
        """Change floating-point tensors of any shape in place."""
        import torch

        with torch.no_grad():
            for tensor in tensors:
                if tensor.is_floating_point():
                    draw = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float64)
                    tensor.mul_((1 + self.size * draw).to(tensor.dtype))
                    self.weights += tensor.numel()


@contextmanager
def perturbed(seed: int) -> Iterator[Noise]:
    """While it lasts, parameters change by a rounding part as an optimizer takes them over."""
    import torch

    from atlas.methods.optimizer_amalgamation.descent import StackedAdam
    from atlas.tasks.feature_acquisition.optimizers import StackedOptimizer

    noise = Noise(seed)
    add = torch.optim.Optimizer.add_param_group
    stacked, replicates = StackedOptimizer.__init__, StackedAdam.__init__

    def add_param_group(self: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        add(self, group)
        noise.on(self.param_groups[-1]["params"])

    def of_models(self: StackedOptimizer, *arguments: Any, **options: Any) -> None:
        stacked(self, *arguments, **options)
        noise.on(self.parameters)

    def of_replicates(self: StackedAdam, *arguments: Any, **options: Any) -> None:
        replicates(self, *arguments, **options)
        noise.on(self.parameters.values())

    with (
        patch.object(torch.optim.Optimizer, "add_param_group", add_param_group),
        patch.object(StackedOptimizer, "__init__", of_models),
        patch.object(StackedAdam, "__init__", of_replicates),
    ):
        yield noise


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
            with perturbed(run.seed) as noise:
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
                "drift": _drift(abs(moved - value), sd) if noise.weights else "",
                "weights": noise.weights,
            }


def _drift(moved: float, sd: float) -> float:
    return moved / sd if sd > 0 else (math.inf if moved else 0.0)


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
