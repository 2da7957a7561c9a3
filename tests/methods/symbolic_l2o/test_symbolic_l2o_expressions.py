"""Expressions: one meaning in text, NumPy, torch and sympy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atlas.methods.symbolic_l2o import ExpressionRule, PolynomialRule, sensitivities
from atlas.methods.symbolic_l2o.eager import chain
from atlas.methods.symbolic_l2o.expressions import OPERATORS, Expression, _sign, call, const, parse, var
from atlas.methods.symbolic_l2o.modules import torch_operators
from atlas.methods.symbolic_l2o.settings import PAPER_OPERATORS
from atlas.methods.symbolic_l2o.sympy_bridge import from_sympy

NAMES = ("m_0", "g_3", "ema0.5_12")


def expressions(safe: bool = False) -> st.SearchStrategy[Expression]:
    numbers = st.floats(-3, 3, allow_nan=False).map(lambda value: const(round(value, 3) + 0.0))
    leaves = st.one_of(numbers, st.sampled_from(NAMES).map(var))
    steep = {"exp", "sinh", "cube", "square", "div", "pow", "power"}
    operators = [name for name in OPERATORS if not (safe and name in steep)]

    def extend(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        return st.sampled_from(operators).flatmap(
            lambda op: st.lists(inner, min_size=OPERATORS[op], max_size=OPERATORS[op]).map(lambda args: call(op, *args))
        )

    return st.recursive(leaves, extend, max_leaves=12)


def draw(seed: int = 0, count: int = 50) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=count) for name in NAMES}


@given(expressions())
@settings(max_examples=150, deadline=None)
def test_text_reads_back_to_the_same_tree(expression: Expression) -> None:
    assert parse(str(expression)) == expression
    assert eval(repr(expression), {"parse": parse}) == expression


@given(expressions(safe=True))
@settings(max_examples=100, deadline=None)
def test_a_chain_has_the_value_and_leaves_its_operands_alone(expression: Expression) -> None:
    jumps = {node.op for node in expression.nodes()} & {"sign", "greater"}  # where rounding decides
    assume(expression.variables and not jumps)
    env = {name: torch.from_numpy(value) for name, value in draw().items()}
    kept = {name: value.clone() for name, value in env.items()}
    found = chain(expression)
    result = found.run(env)
    expected = expression.evaluate(torch_operators(), env, (torch.tensor(c, dtype=torch.float64) for c in expression.constants))
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, kept[name]) for name, value in env.items())
    if found.owned:
        assert all(result.data_ptr() != value.data_ptr() for value in env.values())


@given(expressions())
@settings(max_examples=100, deadline=None)
def test_numpy_and_torch_agree(expression: Expression) -> None:
    env = draw()
    found = expression.numpy(env)
    assert found.shape == ((50,) if expression.variables else ())
    again = expression.module()({name: torch.from_numpy(value) for name, value in env.items()}).detach().numpy()
    finite = np.isfinite(found) & (np.abs(found) < 1e100)
    np.testing.assert_allclose(again[finite], found[finite], rtol=1e-9, atol=1e-12)
    assert (~np.isfinite(again) | (np.abs(again) >= 1e99))[~finite].all()


@given(expressions(safe=True))
@settings(max_examples=40, deadline=None)
def test_sympy_agrees_and_comes_back(expression: Expression) -> None:
    env = {name: float(values[0]) for name, values in draw(1, 1).items()}
    expected = float(expression.numpy(env))
    numbers = {sympy.Symbol(name, real=True): value for name, value in env.items()}
    found = expression.sympy()
    assert float(found.subs(numbers)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert float(from_sympy(found).numpy(env)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(expressions())
@settings(max_examples=150, deadline=None)
def test_simplification_keeps_the_value_and_never_grows(expression: Expression) -> None:
    simple = expression.simplify()
    assert simple.complexity <= expression.complexity
    assert simple.simplify() == simple
    env = draw()
    before, after = (np.broadcast_to(one.numpy(env), 50) for one in (expression, simple))
    np.testing.assert_allclose(after, before, rtol=1e-9, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pow(-2, 2)", -4),
        ("(-2) ^ 2", 4),
        ("(-2) ** 2", 4),
        ("(-2) ^ 3", -8),
        ("(-2) ^ 4", 16),
        ("(-2) ^ 5", -32),
        ("(-2) ^ 0", 1),
        ("0 ^ 0", 1),
        ("(-2) ^ -2", 0.25),
        ("(-2) ^ (-3)", -0.125),
        ("((-2) ^ 2) ^ 3", 64),
        ("(-2) ^ 2 ^ 3", 256),
        ("(-2) ^ (1 + 1)", 4),
        ("(-8) ^ (1 / 3)", -2),
        ("(-4) ^ 0.5", -2),
        ("powm(-2, 2)", -4),
        ("power(-2, 2)", 4),
        ("power(-2, 3)", -8),
        ("power(-4, 0.5)", -2),
        ("power(0, 0)", 1),
        ("sqrtm(-9)", 3),
        ("logm(0)", math.log(1e-8)),
        ("greater(1, 1)", 0),
        ("2 > 1", 1),
        ("1 < 2", 1),
        ("aq(3, 4)", 3 / math.sqrt(17)),
        ("relu(-1) + relu(2)", 2),
        ("plus(mult(2, 3), minus(1, 4))", 3),
        ("-2 ** 2", -4),
        ("1 - 2 - 3", -4),
        ("8 / 4 / 2", 1),
        ("1e-3 + .5", 0.501),
        ("cube(-2) + square(-2)", -4),
        ("sign(-0.3) * abs(-2)", -2),
        ("erfc(0) + asinh(0) + sinh(0) + exp(0)", 2),
    ],
)
def test_values_by_hand(text: str, value: float) -> None:
    assert float(parse(text).numpy({})) == pytest.approx(value, rel=1e-12)


POWERS = ("x ^ 2", "x ** 2", "-x ^ 2", "x ^ 4", "x ^ 5", "x ^ -2", "(2 * x - 1) ^ 2 + x ^ 3", "(x ^ 2 - 3) ^ 4", "x ^ n", "2 ^ x")


@pytest.mark.parametrize("text", POWERS)
def test_a_typed_power_is_the_ordinary_one_in_every_form(text: str) -> None:
    """Text, NumPy, torch, sympy and the optimizer's chain agree with Python's own power, for bases of either sign."""
    expression = parse(text)
    assert parse(str(expression)) == expression
    x = np.array([-3.0, -1.5, -0.5, 0.25, 2.0])
    n = np.array([2.0, 3.0, -1.0, 2.5, 0.0])
    expected = [eval(text.replace("^", "**"), {"x": float(a), "n": float(b)}) for a, b in zip(x, n, strict=True)]
    env = {"x": x, "n": n}
    tensors = {name: torch.from_numpy(value) for name, value in env.items()}
    for form in (expression, expression.simplify(), from_sympy(expression.sympy())):
        np.testing.assert_allclose(form.numpy(env), expected, rtol=1e-12)
    np.testing.assert_allclose(expression.module()(tensors).detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(chain(expression).run(tensors).numpy(), expected, rtol=1e-12)
    names = {sympy.Symbol("x", real=True): -1.5, sympy.Symbol("n", real=True): 3}
    assert float(expression.sympy().subs(names)) == pytest.approx(expected[1], rel=1e-12)


def test_a_negative_base_under_a_broken_exponent_keeps_its_sign() -> None:
    """There is no real value; the paper's protected power stands in, so that the rule has one."""
    env = {"x": np.array([-4.0, -4.0, 4.0]), "n": np.array([0.5, -0.5, 0.5])}
    for text, expected in (("x ^ 0.5", [-2, -2, 2]), ("x ^ n", [-2, -0.5, 2]), ("x ^ -0.5", [-0.5, -0.5, 0.5])):
        np.testing.assert_allclose(parse(text).numpy(env), expected)
        np.testing.assert_allclose(from_sympy(parse(text).sympy()).numpy(env), expected)
    assert parse("pow(x, 2)").op == parse("powm(x, 2)").op == "pow"
    assert "power" not in PAPER_OPERATORS


