"""Which of the processor's kernels a study computes with: the same on every x86-64 processor with AVX2, unless told otherwise.

PyTorch, oneDNN, MKL, NumPy and OpenBLAS each look at the processor and choose the kernels that are fastest on it. Those sum in
another order, so the last bits of a number depend on the processor, and a training makes digits of them. Held to one
instruction set (and MKL to the one branch that it promises to be the same on other makers' processors), they no longer choose.

The branch of MKL that all makers share is one for SSE2, and matrix products take two to three times as long in it. Where it is
enough that processors of one maker agree, ``ATLAS_KERNELS=avx2`` lets MKL use AVX2 as well.

Square roots are another matter. PyTorch takes MKL's, and outside MKL's own kernels for Intel these start from the processor's
approximation and are often not the nearest number there is. In both held modes :func:`hold_roots` puts NumPy's in their place.
Pyoperon's roots can't be replaced; the search for equations leaves them out
(:class:`atlas.methods.symbolic_l2o.settings.SRConfig`).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from atlas.errors import UserError

VARIABLE = "ATLAS_KERNELS"
PORTABLE, AVX2, NATIVE = "portable", "avx2", "native"
MAKERS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}

# NumPy names what it must not use, and knows some of these only in some of its versions; it passes over the others
WIDER = "AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V4"
HELD = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": WIDER,
}
# MKL has AVX2 kernels for Intel's processors and others for AMD's: each the same on all processors of its maker
HELD_BY_MAKER = {**HELD, "MKL_CBWR": "AVX2"}
_roots: list[Any] = []  # what holds the square roots; if it went, they would go back


def hold_kernels(environment: MutableMapping[str, str] = os.environ) -> str:
    """Hold this process, and those that it starts, to the kernels that every x86-64 processor with AVX2 has.

    ``ATLAS_KERNELS=avx2`` holds to the same but for MKL's, which are then those of AVX2 for the maker of the processor: matrix
    products are two to three times as fast, and numbers are one set per maker.

    Before PyTorch and NumPy are imported, that is: they look once, and where PyTorch has looked nothing is changed. Whatever
    the environment says of single libraries is replaced, so that numbers do not depend on it; ``ATLAS_KERNELS=native`` leaves
    the choice to the libraries and to the environment. A machine with a GPU of NVIDIA's, or without AVX2, is left alone too:
    its numbers are its own anyway.

    Returns
    -------
    str
        ``portable``, ``avx2`` or ``native``: the mode from now on.

    Raises
    ------
    UserError
        ``ATLAS_KERNELS`` is none of the three.
    """
    wanted = environment.get(VARIABLE, PORTABLE)
    if wanted not in (PORTABLE, AVX2, NATIVE):
        raise UserError(
            f"{VARIABLE} = {wanted}: choose {PORTABLE} (one set of numbers on every x86-64), "
            f"{AVX2} (one set per maker of processors) or {NATIVE} (the fastest)"
        )
    if wanted != NATIVE and "torch" not in sys.modules and _has_avx2() and not _has_cuda():
        environment.update(HELD if wanted == PORTABLE else HELD_BY_MAKER)
    return kernels(environment)


def kernels(environment: MutableMapping[str, str] = os.environ) -> str:
    """The mode that a process with this environment computes in: what every library is held to, or else ``native``."""
    for mode, settings in ((PORTABLE, HELD), (AVX2, HELD_BY_MAKER)):
        if all(environment.get(name) == value for name, value in settings.items()) and _has_avx2():
            return mode
    return NATIVE


def hold_roots() -> None:
    """In a held mode, let ``torch.sqrt`` on the CPU give the nearest number there is, as IEEE 754 asks; do nothing in another.

    PyTorch 2.15 calls MKL's vector functions for it. Where MKL does not take its kernels for Intel, these refine what the
    instruction ``rsqrtps`` approximates, which differs between makers, and on an AMD EPYC a fifth of the roots of float32 are a
    neighbour of the nearest number. Adam divides by such roots. With all libraries held to one instruction set, what was seen to
    depend on the processor still is MKL's sqrt (and with it powers of 0.5, which PyTorch takes as roots), asin, acos, atan, the
    tangent of float64 and the Cholesky factors of float32. Of these, studies take the first alone; a power of 0.5 is in the
    feature ``p2`` of learned rules, which no study has.
    """
    if kernels() == NATIVE or _roots:
        return
    import numpy as np
    import torch

    def root(values: Any) -> Any:
        if not (values.is_floating_point() or values.is_complex()):
            return root(values.to(torch.get_default_dtype()))
        if values.dtype in (torch.float16, torch.bfloat16):
            return root(values.float()).to(values.dtype)
        found = torch.empty_like(values)
        if found.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
            raise NotImplementedError(f"sqrt is not implemented for {found.dtype} on the CPU")
        with np.errstate(invalid="ignore"):  # of a negative number, as elsewhere in PyTorch, not a number
            np.sqrt(values.numpy(force=True), out=found.numpy())
        return found

    def root_into(values: Any, *, out: Any) -> Any:
        found = root(values)
        if not torch.can_cast(found.dtype, out.dtype):
            raise RuntimeError(f"roots of {found.dtype} can't be cast to {out.dtype}")
        if out.shape != found.shape:
            out.resize_(found.shape)
        return out.copy_(found)

    library = torch.library.Library("aten", "IMPL")
    library.impl("sqrt", root, "CPU")
    library.impl("sqrt_", lambda values: root_into(values, out=values), "CPU")
    library.impl("sqrt.out", root_into, "CPU")
    _roots.append(library)


def described() -> str:
    """The mode of this process, and what it depends on: ``portable``, ``avx2 (AMD)``, ``native (AVX512)``."""
    torch, mode = sys.modules.get("torch"), kernels()
    if mode == AVX2:
        return f"{mode} ({MAKERS.get(maker(), maker())})"
    return mode if mode == PORTABLE or torch is None else f"{mode} ({torch.backends.cpu.get_cpu_capability()})"


def maker(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Who made the processor, as it says itself: ``AuthenticAMD``, ``GenuineIntel``, or ``unknown maker``."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "unknown maker")


def _has_avx2(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64") or not cpuinfo.is_file():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return "avx2" in flags.split() and "fma" in flags.split()


def _has_cuda(control: Path = Path("/dev/nvidiactl")) -> bool:
    return control.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
