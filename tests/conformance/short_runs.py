"""Train a short form of every row of the demo study, in one process and the mode that studies have, and print its digest.

``python -m tests.conformance.short_runs`` in the checkout; with ``--write`` the digests become the reference in reference.json.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

from atlas.harness.kernels import described, hold_kernels

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "reference.json"


def maker() -> str:
    """Who made the processor: ``AuthenticAMD`` or ``GenuineIntel``."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), platform.processor())


def digest(run) -> str:  # type: ignore[no-untyped-def]
    """Of a run's weights, of its curves, and of every metric that is no time."""
    from atlas.harness.execute import evaluate_run

    content = hashlib.sha256()
    for path in (run.weights, run.history):
        if path.is_file():
            content.update(path.read_bytes())
    if run.declared_metrics:
        content.update(json.dumps(evaluate_run(run)["metrics"], sort_keys=True).encode())
    return content.hexdigest()[:16]


def digests(root: Path) -> dict[str, str]:
    """Row of the demo study to the digest of its first seed, trained as shortly as its entries say it can be."""
    from tests.conformance.test_methods import shortest, train_with_needs

    from atlas.datasets import acquire
    from atlas.study import Study

    study = Study.read("demo", HERE.parents[1])
    for name in study.datasets:
        acquire(name, root=root / "data", mirror=None)
    found = {}
    for run in study.runs:
        row = f"{run.task}/{run.dataset}/{run.method}"
        if run.seed == study.seeds[0]:
            short = shortest(run, root)
            train_with_needs(short)
            found[row] = digest(short)
            print(row, found[row], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the digests as JSON, and write them down if asked to."""
    hold_kernels()
    with tempfile.TemporaryDirectory() as folder:
        found = digests(Path(folder))
    import torch

    content = {"maker": maker(), "kernels": described(), "torch": torch.__version__, "rows": found}
    if "--write" in sys.argv:
        written = {"torch": torch.__version__, "makers": [maker()], "rows": found}
        REFERENCE.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(content))


if __name__ == "__main__":
    main()