def test_a_power_has_the_slope_of_the_ordinary_one() -> None:
    x = torch.tensor([-3.0, -0.5, 2.0], dtype=torch.float64, requires_grad=True)
    n = torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64)
    for text in ("x ^ n", "x ^ 2", "x ^ 5"):
        power = {"x ^ n": n, "x ^ 2": 2.0, "x ^ 5": 5.0}[text]
        (slope,) = torch.autograd.grad(parse(text).module()({"x": x, "n": n}).sum(), x)
        torch.testing.assert_close(slope, power * x.detach() ** (power - 1))


def test_constants_keep_their_digits_in_double_precision() -> None:
    """0.1 is 0.1, not float32's 0.10000000149, as a module, as a rule that is read back, and where sensitivities are taken."""
    expression = parse("0.1 * x + 1e-9")
    x = torch.tensor([1.0, 3.0], dtype=torch.float64)
    for trainable in (True, False):
        module = expression.module(trainable)
        torch.testing.assert_close(module({"x": x}).detach(), 0.1 * x + 1e-9, rtol=1e-15, atol=0)
        assert module.expression == expression  # type: ignore[attr-defined]
        assert module({"x": x.float()}).dtype == torch.float32
    assert ExpressionRule("0.1 * m_0 - 0.7 * g_1").expression == parse("0.1 * m_0 - 0.7 * g_1")
    assert sensitivities(parse("0.1 * m_0"), np.ones((2, 1)), ("m",), 1)[0, 0] == pytest.approx(0.1, rel=1e-15)
    assert PolynomialRule(("m",), 1, (0.2,)).expression.constants.count(0.2) == 6
    moved = torch.zeros(1, dtype=torch.float64).add_(chain(parse("0.1")).run({}))
    assert float(moved) == 0.1


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("tanh(c)", 2),
        ("logm(pow(c,plus(c,m)))", 6),
        ("-0.01 * g_0", 3),
        ("x", 1),
        ("-x", 2),
        ("tanh(tanh(0.0248+sinh(cube(-1.992*m_0))))", 9),
    ],
)
def test_complexity_counts_nodes(text: str, nodes: int) -> None:
    assert parse(text).complexity == nodes


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "m_0.real",
        "(lambda: 1)()",
        "[m_0]",
        "m_0 if g_0 else 1",
        "cos(m_0)",
        "m_0 % 2",
        "'a'",
        "True and False",
        "not m_0",
        "m_0 == 1",
        "1 < m_0 < 2",
        "tanh(m_0, g_0)",
        "tanh(x=m_0)",
        "tanh",
        "m_0 +",
        "",
        "1e999",
        "(" * 5000 + "1" + ")" * 5000,
        "f'{m_0}'",
        "x := 3",
        "tanh(*m_0)",
    ],
)
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_an_unknown_operator_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="the function cos is not allowed.*sqrtm"):
        parse("cos(x)")
    with pytest.raises(ValueError, match="there is no operator cos.*sqrtm"):
        call("cos", 1.0)
    with pytest.raises(KeyError):
        parse("a + b").numpy({"a": 1.0})


