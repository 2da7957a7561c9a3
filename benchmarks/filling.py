"""What becomes of a search that closed more blocks than its budget asks for: three ways, judged on held-out training images.

UVC's gates decide whole blocks, so that a search may end far below its budget. ``none`` leaves it there; ``together`` brings the
best closed blocks back and removes units from all blocks until the budget holds; ``room`` brings them back only as far as there
is room, and blocks that the search kept give nothing up (:func:`atlas.methods.uvc.fill_blocks`, the one that is used). The rows
and settings are the demo's; seeds are 0 to 9, which no study has, and 20 % of the training images are held out. All three ways
share the seed's dense network, and repeat the same search.

    python -m benchmarks.filling DATA --output results/performance/filling.csv
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from benchmarks.tuning import HELD_OUT, Plan, base, held_out_error, trial

from atlas.harness.kernels import hold_kernels

ROWS = ("uvc-b52", "uvc-b35")
FIELDS = ("row", "way", "seed", "error", "blocks_searched", "blocks", "macs_searched", "macs")


def together(plan: Any, shape: Any, scores: Any, budget: float, slack: float = 0.01) -> Any:
    """Bring closed blocks back until the budget is used, and prune all that are kept to it."""
    import torch

    from atlas.methods.uvc import fit_to_budget

    fitted = fit_to_budget(plan, shape, scores, budget)
    wider = plan.copy()
    wider.keep = fitted.keep.clone()
    while budget - fitted.r_phys(shape) > slack and not bool(wider.keep.all()):
        wider.keep[scores.blocks.cpu().masked_fill(wider.keep, -torch.inf).argmax()] = True
        fitted = fit_to_budget(wider, shape, scores, budget)
    return fitted


def noting(way: Callable[..., Any], seen: list[tuple[Any, ...]]) -> Callable[..., Any]:
    """Return the way; each call adds blocks and cost of the plan before and after to ``seen``."""
    from atlas.methods.uvc import fit_to_budget

    def settled(plan: Any, shape: Any, scores: Any, budget: float) -> Any:
        searched, found = fit_to_budget(plan, shape, scores, budget), way(plan, shape, scores, budget)
        costs = (f"{each.r_phys(shape):.4f}" for each in (searched, found))
        seen.append((int(searched.keep.sum()), int(found.keep.sum()), *costs))
        return found

    return settled


def main() -> None:
    """Train, judge, write the table, and print the mean error of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with the study's data")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="where the table goes (default: nowhere)")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help="of the demo's digits-compressed (default: both)")
    options = parser.parse_args()
    from atlas.methods.uvc import fill_blocks, fit_to_budget

    hold_kernels()
    ways: dict[str, Callable[..., Any]] = {"none": fit_to_budget, "together": together, "room": fill_blocks}
    table: list[tuple[Any, ...]] = []
    for row in options.rows:
        plan = Plan(f"image-classification/digits-compressed/{row}", score=held_out_error, seeds=tuple(range(10)))
        with tempfile.TemporaryDirectory() as folder:
            runs = base(plan, HELD_OUT[0], Path(folder) / "base", options.data)
            for name, way in ways.items():
                seen: list[tuple[Any, ...]] = []
                with patch("atlas.methods.uvc.compression.fill_blocks", noting(way, seen)):
                    errors = trial(plan, {}, runs)
                judged = zip(plan.seeds, errors, seen, strict=True)
                table += [(row, name, seed, f"{error:.5f}", *told) for seed, error, told in judged]
                print(f"{row:8} {name:8} error {mean(errors):.4f}  {' '.join(f'{error:.3f}' for error in errors)}", flush=True)
    if options.output:
        with options.output.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([FIELDS, *table])


if __name__ == "__main__":
    main()
