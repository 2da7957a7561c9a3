"""Short forms of the demo's rows give the same bits on every x86-64 processor: each machine that runs this proves it or not.

``reference.json`` names the makers of processors on which the digests were seen. On one of those another digest is a fault. On
another maker's it is news, which the test tells without failing: add the maker to the file where all digests agree, and write
down the rows that differ where they do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conformance import short_runs

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


def test_no_digest_is_that_of_nothing(tmp_path: Path) -> None:
    assert hashlib.sha256(b"").hexdigest()[:16] not in REFERENCE["rows"].values()
    left = tmp_path / "rule.json"
    run: Any = SimpleNamespace(
        cell="row", weights=tmp_path / "model", history=tmp_path / "curve", declared_metrics=(), checkpoint=tmp_path
    )
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(AssertionError, match="row left nothing to be held to the reference"):
        short_runs.digest(run)
    left.write_text("-m_0")
    assert short_runs.digest(run) == hashlib.sha256(b"-m_0").hexdigest()[:16]


def test_some_rows_are_held_to_the_reference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``make test-intel`` calls: it fails if a digest differs, and if no row was meant at all."""
    row, digest = next(iter(REFERENCE["rows"].items()))
    for found, status, said in (
        ({row: digest}, 0, "1 of 1 rows have the reference's bits\n"),
        ({row: "0" * 16}, 1, f"0 of 1 rows have the reference's bits\n{row}\n"),
        ({}, 1, "0 of 0 rows have the reference's bits\n"),
    ):
        asked: list[list[str]] = []
        monkeypatch.setattr(short_runs, "digests", lambda root, parts, found=found, asked=asked: asked.append(parts) or found)
        monkeypatch.setattr(short_runs, "hold_kernels", lambda: PORTABLE)
        monkeypatch.setattr("torch.__version__", REFERENCE["torch"])
        monkeypatch.setattr(sys, "argv", ["short_runs", "some", "--emulated", "Haswell"])
        assert short_runs.main() == status
        shown = capsys.readouterr()
        assert shown.err == said
        assert json.loads(shown.out)["maker"] == "Haswell"
        assert asked == [["some"]]


@pytest.mark.parametrize(
    ("parts", "found"),
    [([], True), (["deit"], True), (["digits/deit/"], True), (["digits/de/", "uvc"], False), (["uvc", "its/d"], True)],
)
def test_a_part_of_a_name_means_the_rows_that_have_it(parts: list[str], found: bool) -> None:
    assert short_runs.meant("image-classification/digits/deit", parts) is found


def test_digests_of_other_kernels_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(short_runs, "hold_kernels", lambda: "native")
    monkeypatch.setattr(sys, "argv", ["short_runs", "uvc"])
    with pytest.raises(SystemExit, match="2"):
        short_runs.main()
    assert "ATLAS_KERNELS=portable" in capsys.readouterr().err


def test_the_reference_is_not_made_of_some_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["short_runs", "--write", "uvc"])
    with pytest.raises(SystemExit, match="2"):
        short_runs.main()
    assert "--write is for all rows" in capsys.readouterr().err
