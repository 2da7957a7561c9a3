"""What is said of the machine that computed a number."""

from __future__ import annotations

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from atlas.harness.provenance import cpu_seconds, hardware, package_versions, peak_memory_mebibytes


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
    assert hardware("cpu").endswith(" cores")
    assert torch.__version__.startswith(package_versions()["torch"])


def test_time_is_that_of_all_threads() -> None:
    before = cpu_seconds()
    while cpu_seconds() < before + 0.05:
        sum(range(1000))
    assert cpu_seconds() - before < 5
