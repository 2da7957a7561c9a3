"""Kernels are the same whatever the environment says, unless a person asks for the fastest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.errors import UserError
from atlas.harness import kernels
from atlas.harness.kernels import AVX2, HELD, NATIVE, PORTABLE, hold_kernels
from atlas.harness.seeds import seed_everything

SHOW = """
from atlas.harness.kernels import described, hold_kernels
hold_kernels()
import json, numpy as np, torch
torch.manual_seed(0)
x, w = torch.randn(64, 192), torch.randn(192, 96)
convolved = torch.nn.functional.conv2d(x.view(1, 3, 64, 64), torch.randn(8, 3, 3, 3))
values = (x @ w).softmax(-1).sum(0), torch.linalg.svd(w).S, convolved
a = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
arrays = a @ a, np.exp(a), np.sin(a)
sums = [v.double().sum().item() for v in values] + [float(v.astype(np.float64).sum()) for v in arrays]
print(json.dumps([described(), [value.hex() for value in sums]]))
"""


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor with AVX2 and no GPU, in a process that has not imported PyTorch."""
    monkeypatch.setattr(kernels, "_has_avx2", lambda: True)
    monkeypatch.setattr(kernels, "_has_cuda", lambda: False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return monkeypatch


def test_every_library_is_held_whatever_the_environment_says(plain: pytest.MonkeyPatch) -> None:
    environment = {"ATEN_CPU_CAPABILITY": "default", "HOME": "/home/ada"}
    assert hold_kernels(environment) == PORTABLE
    assert environment == {**HELD, "HOME": "/home/ada"}


def test_avx2_differs_in_mkl_alone_and_names_the_maker(plain: pytest.MonkeyPatch) -> None:
    environment = {"ATLAS_KERNELS": "avx2", "MKL_CBWR": "COMPATIBLE"}
    assert hold_kernels(environment) == AVX2
    assert environment == {**HELD, "MKL_CBWR": "AVX2", "ATLAS_KERNELS": "avx2"}
    for name, value in environment.items():
        plain.setenv(name, value)
    for maker, shown in (("AuthenticAMD", "avx2 (AMD)"), ("GenuineIntel", "avx2 (Intel)"), ("Hygon", "avx2 (Hygon)")):
        plain.setattr(kernels, "maker", lambda found=maker: found)
        assert kernels.described() == shown


def test_a_process_that_is_held_by_hand_is_called_what_it_is(plain: pytest.MonkeyPatch) -> None:
    held = {"ATLAS_KERNELS": "native", **HELD}
    assert hold_kernels(held) == PORTABLE
    assert hold_kernels({**held, "MKL_CBWR": "AVX2"}) == AVX2
    assert hold_kernels({**held, "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Zen"}) == NATIVE


@pytest.mark.parametrize(
    ("text", "found"), [("vendor_id\t: GenuineIntel\nflags\t: fma\n", "GenuineIntel"), ("flags\t: fma\n", "unknown maker")]
)
def test_the_maker_is_read_from_what_the_system_says(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert kernels.maker(tmp_path / "cpuinfo") == found
    assert kernels.maker(tmp_path / "none") == "unknown maker"


def test_native_leaves_the_environment_alone(plain: pytest.MonkeyPatch) -> None:
    environment = {"ATLAS_KERNELS": "native", "MKL_CBWR": "AVX2"}
    assert hold_kernels(environment) == NATIVE
    assert environment == {"ATLAS_KERNELS": "native", "MKL_CBWR": "AVX2"}


@pytest.mark.parametrize("fact", ["_has_avx2", "_has_cuda"])
def test_where_kernels_cannot_be_shared_nothing_is_held(plain: pytest.MonkeyPatch, fact: str) -> None:
    plain.setattr(kernels, fact, lambda: fact == "_has_cuda")
    environment: dict[str, str] = {}
    assert hold_kernels(environment) == NATIVE
    assert environment == {}


def test_after_torch_was_imported_nothing_is_claimed(plain: pytest.MonkeyPatch) -> None:
    plain.setitem(sys.modules, "torch", object())
    environment: dict[str, str] = {}
    assert hold_kernels(environment) == NATIVE
    assert environment == {}


def test_another_mode_is_refused() -> None:
    with pytest.raises(UserError, match="ATLAS_KERNELS = fast: choose portable .*, avx2 .* or native"):
        hold_kernels({"ATLAS_KERNELS": "fast"})


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("flags\t\t: fpu fma avx2 bmi2\n", True),
        ("flags\t\t: fpu avx fma\n", False),
        ("flags\t\t: fpu avx2\n", False),
        ("", False),
    ],
)
def test_processors_without_avx2_and_fma_are_known(
    text: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(text)
    assert kernels._has_avx2(tmp_path / "cpuinfo") is there


ROOTS = """
import json
from atlas.harness.kernels import hold_kernels, hold_roots
mode = hold_kernels()
import numpy as np, torch
if mode == "portable":
    hold_roots(); hold_roots()
values = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 4
values[:4] = torch.tensor([0.0, -0.0, float("inf"), -1.0])
with np.errstate(invalid="ignore"):
    exact = np.sqrt(values.double().numpy())
found, wanted = {}, exact.astype(np.float32)
def same(name, values, wanted=wanted):
    found[name] = bool(np.array_equal(np.asarray(values.detach(), dtype=wanted.dtype), wanted, equal_nan=True))
same("new", values.sqrt())
same("float64", values.double().sqrt(), exact)
same("in place", values.clone().sqrt_())
same("into", torch.sqrt(values, out=torch.empty(0)))
same("slices", values.repeat_interleave(2)[::2].sqrt())
same("foreach", torch._foreach_sqrt([values])[0])
same("mapped", torch.func.vmap(torch.sqrt)(values.view(4, 500)).flatten())
same("halves", values.bfloat16().sqrt().float(), values.bfloat16().float().sqrt().bfloat16().float().numpy())
same("integers", torch.tensor([4, 9]).sqrt(), np.array([2, 3], np.float32))
same("complex", torch.tensor([-1.0 + 0j]).sqrt(), np.array([1j], np.complex64))
same("none", torch.empty(0, 3).sqrt(), np.empty((0, 3), np.float32))
same("number", torch.tensor(4.0).sqrt(), np.float32(2))
some, roots = values[4:], wanted[4:]
weight = some.clone().requires_grad_()
weight.sqrt().sum().backward()
same("gradient", weight.grad, 1 / (2 * roots))
weight.grad = some - 1
torch.optim.Adam([weight], lr=0.5, foreach=True).step()
moment = torch.zeros_like(some).addcmul_(weight.grad, weight.grad, value=1 - 0.999)
with np.errstate(invalid="ignore"):
    deviation = torch.from_numpy(np.sqrt(moment.numpy())) / (1 - 0.999) ** 0.5 + 1e-8
mean = torch.zeros_like(some).lerp_(weight.grad, 1 - 0.9)
same("adam", weight, some.addcdiv(mean, deviation, value=-0.5 / (1 - 0.9)).numpy())
for name, tensor in (("turned", values.view(40, 50).T), ("expanded", values[:15].view(1, 5, 3).expand(4, 5, 3).permute(2, 0, 1))):
    found[f"strides, {name}"] = tensor.sqrt().stride() == tensor.exp().stride()
for name, call in (
    ("integers in place", lambda: torch.tensor([5]).sqrt_()),
    ("integers asked for", lambda: torch.sqrt(values, out=torch.empty(0, dtype=torch.int64))),
    ("real asked for", lambda: torch.sqrt(torch.tensor([-1j]), out=torch.empty(0))),
):
    try:
        call()
        found[name] = False
    except RuntimeError as error:
        found[name] = "can't be cast" in str(error)
print(json.dumps([mode, found]))
"""


@pytest.mark.skipif(not kernels._has_avx2() or kernels._has_cuda(), reason="no x86-64 processor with AVX2 alone")
def test_square_roots_are_the_nearest_numbers() -> None:
    """PyTorch's own are not, one in five, and which are not depends on the maker of the processor."""
    import os

    environment = {**os.environ, "ATLAS_KERNELS": "portable"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-W", "error::RuntimeWarning", "-c", ROOTS],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    mode, found = json.loads(done.stdout)
    assert mode == PORTABLE
    assert [name for name, same in found.items() if not same] == []


def test_what_seeds_a_run_holds_its_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr("atlas.harness.seeds.hold_roots", lambda: called.append(True))
    seed_everything(0)
    assert called == [True]


def test_outside_the_held_modes_square_roots_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "kernels", lambda: NATIVE)
    monkeypatch.setattr(kernels, "_roots", [])
    kernels.hold_roots()
    assert kernels._roots == []


@pytest.mark.slow
@pytest.mark.skipif(not kernels._has_avx2(), reason="no x86-64 processor with AVX2")
def test_numbers_do_not_depend_on_what_the_environment_allows() -> None:
    """Matrix products, decompositions, convolutions and elementary functions, of PyTorch and of NumPy."""
    import os

    seen = {}
    for capability in ("default", "avx2", "avx512"):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "CUDA_VISIBLE_DEVICES": "", "ATLAS_KERNELS": "portable"}
        done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
        seen[capability] = json.loads(done.stdout)
    assert seen["default"][0] == PORTABLE
    assert seen["default"] == seen["avx2"] == seen["avx512"]