def test_constants_can_be_trained_and_written_back() -> None:
    module = parse("2 * x + 1").module()
    x = torch.linspace(-1, 1, 20)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (module({"x": x}) - (-3 * x + 0.5)).square().mean().backward()
        optimizer.step()
    assert module.expression.constants == pytest.approx((-3, 0.5), abs=1e-3)  # type: ignore[attr-defined,operator]
    fixed = parse("2 * x + 1").module(trainable=False)
    assert not list(fixed.parameters())
    assert "constants" in fixed.state_dict()


def test_latex_names_features_and_lags() -> None:
    text = parse("-0.01234 * tanh(m_0) + g_3").latex()
    assert r"\tilde{m}_{t}" in text
    assert r"\tilde{g}_{t-3}" in text
    assert "0.0123" in text


def test_python_operators_build_expressions() -> None:
    x = var("x")
    assert (2 * x + 1) / (3 - x) - -x == parse("(2 * x + 1) / (3 - x) - neg(x)")
    with pytest.raises(ValueError, match="cannot be the name"):
        var("tanh")
    with pytest.raises(ValueError, match="finite"):
        const(math.inf)
    with pytest.raises(ValueError, match="2 constants"):
        parse("1 + 2").with_constants([1, 2, 3])


def test_constants_are_written_so_that_they_can_be_read_back() -> None:
    for value, text in ((0.0, "0.0"), (0.5, "0.5"), (2.0, "2.0"), (-1.5, "(-1.5)"), (-0.0, "(-0.0)")):
        assert str(const(value)) == text
        assert math.copysign(1, parse(text).value) == math.copysign(1, value)


def test_the_sign_of_what_is_no_number_is_zero() -> None:
    assert _sign(np.array([-2.0, 0.0, 3.0, np.nan])).tolist() == [-1.0, 0.0, 1.0, 0.0]
