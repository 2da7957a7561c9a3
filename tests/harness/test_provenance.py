"""What is said of the machine that computed a number."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atlas.harness.kernels import described
from atlas.harness.provenance import cpu_seconds, hardware, package_versions, peak_memory_mebibytes, provenance


def test_peak_memory_is_told_in_mebibytes_whatever_the_system_counts_in(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"linux": 3 * 2**10, "darwin": 3 * 2**20}
    for system, peak in peaks.items():
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(resource, "getrusage", lambda who, peak=peak: SimpleNamespace(ru_maxrss=peak))
        assert peak_memory_mebibytes("cpu") == 3
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**20)
    assert peak_memory_mebibytes("cuda:0") == 5


def test_the_processor_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert hardware("cuda") == "Some GPU"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    assert not models or hardware("cpu") == f"{models[0]}, {os.cpu_count()} cores"
    assert hardware("cpu").endswith(" cores")
    assert torch.__version__.startswith(package_versions()["torch"])


def test_code_and_machine_of_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        return subprocess.run(
            ["git", *identity, *command], check=True, cwd=tmp_path, capture_output=True, text=True
        ).stdout.strip()

    assert (provenance(tmp_path, "cpu")["git_commit"], provenance(tmp_path, "cpu")["git_dirty"]) == (None, False)
    (tmp_path / "src").mkdir()
    for path in ("src/code.py", "README.md"):
        (tmp_path / path).write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    (tmp_path / "README.md").write_text("2")
    (tmp_path / "src/new.py").write_text("1")
    told = provenance(tmp_path, "cpu")
    assert (told["git_commit"], told["git_dirty"]) == (git("rev-parse", "HEAD"), False), (
        "neither text nor a new file is code that ran"
    )
    assert (told["python"], told["device"], told["hardware"]) == (platform.python_version(), "cpu", hardware("cpu"))
    assert told["packages"] == package_versions()
    assert told["kernels"] == described() != ""
    assert told["peak_memory_mebibytes"] > 10
    (tmp_path / "src/code.py").write_text("2")
    assert provenance(tmp_path, "cpu")["git_dirty"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5.04 * 2**20)
    told = provenance(tmp_path, "cuda")
    assert (told["hardware"], told["kernels"], told["peak_memory_mebibytes"]) == ("Some GPU", "", 5.0)


def test_time_is_that_of_all_threads() -> None:
    before = cpu_seconds()
    while cpu_seconds() < before + 0.05:
        sum(range(1000))
    assert cpu_seconds() - before < 5
