"""Recording, interpretability and distillation, against what can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from atlas.l2o import ANALYTIC, L2ODM, Policy, quadratic, rnnprop
from atlas.l2o.state import State
from atlas.methods.symbolic_l2o import (
    Distillation,
    ParetoEntry,
    Records,
    SRConfig,
    distill,
    mapping_complexity,
    parse,
    r_squared,
    record,
    temporal_perception_field,
)
from atlas.methods.symbolic_l2o.distillation import simplest_of_best
from atlas.methods.symbolic_l2o.interpretability import field_of, lag_support, network_field, sensitivities
from atlas.methods.symbolic_l2o.recording import window_ends, windows

PROBLEM = quadratic(12, start=1.0)


class Echo(Policy):
    """A policy whose output says how many steps it has taken."""

    lr = 0.5

    def init_state(self, theta: torch.Tensor, layout: object = None) -> State:
        return {"step": torch.zeros(())}

    def step(self, g: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return 0.5 * (state["step"] + 1) + 0 * g, {"step": state["step"] + 1}


def test_rows_are_windows_reversed_with_the_last_update() -> None:
    z = np.arange(40, dtype=float).reshape(40, 1, 1)
    traced = {"z": z, "update": 100 + z[:, :, 0], "gradient": np.ones((40, 1))}
    X, y, place, step = windows(traced, 4, np.random.default_rng(0))
    assert len(X) == 40 // 4 - 2
    for row, target, end in zip(X, y, step, strict=True):
        assert row.tolist() == [end - 1, end - 2, end - 3, end - 4]
        assert target == 100 + end - 1
    assert set(place) == {0}


def test_a_window_with_a_dead_gradient_at_the_probe_disappears() -> None:
    lags = 8  # probe at index (8 // 4) · 3 − 1 = 5
    gradient = np.ones((80, 1))
    ends = window_ends(80, lags, np.random.default_rng(3))
    gradient[ends[2] - lags + 1 + 5, 0] = 0.0
    traced = {"z": np.zeros((80, 1, 1)), "update": np.zeros((80, 1)), "gradient": gradient}
    _, _, _, step = windows(traced, lags, np.random.default_rng(3))
    assert step.tolist() == [end + 1 for index, end in enumerate(ends) if index != 2]


def test_windows_do_not_overlap_and_stay_inside() -> None:
    for seed in range(20):
        ends = window_ends(100, 7, np.random.default_rng(seed))
        assert len(ends) == 100 // 7 - 2
        assert ends[0] >= 6
        assert ends[-1] < 100
        assert (np.diff(ends) >= 7).all()
    assert not len(window_ends(20, 10, np.random.default_rng(0)))


def test_recording_divides_by_the_scale_and_names_columns() -> None:
    records = record(Echo(), PROBLEM, features=("m", "g"), lags=3, runs=2, steps=30, coordinates=5, seed=1)
    assert records.names == ("m_0", "g_0", "m_1", "g_1", "m_2", "g_2")
    assert np.allclose(records.y, records.step)
    assert np.unique(records.run).tolist() == [0, 1]
    assert len(np.unique(records.coordinate[records.run == 0])) == 5
    train, test = records.split()
    assert set(train.run) == {0}
    assert set(test.run) == {1}


def test_records_are_the_same_for_a_seed_and_survive_a_file(tmp_path: Path) -> None:
    policy = rnnprop("rp-small").eval()
    first, second = (record(policy, PROBLEM, lags=4, runs=2, steps=40, seed=5) for _ in range(2))
    assert np.array_equal(first.X, second.X)
    first.save(tmp_path / "rows.npz")
    again = Records.load(tmp_path / "rows.npz")
    assert np.array_equal(again.X, first.X)
    assert again.names == first.names


def test_recording_refuses_what_cannot_be_held_out_or_cut() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        record(Echo(), PROBLEM, runs=1)
    with pytest.raises(ValueError, match="lags"):
        record(Echo(), PROBLEM, lags=0)
    with pytest.raises(ValueError, match="at least 60 steps"):
        record(Echo(), PROBLEM, lags=20, steps=50)
    with pytest.raises(ValueError, match="at least 2 runs"):
        record(Echo(), PROBLEM, lags=3, runs=2, steps=30).of_runs([0]).split()


def rows(lags: int, count: int = 50) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 2 * lags))


def test_field_by_hand() -> None:
    def field(text: str) -> float:
        return temporal_perception_field(parse(text), rows(10), ("m", "g"), 10)["m"]

    assert field("-m_7") == 7
    assert field("-m_0") == 0
    uniform = " + ".join(f"m_{lag}" for lag in range(10))
    assert field(uniform) == pytest.approx(4.5)
    geometric = " + ".join(f"{0.6**lag!r} * m_{lag}" for lag in range(4))
    assert field(geometric) == pytest.approx((0.6 + 2 * 0.36 + 3 * 0.216) / (1 + 0.6 + 0.36 + 0.216))
    assert math.isnan(temporal_perception_field(parse("-m_0"), rows(10), ("m", "g"), 10)["g"])
    assert math.isnan(field("2.0"))


def test_field_of_a_function_does_not_depend_on_a_features_scale() -> None:
    def function(scale: float):  # type: ignore[no-untyped-def]
        return lambda x: torch.sin(scale * x[:, 0]) + scale * x[:, 4] + x[:, 1]

    X = rows(3)
    plain = temporal_perception_field(function(1.0), X, ("m", "g"), 3)
    X[:, 0::2] /= 10
    assert temporal_perception_field(function(10.0), X, ("m", "g"), 3) == pytest.approx(plain)
    with pytest.raises(ValueError, match="6 columns"):
        sensitivities(parse("m_0"), X[:, :4], ("m", "g"), 3)


def test_support_counts_lags_above_a_thousandth() -> None:
    found = np.array([[1.0, 0.5, 1e-4], [0.0, 2e-3, 0.0]])
    assert lag_support(found, ("m", "g")) == {"m": 2, "g": 1}
    assert field_of(found, ("m", "g"))["g"] == 1


def test_field_of_a_network_with_a_known_memory() -> None:
    """A cell whose forget gate is open everywhere sees all of its past alike; a closed one sees the present."""
    torch.manual_seed(0)  # one network in twenty-five has such weights that the others hide what the gate does
    policy = rnnprop("rp-small")
    sequences = np.random.default_rng(0).normal(size=(20, 9, 2)) * 1e-3

    def gate(bias: float) -> float:
        with torch.no_grad():
            for parameter in policy.cells.parameters():
                parameter.mul_(0.1) if parameter.ndim == 2 else parameter.zero_()
            cell = policy.cells.cells[0]
            cell.weight_hh.zero_()
            cell.bias_ih[7:14] = bias
        return network_field(policy, sequences, ("m", "g"))["m"]

    assert gate(30.0) == pytest.approx(4.0, abs=0.4)
    assert gate(-30.0) == pytest.approx(0.0, abs=1e-3)


def test_complexity_after_folding() -> None:
    assert mapping_complexity("tanh(c)") == 2
    assert mapping_complexity("logm(pow(c,plus(c,m)))") == 6
    assert mapping_complexity("(1 + 2) * m_0 + 0 * 1") == 3


def test_r_squared() -> None:
    y = np.array([1.0, 2.0, 3.0])
    assert r_squared(y, y) == 1
    assert r_squared(2.0, y) == 0
    assert r_squared(np.array([math.inf, 0, 0]), y) == -math.inf
    with pytest.raises(ValueError, match="R² undefined"):
        r_squared(y, np.ones(3))


def test_the_simplest_expression_near_the_best_is_selected() -> None:
    front = [ParetoEntry(size, 1.0 / size, parse("m_0")) for size in (1, 3, 5, 9)]
    assert simplest_of_best(front, [0.1, 0.85, 0.86, 0.865]) == 1
    assert simplest_of_best(front, [0.1, 0.5, 0.9, 0.85]) == 2
    with pytest.raises(ValueError, match="empty"):
        simplest_of_best([], [])


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [("sgd", {}, 0.0), ("momentum", {"beta": 0.6}, None)],
)
def test_distillation_recovers_hand_made_optimizers(name: str, options: dict[str, float], field: float | None) -> None:
    """−η g and momentum(0.6) come back with R² ≥ 0.95 on a run that was held out."""
    policy = ANALYTIC[name](0.002, **options)
    found = distill(policy, PROBLEM, features=("grad",), lags=10, runs=3, steps=120, backend="lstsq", cfg=SRConfig(max_size=80))
    assert isinstance(found, Distillation)
    assert found.r2 >= 0.95
    assert found.mc == found.selected.complexity
    assert found.engine == "lstsq"
    if field is not None:
        assert found.tpf["grad"] == pytest.approx(field, abs=1e-6)
    else:
        assert 1 < found.tpf["grad"] < 4  # β/(1−β) = 1.5, but gradients of one trajectory are nearly collinear
    content = found.as_json()
    assert parse(content["expression"]) == found.selected
    assert content["front"][0]["complexity"] <= content["front"][-1]["complexity"]


def test_distillation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="operon, pysr, lstsq"):
        distill(Echo(), PROBLEM, backend="eureqa")
    with pytest.raises(ValueError, match="runs must be at least 2"):
        distill(Echo(), PROBLEM, runs=1)
    with pytest.raises(ValueError, match="there is no feature"):
        distill(Echo(), PROBLEM, features=("momentum",))


@pytest.mark.parametrize("preprocess", ["raw", "log-sign"])
def test_field_and_responses_of_l2o_dm_are_over_gradients(preprocess: Literal["raw", "log-sign"]) -> None:
    """Whatever the cells are fed for a gradient: the network is a function of the gradient."""
    torch.manual_seed(0)
    policy = L2ODM((4,), lr=0.1, preprocess=preprocess)
    gradients = 0.1 * torch.randn(5, 20, 1)
    field = network_field(policy, gradients, ("grad",))["grad"]
    inputs = gradients.clone().requires_grad_()
    cells = policy.cells.init_state(torch.zeros(1, 5))
    for step in range(20):
        output, cells = policy.respond(policy.inputs(inputs[:, step, 0].unsqueeze(0)), cells)
    (slopes,) = torch.autograd.grad(output.sum(), inputs)
    assert field == pytest.approx(field_of(slopes.abs().mean(0).flip(0).T.double().numpy(), ("grad",))["grad"], rel=1e-5)
