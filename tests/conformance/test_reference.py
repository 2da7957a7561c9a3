"""Short forms of the demo's rows give the same bits on every x86-64 processor: each machine that runs this proves it or not.

``reference.json`` names the makers of processors on which the digests were seen. On one of those another digest is a fault. On
another maker's it is news, which the test tells without failing: add the maker to the file where all digests agree, and write
down the rows that differ where they do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.harness.kernels import PORTABLE, _has_avx2, _has_cuda

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = json.loads((ROOT / "tests/conformance/reference.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not _has_avx2() or _has_cuda(), reason="the mode is for x86-64 processors with AVX2 and no GPU")
def test_short_runs_have_the_digests_of_other_machines() -> None:
    import torch

    if torch.__version__ != REFERENCE["torch"]:
        pytest.skip(f"the digests are those of torch {REFERENCE['torch']}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.conformance.short_runs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kernels"] == PORTABLE
    assert found["rows"].keys() == REFERENCE["rows"].keys(), "rows came or went: python -m tests.conformance.short_runs --write"
    differ = [row for row, digest in found["rows"].items() if digest != REFERENCE["rows"][row]]
    if differ and found["maker"] not in REFERENCE["makers"]:
        pytest.xfail(f"on {found['maker']} {len(differ)} of {len(found['rows'])} rows have other bits: {', '.join(differ)}")
    assert differ == [], "numbers moved; if they should have: python -m tests.conformance.short_runs --write"
