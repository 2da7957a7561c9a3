"""Seeds and devices: every random draw of a run follows from its seed, on the device that the machine offers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atlas.datasets.splits import SPLIT_SEED, TestSplit
from atlas.errors import UserError
from atlas.harness.kernels import hold_roots
from atlas.nn.ranks import here

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, independent of the seeds of other purposes.

    Examples
    --------
    >>> derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator of its own for one purpose of a run."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


@contextmanager
def drawing(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Let the process's own generators draw for one purpose of a run while the block runs, and go on as before after it.

    They are those of the CPU and of ``device``. For libraries that take no generator.
    """
    import torch

    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, *purpose))
        yield


def split_seed(split: TestSplit, seed: int) -> int:
    """Seed of the split that a run tests on: the same for all runs (``shared``), or the run's own (``per-seed``)."""
    return SPLIT_SEED if split == "shared" else derive_seed(seed, "test split")


def seed_everything(seed: int, threads: int = 1) -> None:
    """Seed every global generator, ask for deterministic kernels, hold the square roots, and fix the number of threads.

    Sums in another order give other last digits, so the number of threads is part of what is reproduced.
    """
    import numpy as np
    import torch

    hold_roots()
    torch.set_num_threads(threads)
    # what torch.use_deterministic_algorithms does, without importing its compiler: three seconds of every process
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - a property that mypy cannot see
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below us still draw from it
    random.seed(seed)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on: CUDA, else Apple's MPS, else the CPU; or the one that is named.

    One of several ranks that train a run has been given a device of its own.

    Raises
    ------
    UserError
        The named device is none that torch knows, or is not there.
    """
    import torch

    given = here().device()
    if given is not None:
        return given
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"resources.device = {name}: {reason}; choose auto, cpu, cuda or mps") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
