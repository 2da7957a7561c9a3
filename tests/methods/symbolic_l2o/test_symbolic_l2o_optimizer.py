"""Rules as policies and as torch optimizers: the same numbers, whichever way they are computed."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode

from atlas.l2o import Features, LearnedOptimizer, MetaConfig, quadratic
from atlas.methods.symbolic_l2o import (
    ExpressionRule,
    InterpolationRule,
    PolynomialRule,
    Rule,
    SymbolicOptimizer,
    SymbolicPolicy,
    TanhTemplate,
    meta_tune,
    parse,
)
from atlas.methods.symbolic_l2o.eager import quick_tanh
from atlas.methods.symbolic_l2o.optimizer import _own_code
from atlas.methods.symbolic_l2o.program import Program
from atlas.methods.symbolic_l2o.rules import adam_like, column_names

FEATURES = ("m", "g", "n", "ema0.9", "p2.5", "d", "mhat", "mom", "grad", "time")
RULE = (
    "greater(m_0, 0.1)*0.01 - 0.5*tanh(2*m_0) - 0.2*g_0 + 0.1*tanh(g_3)*m_7 + 0.05*aq(n_1, ema0.9_2) - 0.01*p2.5_0*d_0 "
    "+ 0.1*mhat_1 - mom_0*0.3 + square(grad_2)*0.01 - asinh(time_0) * erfc(m_0) + relu(g_0)*0.1"
)


def trained(make: Callable[[Any], torch.optim.Optimizer], steps: int = 30, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    optimizer = make(net.parameters())
    x = torch.randn(32, 8, dtype=dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("eps", [1e-12, 1e-8, 0.1])
def test_adam_entered_by_hand_is_adam_step_for_step(foreach: bool, eps: float) -> None:
    options: dict[str, Any] = {"betas": (0.9, 0.999), "clamp": None, "foreach": foreach, "eps": eps}
    ours = trained(lambda p: SymbolicOptimizer(p, "-m_0", lr=0.01, **options), 100)
    theirs = trained(lambda p: torch.optim.Adam(p, lr=0.01, eps=eps), 100)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_rule_file_is_named_by_a_string_and_brings_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    content = {"expression": "-ema0.9_11", "lr": 0.2, "features": ["ema0.9"], "lags": 12}
    Path("rules/rule.json").write_text(json.dumps(content))
    parameters = [nn.Parameter(torch.ones(2))]
    optimizer = SymbolicOptimizer(parameters, "rules/rule.json")
    assert repr(optimizer) == "SymbolicOptimizer(neg(ema0.9_11), lr=0.2)"
    assert SymbolicOptimizer(parameters, Path("rules/rule.json"), lr=0.5).param_groups[0]["lr"] == 0.5
    Path("rule.txt").write_text("-m_0\n")
    assert repr(SymbolicOptimizer(parameters, "rule.txt")) == "SymbolicOptimizer(neg(m_0), lr=0.01)"
    with pytest.raises(ValueError, match=r"there is no file rules/rul\.json to read a rule from"):
        SymbolicOptimizer(parameters, "rules/rul.json")
    Path("broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        SymbolicOptimizer(parameters, "broken.json")


def test_weight_decay_is_that_of_adamw() -> None:
    ours = trained(lambda p: SymbolicOptimizer(p, "-m_0", lr=0.01, betas=(0.9, 0.999), clamp=None, weight_decay=0.1))
    theirs = trained(lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-12, weight_decay=0.1))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_blocks_foreach_and_policy_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES))
    foreach = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES, foreach=True))
    policy = SymbolicPolicy(ExpressionRule(RULE, FEATURES, 10).double())
    functional = trained(lambda p: LearnedOptimizer(p, policy))
    monkeypatch.setattr("atlas.methods.symbolic_l2o.optimizer.BLOCK", 7)
    blocks = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES))
    assert torch.allclose(whole, blocks, rtol=0, atol=1e-12)  # the ends of a block may be rounded another way
    assert torch.allclose(whole, foreach, rtol=0, atol=1e-12)
    assert torch.allclose(whole, functional, rtol=0, atol=1e-7)  # the policy holds its constants in float32


class Counting(TorchDispatchMode):
    """How many numbers each operation has been asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
        self.numbers[func.overloadpacket.__name__.strip("_").removeprefix("foreach_")] += sum(
            value.numel() for value in given if isinstance(value, torch.Tensor)
        )
        return func(*args, **(kwargs or {}))


