"""Train a short form of every row of the demo study, in one process and the mode that studies have, and print its digest.

``python -m tests.conformance.short_runs`` in the checkout; with ``--write`` the digests become the reference in reference.json.
With parts of rows' names (``uvc-b35 synth/``) only those rows are trained, and a row whose digest is not the reference's
ends it with exit status 1. That is for processors that are not at hand: ``make test-intel`` runs it under an emulated one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from atlas.harness.kernels import PORTABLE, described, hold_kernels, maker

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "reference.json"


def digest(run) -> str:  # type: ignore[no-untyped-def]
    """Of a run's weights, of its curves, and of every metric that is no time; of one without these, of all that it left."""
    from atlas.harness.execute import evaluate_run

    parts = [path.read_bytes() for path in (run.weights, run.history) if path.is_file()]
    if run.declared_metrics:
        parts.append(json.dumps(evaluate_run(run)["metrics"], sort_keys=True).encode())
    if not parts:  # a scene, records of an optimizer, an equation
        parts = [path.read_bytes() for path in sorted(run.checkpoint.iterdir()) if path.name != "settings.json"]
    if not parts:
        raise AssertionError(f"{run.cell} left nothing to be held to the reference")
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def meant(row: str, parts: Sequence[str]) -> bool:
    """Whether one of the parts occurs in a row's name, which ends with a slash for that; every row, without parts."""
    return not parts or any(part in f"{row}/" for part in parts)


def digests(root: Path, parts: Sequence[str] = ()) -> dict[str, str]:
    """Row of the demo study to the digest of its first seed, trained as shortly as its entries say it can be.

    With parts, only rows in whose name one of them occurs.
    """
    from tests.conformance.test_methods import shortest, train_with_needs

    from atlas.datasets import acquire
    from atlas.study import Study

    study = Study.read("demo", HERE.parents[1])
    for name in study.datasets:
        acquire(name, root=root / "data", mirror=None)
    found = {}
    for run in study.runs:
        row = f"{run.task}/{run.dataset}/{run.method}"
        if run.seed == study.seeds[0] and meant(row, parts):
            short = shortest(run, root)
            train_with_needs(short)
            found[row] = digest(short)
            print(row, found[row], file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Print the digests as JSON; write them down, or hold some rows to the reference, if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="hold rows with one of these in their name to the reference")
    parser.add_argument("--write", action="store_true", help="make all rows' digests the reference")
    parser.add_argument("--emulated", help="what is emulated, as which the system does not show itself")
    asked = parser.parse_args()
    if asked.write and (asked.parts or asked.emulated):
        parser.error("--write is for all rows on a real processor: leave the rest out")
    if hold_kernels() != PORTABLE:
        parser.error("the reference is of ATLAS_KERNELS=portable, on an x86-64 processor with AVX2 and without a GPU")
    reference = json.loads(REFERENCE.read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = digests(Path(folder), asked.parts)
    import torch

    if asked.parts and torch.__version__ != reference["torch"]:
        parser.error(f"the reference is of torch {reference['torch']}, this is {torch.__version__}")
    content = {"maker": asked.emulated or maker(), "kernels": described(), "torch": torch.__version__, "rows": found}
    if asked.write:
        written = {"torch": torch.__version__, "makers": [maker()], "rows": found}
        REFERENCE.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(content))
    if asked.parts:
        differ = [row for row, each in found.items() if each != reference["rows"].get(row)]
        print(f"{len(found) - len(differ)} of {len(found)} rows have the reference's bits", *differ, sep="\n", file=sys.stderr)
        return 0 if found and not differ else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
