"""Every row of the paper study's rehearsal against a formula: operations by layer sizes and by the protocol, nothing else.

    python -m benchmarks.rehearsal_formulas

compares ``results/paper/rehearsal.csv`` with :mod:`benchmarks.formulas`, writes ``results/paper/rehearsal-check.csv``, and fails
where a row has none, or is off by more than 2 %.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.formulas.backbones import mixed_maps, talking_heads, tokens_to_tokens, windows
from benchmarks.formulas.convnets import adversarial, cost_table
from benchmarks.formulas.detectors import least, most
from benchmarks.formulas.federations import budgets_rehearsed, federated, trained_image
from benchmarks.formulas.fields import view_synthesis
from benchmarks.formulas.hierarchical import counted, grown, ranked, searched, trained_as_vit
from benchmarks.formulas.optimizers import learned
from benchmarks.formulas.recurrences import recurrent
from benchmarks.formulas.transformers import compressed, dense_vit, sparse_from_start, timed, tokens_masked

from atlas.study import Run, Study

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results/paper"
CLOSE = 0.02

# which formula belongs to which row

Formula = Callable[[Run], float]


def nothing(run: Run) -> float:
    """Of a row that trains nothing, or whose work multiplies no matrices."""
    return 0.0


ROWS: list[tuple[str, str, Formula]] = [
    ("image-classification/compression-latency", "", timed),
    ("image-classification/imagenet-compressed-t2t/", "", tokens_to_tokens),
    ("image-classification/imagenet-compressed", "deit", dense_vit),
    ("image-classification/imagenet-compressed", "s2vite", sparse_from_start),
    ("image-classification/imagenet-compressed", "dynamic-vit", tokens_masked),
    ("image-classification/imagenet-compressed", "", compressed),
    ("image-classification/imagenet-as-vit-ranking", "", ranked),
    ("image-classification/imagenet-as-vit/", "as-vit-search", searched),
    ("image-classification/imagenet-as-vit/", "as-vit-growth", grown),
    ("image-classification/imagenet-as-vit/", "deit", dense_vit),
    ("image-classification/imagenet-as-vit/", "", trained_as_vit),
    ("image-classification/imagenet-cait/", "", talking_heads),
    ("image-classification/imagenet-swin/", "", windows),
    ("image-classification/imagenet-mixed", "reattention", mixed_maps),
    ("image-classification/design-cost/", "", counted),
    ("image-classification/imagenet", "", dense_vit),
    ("feature-acquisition/", "", recurrent),
    ("adversarial-robustness/cost-table/", "", cost_table),
    ("adversarial-robustness/", "", adversarial),
    ("federated-learning/networks/", "", nothing),
    ("federated-learning/domainnet", "", trained_image),
    ("federated-learning/", "", federated),
    ("novel-view-synthesis/", "encoder", nothing),
    ("novel-view-synthesis/", "dibr", nothing),
    ("novel-view-synthesis/dtu-scan4/", "scene", nothing),
    ("novel-view-synthesis/", "", view_synthesis),
    ("learned-optimization/", "", learned),
    ("object-detection/", "", most),
]
"""Beginning of a row's name, and its first method or any: the first that fits counts."""

PER_IMAGE = (trained_image,)
"""Formulas of one example, where the number of examples is not known before they are there."""
BUDGETS = "rehearsed with as many clients of each budget, at {:+.2%}; those of the study have each as often as they can"
ATTACKED = "rehearsed with both images of a batch attacked, at {:+.2%}; in the study a share of them is not"

REGIONS = "at most; {:.6g} if no region held an object"


class Check(NamedTuple):
    """A row's operations as metered and by the formula.

    Attributes
    ----------
    of : str
        What both are of: the whole ``run``, or one ``example`` of its training loop.
    expected : float
        Metered over formula as it must be: 1 unless the rehearsal is known to differ from the study, which ``note`` explains.
    least : float or None
        Where the work depends on the data, the formula of the least of it; ``formula`` is then that of the most.
    """

    row: str
    of: str
    metered: float
    formula: float
    expected: float = 1.0
    note: str = ""
    least: float | None = None

    @property
    def ratio(self) -> float:
        """Metered over formula; 1 where both are nothing."""
        return self.metered / self.formula if self.formula else math.inf if self.metered else 1.0

    @property
    def is_close(self) -> bool:
        """Whether both agree within 2 %."""
        if self.least is not None:
            return self.least * (1 - CLOSE) <= self.metered <= self.formula * (1 + CLOSE)
        return abs(self.ratio / self.expected - 1) <= CLOSE


def rule_of(run: Run) -> Formula:
    """The formula of a row."""
    return next(rule for start, method, rule in ROWS if run.cell.startswith(start) and method in ("", run.recipe[0]))


def check(run: Run, metered: Mapping[str, str]) -> Check:
    """Hold a line of the rehearsal's table against its formula."""
    rule = rule_of(run)
    of, column = ("example", "example_flops") if rule in PER_IMAGE else ("run", "flops")
    found = Check(run.cell.rpartition("/")[0], of, float(metered[column] or "nan"), rule(run))
    if run.task == "object-detection":
        low = least(run)
        return found._replace(least=low, note=REGIONS.format(low))
    if run.task == "federated-learning" and run.recipe[0] in (
        "heterofl",
        "sheterofl",
        "split-mix",
        "split-mix-dat",
        "fedavg-oat",
    ):
        expected = budgets_rehearsed(run)
        text = ATTACKED if run.recipe[0] == "fedavg-oat" else BUDGETS
        return found._replace(expected=expected, note=text.format(expected - 1) if abs(expected - 1) > CLOSE / 4 else "")
    return found


def checks(study: Study) -> list[Check]:
    """Every row of the study that has been rehearsed."""
    with (RESULTS / "rehearsal.csv").open() as file:
        metered = {row["run"]: row for row in csv.DictReader(file)}
    runs = {runs[0].cell.rpartition("/")[0]: runs[0] for runs in study.by_row.values()}
    return [check(runs[name], row) for name, row in metered.items()]


def table(found: list[Check]) -> str:
    """The comparison as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "of", "metered", "formula", "ratio", "note"])
    for one in found:
        writer.writerow([one.row, one.of, f"{one.metered:.6g}", f"{one.formula:.6g}", f"{one.ratio:.4f}", one.note])
    return stream.getvalue()


def main() -> int:
    """Write the table, print what is off, and return the exit status."""
    found = checks(Study.read("paper", ROOT))
    (RESULTS / "rehearsal-check.csv").write_text(table(found))
    off = [one for one in found if not one.is_close]
    for one in off:
        print(f"{one.row}: metered {one.metered:.4g}, formula {one.formula:.4g}, ratio {one.ratio:.4f}")
    exact = [one for one in found if one.is_close and one.least is None]
    farthest = max((abs(one.ratio / one.expected - 1) for one in exact), default=math.nan)
    print(f"{len(found)} rows; {len(off)} are off, the others by {farthest:.1%} at most")
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