def plainly(rule: str, gradients: torch.Tensor, lags: int) -> torch.Tensor:
    """What the moment m̃ of gradients (steps, n) lets a rule add in all, written down, in float64."""
    history = [torch.zeros(gradients.shape[1], dtype=torch.float64)] * lags
    mean = square = total = torch.zeros(gradients.shape[1], dtype=torch.float64)
    for step, gradient in enumerate(gradients, 1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        history = [mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8), *history[:-1]]
        env = {f"m_{lag}": value.numpy() for lag, value in enumerate(history)}
        total = total + 0.01 * torch.from_numpy(parse(rule).numpy({name: env[name] for name in parse(rule).variables}))
    return total


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("rule", "tanhs"),
    [
        ("-tanh(0.5*m_0) - 0.3*tanh(0.5*m_2) - 0.1*tanh(0.5*m_6)", 1),
        ("-0.3*tanh(0.5*m_2) + 0.2*tanh(0.5*m_4)", 1),  # of the present value too, for the steps to come
        ("-tanh(0.5*m_0) - 0.3*tanh(2*m_2) - 0.1*tanh(2*m_6)", 2),
        ("-0.3*tanh(0.5*m_2) - 0.1*tanh(0.4*m_6)", 2),  # of the past, one thing and another
        ("-0.3*tanh(0.5*m_2) - 0.1*m_6", 1),
        ("-0.3*tanh(m_2)*m_3 - tanh(m_3)", 2),
        ("-exp(0 - abs(m_3))*m_0 - tanh(exp(0 - abs(m_1)))", 1),  # of what was before the first step it makes 1
    ],
)
def test_what_is_made_of_the_past_is_made_once(rule: str, tanhs: int, foreach: bool) -> None:
    gradients = torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.zeros(9, dtype=torch.float64))
    optimizer = SymbolicOptimizer([parameter], rule, betas=(0.9, 0.999), clamp=None, eps=1e-8, foreach=foreach)
    for step, gradient in enumerate(gradients):
        parameter.grad = gradient
        with Counting() as counted:
            optimizer.step()
        assert step == 0 or counted.numbers["tanh"] == 9 * tanhs  # the first step makes the state as well
    assert torch.allclose(parameter.detach(), plainly(rule, gradients, 8), rtol=0, atol=1e-12)
    rows = sum(memory.shape[0] for memory in optimizer.state[parameter]["history"].values())
    assert rows == max(int(name[2:]) for name in parse(rule).variables)  # the past takes no more room than as it was


