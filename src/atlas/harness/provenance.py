"""Where a number comes from: code, packages, hardware, data, time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from atlas.harness.kernels import described

PACKAGES = ("torch", "timm", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image", "snakemake")


def provenance(root: Path, device: str) -> dict[str, Any]:
    """Describe the code and the machine that compute a run; nothing in it names a path."""
    return {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", "src", "config")),
        "packages": package_versions(),
        "python": platform.python_version(),
        "hardware": hardware(device),
        "device": device,
        "kernels": described() if device == "cpu" else "",
        "peak_memory_mebibytes": round(peak_memory_mebibytes(device), 1),
    }


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware(device: str) -> str:
    """Name the processor that computes: the GPU's name, or the CPU's with its number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def peak_memory_mebibytes(device: str) -> float:
    """Peak memory of this process in MiB: on the GPU where one computes, else resident."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def cpu_seconds() -> float:
    """CPU time of this process so far, of all its threads and of the processes that it has started and seen end."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _git(root: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