def test_a_long_rule_of_one_past_value() -> None:
    rule = " + ".join(f"{weight / 300} * tanh({1 + weight / 150} * m_1)" for weight in range(150))
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = copy.deepcopy(SymbolicOptimizer([parameter], rule, betas=(0.9, 0.999), clamp=None, eps=1e-8))
    (copied,) = optimizer.param_groups[0]["params"]
    gradients = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gradient in gradients:
        copied.grad = gradient
        optimizer.step()
    assert torch.allclose(copied.detach(), plainly(rule, gradients, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("rule", "steps", "moved"),
    [
        # in float32 exp(-200) is 0, before the first step too
        ("greater(exp(0 - 200 - abs(m_1)), 0) - 0.5", 6, -0.03),
        # equal numbers, of which one divides to infinity and the other to minus infinity
        ("tanh(1 / (abs(m_1) * 0.0)) + 0.5 * tanh(1 / (abs(m_2) * (-0.0)))", 6, 0.03),
    ],
)
def test_what_was_before_the_first_step_is_as_the_steps_would_have_it(rule: str, steps: int, moved: float, foreach: bool) -> None:
    parameter = nn.Parameter(torch.zeros(5))
    optimizer = SymbolicOptimizer([parameter], rule, foreach=foreach)
    for _ in range(steps):
        parameter.grad = torch.ones(5)
        optimizer.step()
    assert torch.allclose(parameter.detach(), torch.full((5,), moved), rtol=0, atol=1e-7)


def test_every_rule_is_compiled_on_its_own_account() -> None:
    """torch counts by code object how often it compiled anew, and stops at eight."""
    first, second = (Program(parse(rule), ("m",), 1, 1.0) for rule in ("-m_0", "-tanh(m_0)"))
    own = [_own_code(program.fused) for program in (first, second)]
    assert own[0].__code__ is not own[1].__code__
    assert [method.__self__ for method in own] == [first, second]


def test_a_state_with_the_past_itself_is_refused() -> None:
    """As versions before wrote it, where the same rule now keeps what it makes of the past."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer = SymbolicOptimizer([parameter], "-tanh(m_0) - tanh(m_3)")
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved["state"][0]["history"]) == ["tanh(m)"]
    copied = copy.deepcopy(optimizer)
    copied.load_state_dict(saved)
    saved["state"][0]["history"] = {"m": saved["state"][0]["history"]["tanh(m)"]}
    with pytest.raises(ValueError, match=r"the saved state of a tensor \(3,\) here does not fit"):
        copied.load_state_dict(saved)


def test_the_tanh_of_compiled_steps() -> None:
    x = torch.cat([torch.linspace(0, 10, 1_000_001), torch.logspace(-38, 0, 200_001)])
    true = x.double().tanh()
    assert float((quick_tanh(x.double().clamp(max=9)) / true - 1)[x > 0].abs().max()) < 2.5e-8
    quick = quick_tanh(x)
    unit = torch.finfo(torch.float32).eps * torch.exp2(true.log2().floor().clamp(min=-126))  # of the last place
    assert float(((quick.double() - true) / unit).abs().max()) < 6
    assert float(quick.max()) == 1
    assert torch.equal(quick_tanh(-x), -quick)
    ends = quick_tanh(torch.tensor([math.inf, -math.inf, math.nan, 0.0]))
    torch.testing.assert_close(ends, torch.tensor([1.0, -1.0, math.nan, 0.0]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_compiled_step_agrees() -> None:
    plain = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES, compiled=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it must be compiled, as one graph
        compiled = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES, compiled=True))
    assert torch.allclose(plain, compiled, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_long_history_is_compiled_once_for_all_its_slots() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    template = TanhTemplate(lags=11, weights=torch.linspace(0.05, 1, 22).reshape(2, 11)).expression

    def stepped(compiled: bool) -> torch.Tensor:
        gen = torch.Generator().manual_seed(0)
        whole = torch.randn(40, generator=gen)  # a buffer of which parameters are pieces, as those of a wrapper that shards are
        parameters = [nn.Parameter(torch.randn(shape, generator=gen)) for shape in ((3, 5), (64, 64), (7,), (33, 3, 3))]
        parameters.append(nn.Parameter(whole[8:]))
        optimizer = SymbolicOptimizer(parameters, template, lags=11, compiled=compiled)
        for _ in range(24):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=gen)
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = stepped(True)
    assert torch.allclose(stepped(False), compiled, rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_many_rules_of_a_process_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives up code that it has compiled anew eight times, whichever rule asked; graphs are not made kernels here."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for number in range(10):
        rule = f"-0.{number + 1} * m_{number} + 0.01 * g_{number % 3}"
        made = []
        for compiled in (True, False):
            gen = torch.Generator().manual_seed(number)
            parameters = [nn.Parameter(torch.randn(shape, generator=gen)) for shape in ((3, 5), (40,))]
            optimizer = SymbolicOptimizer(parameters, rule, compiled=compiled)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for _ in range(3):
                    for parameter in parameters:
                        parameter.grad = torch.randn(parameter.shape, generator=gen)
                    optimizer.step()
            assert optimizer.compiled is compiled
            made.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
        torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)


COMPILED_AND_NOT = """
import torch
from atlas.methods.symbolic_l2o import SymbolicOptimizer
def stepped(compiled):
    gen = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4096, generator=gen))
    optimizer = SymbolicOptimizer([parameter], "-tanh(m_0) + 0.1 * g_0", compiled=compiled)
    for _ in range(2):
        parameter.grad = torch.randn(4096, generator=gen)
        optimizer.step()
    return parameter.detach()
print(torch.backends.cpu.get_cpu_capability(), int(((stepped(True) - stepped(False)).abs() > 1e-5).sum()))
"""


@pytest.mark.slow
def test_a_cache_of_wider_vectors_does_not_spoil_the_step(tmp_path: Path) -> None:
    """PyTorch 2.15 would take the other kernel from its cache, and leave half of the numbers as they were in memory."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("the processor has no vectors wider than AVX2's")
    found = []
    for capability in ("avx512", "avx2"):
        settings = {"ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", COMPILED_AND_NOT]
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(done.stdout.strip())
    assert found == ["AVX512 0", "AVX2 0"]


def test_the_cache_of_compiled_steps_is_looked_up_by_the_vectors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    for before, after in (("", capability), ("mine", f"mine {capability}"), (f"mine {capability}", f"mine {capability}")):
        with torch.compiler.config.patch(cache_key_tag=before):
            trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES, compiled=True))
            assert torch.compiler.config.cache_key_tag == after


@pytest.mark.parametrize("error", [TorchDynamoException, FailOnRecompileLimitHit])
def test_without_a_compiler_the_step_is_taken_block_by_block(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES))

    def broken(*_: Any, **__: Any) -> Any:
        def kernel(*_: Any) -> None:
            raise error("no working compiler")

        return kernel

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="is not compiled, but taken block by block: no working compiler"):
        compiled = trained(lambda p: SymbolicOptimizer(p, RULE, features=FEATURES, compiled=True))
    assert torch.equal(plain, compiled)


@pytest.mark.parametrize(
    "rule",
    [
        TanhTemplate(weights=torch.linspace(-1, 1, 20).reshape(2, 10), gamma=(0.5, 2.0)),
        InterpolationRule(0.3),
        PolynomialRule(("m", "g"), 3, (0.2, 1.0)),
        ExpressionRule("-tanh(m_0) + 0.1 * g_2", lags=3),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_a_rule_is_its_expression(rule: Rule) -> None:
    history = torch.randn(4, rule.lags, len(rule.features), 6, dtype=torch.float64).abs() + 0.1
    history[:, :, 0] *= -1
    columns = column_names(rule.features, rule.lags)
    rows = history.permute(0, 3, 1, 2).reshape(-1, len(columns))
    expected = rule.expression.numpy(dict(zip(columns, rows.numpy().T, strict=True)))
    assert torch.allclose(rule(history).detach().reshape(-1), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    optimizer = SymbolicOptimizer([nn.Parameter(torch.ones(3))], rule)
    assert optimizer.expression == rule.expression.simplify()


def test_template_limits() -> None:
    """γ → ∞ gives −m̃; γ → 0 with W γ fixed gives a sign rule; ψ is odd; W = 0 gives 0."""
    z = torch.randn(1, 1, 2, 50, dtype=torch.float64)
    first = z[:, 0, 0]
    assert torch.allclose(adam_like()(z), -first, atol=1e-5)
    narrow = TanhTemplate(lags=1, weights=torch.tensor([[1e6], [0.0]]), gamma=1e-6)
    assert torch.allclose(narrow(z), -first.sign(), atol=1e-5)
    template = TanhTemplate(lags=1, weights=torch.tensor([[0.7], [-0.2]]))
    assert torch.allclose(template(-z), -template(z))
    zero = TanhTemplate(lags=1, weights=torch.zeros(2, 1))
    assert bool((zero(z) == 0).all())
    assert zero.expression == parse("0.0")


def test_interpolation_limits() -> None:
    z = torch.rand(1, 1, 2, 20) + 0.1
    assert torch.allclose(InterpolationRule(0.0)(z), -z[:, 0, 0])
    assert torch.allclose(InterpolationRule(1.0)(z), -z[:, 0, 0] / z[:, 0, 1])


def test_template_is_recovered_by_least_squares() -> None:
    gen = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 4, generator=gen)
    rows = torch.randn(300, 8, generator=gen, dtype=torch.float64)
    y = TanhTemplate(lags=4, weights=weights, gamma=0.5).double()(rows.reshape(300, 4, 2, 1))[:, 0].detach()
    found = TanhTemplate.fit(rows, y, lags=4)
    assert torch.allclose(found.weights, weights, atol=1e-6)
    assert torch.allclose(found.gamma, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="8 columns"):
        TanhTemplate.fit(rows[:, :3], y, lags=4)


def test_state_is_what_the_equation_uses() -> None:
    def bytes_of(rule: str, **options: Any) -> float:
        parameter = nn.Parameter(torch.ones(1000))
        parameter.grad = torch.ones(1000)
        optimizer = SymbolicOptimizer([parameter], rule, **options)
        assert optimizer.state_bytes_per_parameter() == 0
        optimizer.step()
        return optimizer.state_bytes_per_parameter()

    assert bytes_of("-0.01 * grad_0", features=("grad",)) == 0
    assert bytes_of("-mom_0", features=("mom",)) == 4
    assert bytes_of("-g_0") == 4
    assert bytes_of("-m_0") == 8
    assert bytes_of("-m_0 - 0.1 * m_3") == 8 + 12
    assert bytes_of("-m_0 - 0.1 * grad_2", features=("m", "grad")) == 8 + 8


def test_low_precision_parameters_keep_their_state_in_float32() -> None:
    parameter = nn.Parameter(torch.ones(64, dtype=torch.bfloat16).reshape(8, 8).T)
    parameter.grad = torch.full((8, 8), 0.5, dtype=torch.bfloat16)
    optimizer = SymbolicOptimizer([parameter], "-m_0 - 0.5 * g_1", lr=0.1)
    optimizer.step()
    store = optimizer.state[parameter]
    assert {tensor.dtype for part in ("moments", "history") for tensor in store[part].values()} == {torch.float32}
    assert torch.allclose(parameter.float(), torch.full((8, 8), 0.9), atol=1e-2)
    again = SymbolicOptimizer([parameter], "-m_0 - 0.5 * g_1", lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[parameter]["moments"]["m"].dtype == torch.float32


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(20))
        optimizer = SymbolicOptimizer([parameter], RULE, features=FEATURES)
        for step in range(25):
            if step == stop:
                saved = optimizer.state_dict()
                optimizer = SymbolicOptimizer([parameter], RULE, features=FEATURES)
                optimizer.load_state_dict(saved)
            parameter.grad = torch.sin(parameter.detach() * 3 + step)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(None), run(11))


def test_updates_are_bounded_and_what_is_not_finite_becomes_zero() -> None:
    for rule, moved in (("-1e9 * m_0", 0.01), ("1 / (m_0 - m_0)", 0.0), ("-exp(exp(exp(100*m_0)))", 0.0)):
        parameter = nn.Parameter(torch.zeros(5))
        parameter.grad = torch.ones(5)
        SymbolicOptimizer([parameter], rule, lr=0.01).step()
        assert torch.allclose(parameter, torch.full((5,), -moved)), rule


def test_a_tensor_with_a_broken_gradient_waits_and_then_complains() -> None:
    sound, broken = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))
    optimizer = SymbolicOptimizer([sound, broken], "-m_0", patience=3)
    sound.grad, broken.grad = torch.ones(3), torch.full((2, 2), math.nan)
    for _ in range(2):
        optimizer.step()
    assert bool((sound < 1).all())
    assert bool((broken == 1).all())
    with pytest.raises(RuntimeError, match=r"\(2, 2\) was not finite for 3 steps"):
        optimizer.step()
    broken.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_a_large_finite_gradient_is_not_mistaken_for_a_broken_one() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3e38)
    SymbolicOptimizer([parameter], "-sign(grad_0)", features=("grad",), lr=0.5).step()
    assert torch.equal(parameter.detach(), torch.full((4,), -0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "-q_0"}, "q_0 is not a variable of the rule; choose from m_0 … m_9, g_0 … g_9"),
        ({"rule": "-m_3", "lags": 2}, "m_0 … m_1"),
        ({"rule": "-cos(m_0)"}, "the function cos"),
        ({"rule": "-m_0", "features": ("m", "momentum")}, "there is no feature momentum; choose from m, g"),
        ({"rule": "-m_0", "lags": 0}, "lags must be at least 1"),
        ({"rule": "-m_0", "lr": 0.0}, "lr must be positive"),
        ({"rule": "-m_0", "betas": (1.0, 0.9)}, r"betas\[0\] must be in \[0, 1\)"),
        ({"rule": "-m_0", "clamp": -1.0}, "clamp must be positive"),
    ],
)
def test_wrong_settings_say_what_is_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SymbolicOptimizer([nn.Parameter(torch.ones(1))], **options)


def test_rules_come_from_text_files_sympy_and_json(tmp_path: Path) -> None:
    (tmp_path / "rule.txt").write_text("-2 * m_0\n")
    (tmp_path / "rule.json").write_text(json.dumps({"expression": "-2 * m_0"}))
    m = sympy.Symbol("m_0", real=True)
    parameter = [nn.Parameter(torch.ones(1))]
    rules: list[Any] = [parse("-2 * m_0"), "-2 * m_0", tmp_path / "rule.txt", tmp_path / "rule.json", -2 * m]
    assert {str(SymbolicOptimizer(parameter, rule).expression) for rule in rules} == {"((-2.0) * m_0)"}
    assert r"\tilde{m}_{t}" in SymbolicOptimizer(parameter, "-2 * m_0").latex()
    (tmp_path / "rule.json").write_text("[]")
    with pytest.raises(ValueError, match="no key expression"):
        SymbolicOptimizer(parameter, tmp_path / "rule.json")


def test_features_of_rules_do_not_depend_on_the_gradients_scale() -> None:
    inputs = Features(("m", "g"))
    g = torch.randn(5, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state, scaled = inputs.init_state(g[0]), inputs.init_state(g[0])
    for step in g:
        z, state = inputs.step(step, state)
        other, scaled = inputs.step(1000 * step, scaled)
        assert torch.allclose(z, other, atol=1e-8)


def test_meta_tuning_improves_a_rule() -> None:
    problem = quadratic(5, start=1.0)
    rule = TanhTemplate(lags=2, weights=torch.tensor([[0.1, 0.0], [0.0, 0.0]]))
    cfg = MetaConfig(windows=60, unroll=10, depth=2, instances=8, lr=0.05)
    history = meta_tune(rule, problem, cfg, torch.Generator().manual_seed(0), lr=0.05)
    first = sum(row["loss"] for row in history[:10])
    last = sum(row["loss"] for row in history[-10:])
    assert last < 0.9 * first
    assert rule.weights[0, 0] > 0.3
    with pytest.raises(ValueError, match="no constants"):
        meta_tune(ExpressionRule("-m_0"), problem, cfg, torch.Generator())
