"""Policies and features: hand-computed steps, invariances, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atlas.l2o import ANALYTIC, L2ODM, Features, Layout, Policy, RNNprop, analytic, load_policy, rnnprop, save_policy
from atlas.l2o.state import State

T64 = torch.float64


def gradients(steps: int, n: int = 2, parameters: int = 5, seed: int = 0) -> list[Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(n, parameters, generator=gen, dtype=T64) for _ in range(steps)]


def run(policy: Policy, stream: list[Tensor]) -> Tensor:
    """(steps, n, P): the updates of a policy on a stream of gradients."""
    state: State = policy.init_state(torch.zeros_like(stream[0]))
    updates = []
    for g in stream:
        update, state = policy.step(g, state)
        updates.append(update)
    return torch.stack(updates)


def torch_updates(make, stream: list[Tensor]) -> Tensor:  # type: ignore[no-untyped-def]
    parameter = torch.nn.Parameter(torch.zeros_like(stream[0]))
    optimizer = make([parameter])
    updates = []
    for g in stream:
        before = parameter.detach().clone()
        parameter.grad = g
        optimizer.step()
        updates.append(parameter.detach() - before)
    return torch.stack(updates)


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ("momentum", {"beta": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("nesterov", {"beta": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        ("adam", {}, lambda p: torch.optim.Adam(p, lr=0.1)),
        ("adagrad", {}, lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-10)),
    ],
)
def test_agrees_with_torch(name: str, options: dict[str, float], make) -> None:  # type: ignore[no-untyped-def]
    stream = gradients(7)
    assert torch.allclose(run(analytic(name, 0.1, **options), stream), torch_updates(make, stream), atol=1e-12)


def test_formulas_by_hand() -> None:
    g1, g2 = torch.tensor([[2.0, -1.0]], dtype=T64), torch.tensor([[-1.0, -3.0]], dtype=T64)
    updates = run(analytic("rmsprop", 0.1), [g1, g2])
    v1 = 0.1 * g1**2
    v2 = 0.9 * v1 + 0.1 * g2**2
    assert torch.allclose(updates[1], -0.1 * g2 / (v2 + 1e-10).sqrt())
    agree = torch.tensor([[-1.0, 1.0]], dtype=T64)  # the mean after two gradients is (0.08, −0.39)
    assert torch.allclose(run(analytic("powersign", 0.1), [g1, g2])[1], -0.1 * agree.exp() * g2)
    assert torch.allclose(run(analytic("addsign", 0.1), [g1, g2])[1], -0.1 * (1 + agree) * g2)


def test_amsgrad_keeps_the_largest_corrected_moment() -> None:
    stream = [torch.full((1, 1), value, dtype=T64) for value in (5.0, 0.1, 0.1)]
    m = v = largest = 0.0
    wanted = []
    for step, g in enumerate((5.0, 0.1, 0.1), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = max(largest, v / (1 - 0.999**step))
        wanted.append(-0.1 * m / (1 - 0.9**step) / (math.sqrt(largest) + 1e-8))
    assert run(analytic("amsgrad", 0.1), stream).flatten().tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("name", sorted(ANALYTIC))
def test_a_step_size_per_instance(name: str) -> None:
    stream = gradients(4)
    sizes = torch.tensor([[0.1], [0.5]], dtype=T64)
    both = run(analytic(name, sizes), stream)
    for row, lr in enumerate((0.1, 0.5)):
        assert torch.allclose(both[:, row], run(analytic(name, lr), stream)[:, row])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: analytic("adan", 0.1), "there is no analytic optimizer adan; choose from sgd, momentum"),
        (lambda: analytic("sgd", 0.0), "lr must be positive"),
        (lambda: analytic("adam", 0.1, betas=(1.0, 0.9)), r"betas\[0\] must be in"),
        (lambda: Features(("m", "q")), "there is no feature q; choose from m, g"),
        (lambda: Features(()), "at least one feature"),
        (lambda: RNNprop(lr=-1), "lr must be positive"),
        (lambda: RNNprop(betas=(0.9, 1.0)), r"betas\[1\]"),
        (lambda: RNNprop(hidden=()), "names no layer"),
        (lambda: rnnprop("huge"), "there is no size huge"),
        (lambda: L2ODM(preprocess="none"), "there is no preprocessing none"),  # type: ignore[arg-type]
    ],
)
def test_refuses(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def features(names: tuple[str, ...], stream: list[Tensor], betas: tuple[float, float] = (0.95, 0.95)) -> Tensor:
    made = Features(names, betas)
    state = made.init_state(torch.zeros_like(stream[0]))
    rows = []
    for g in stream:
        z, state = made.step(g, state)
        rows.append(z)
    return torch.stack(rows)


def test_features_at_the_first_step_are_signs() -> None:
    (g,) = gradients(1)
    z = features(("m", "g", "n"), [g])[0]
    assert torch.allclose(z, g.sign().unsqueeze(-1).expand_as(z), atol=1e-6)


def test_features_without_memory_are_signs() -> None:
    stream = gradients(3)
    z = features(("m", "g"), stream, betas=(0.0, 0.0))
    assert torch.allclose(z, torch.stack(stream).sign().unsqueeze(-1).expand_as(z), atol=1e-9)


def test_features_of_silence_are_zero() -> None:
    z = features(("m", "g", "n", "p2", "d"), [torch.zeros(1, 3)] * 4)
    assert bool((z == 0).all())


def test_features_do_not_see_the_scale() -> None:
    stream = gradients(6)
    names = ("m", "g", "n", "p2.5")
    assert torch.allclose(features(names, stream), features(names, [37.0 * g for g in stream]), atol=1e-6)
    torch.manual_seed(0)
    policy = rnnprop("rp-small").double()
    assert torch.allclose(run(policy, stream), run(policy, [1e3 * g for g in stream]), atol=1e-9)


def test_features_in_closed_form() -> None:
    stream = gradients(5)
    z = features(("mom", "mhat", "d", "grad", "ema0.5", "time", "p2", "n"), stream)[-1]
    stack = torch.stack(stream)
    weights = torch.tensor([0.05 * 0.95**lag for lag in range(4, -1, -1)], dtype=T64).view(-1, 1, 1)
    mom = (weights * stack).sum(0)
    bias = 1 - 0.95**5
    second = (weights * stack**2).sum(0) / bias
    third = (weights * stack.abs() ** 3).sum(0) / bias
    halves = torch.tensor([0.5 ** (lag + 1) for lag in range(4, -1, -1)], dtype=T64).view(-1, 1, 1)
    wanted = [mom, mom / bias, second.sqrt(), stream[-1], (halves * stack).sum(0), torch.full_like(mom, 0.005)]
    wanted += [mom / (second.sqrt() + 1e-8), mom / bias / (third ** (1 / 3) + 1e-8)]
    assert torch.allclose(z, torch.stack(wanted, dim=-1), atol=1e-10)


def test_updates_are_bounded_and_follow_permutations() -> None:
    torch.manual_seed(1)
    policy = RNNprop(lr=0.01).double()
    stream = gradients(5, parameters=6)
    updates = run(policy, stream)
    assert float(updates.abs().max()) <= 0.01
    order = torch.randperm(6)
    assert torch.allclose(run(policy, [g[:, order] for g in stream]), updates[..., order])


@pytest.mark.parametrize("policy", [RNNprop(hidden=(4,), pre=0), L2ODM((3, 3), preprocess="log-sign")])
def test_instances_do_not_mix(policy: Policy) -> None:
    policy = policy.double()
    stream = gradients(4, n=3)
    together = run(policy, stream)
    for row in range(3):
        assert torch.allclose(together[:, row], run(policy, [g[row : row + 1] for g in stream])[:, 0])


def test_cell_is_torchs() -> None:
    policy = L2ODM((6,)).double()
    cell = policy.cells.cells[0]
    ours, theirs = cell, torch.nn.LSTMCell(1, 6).double()
    theirs.load_state_dict(ours.state_dict())
    x, h, c = (torch.randn(7, size, dtype=T64) for size in (1, 6, 6))
    found = ours(x.T, (h.T, c.T))
    assert all(torch.allclose(a.T, b) for a, b in zip(found, theirs(x, (h, c)), strict=True))


def test_observing_leaves_the_memory_alone() -> None:
    policy = rnnprop("rp-small")
    state = policy.observe(torch.ones(1, 3), policy.init_state(torch.zeros(1, 3)))
    assert all(bool((leaf == 0).all()) for pair in state["cells"] for leaf in pair)
    assert bool((state["features"]["m"] != 0).all())


def test_layout() -> None:
    layout = Layout.of([(2, 3), (2,), (1, 1, 2, 2)])
    assert layout.parameters == 12
    assert layout.tensor_index().tolist() == [0] * 6 + [1] * 2 + [2] * 4
    assert layout.ranks().tolist() == [2] * 6 + [1] * 2 + [4] * 4


@pytest.mark.parametrize("policy", [rnnprop("rp-small-inputs", lr=0.03), L2ODM((5,), preprocess="log-sign")])
def test_saved_policies_come_back(policy: Policy, tmp_path) -> None:  # type: ignore[no-untyped-def]
    save_policy(tmp_path / "policy.safetensors", policy)
    again = load_policy(tmp_path / "policy.safetensors")
    stream = [g.float() for g in gradients(3)]
    assert torch.equal(run(policy, stream), run(again, stream))
    with pytest.raises(ValueError, match="holds .*; known are Other"):
        load_policy(tmp_path / "policy.safetensors", {"Other": RNNprop})


def test_a_policy_is_saved_to_the_same_bytes_every_time(tmp_path: Path) -> None:
    path, saved = tmp_path / "policy.safetensors", set()
    for _ in range(12):
        save_policy(path, rnnprop("rp-small"))
        saved.add(path.read_bytes()[:100])
    assert len(saved) == 1


def test_a_file_of_before_is_read_too(tmp_path: Path) -> None:
    """Its header had two entries, one for the policy's name and one for its options."""
    policy = L2ODM((5,), preprocess="log-sign")
    header = {"policy": "L2ODM", "options": json.dumps(policy.options())}
    save_file(dict(policy.state_dict()), tmp_path / "policy.safetensors", metadata=header)
    assert load_policy(tmp_path / "policy.safetensors").describe() == policy.describe()
    save_file(dict(policy.state_dict()), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no policy; known are RNNprop, L2ODM"):
        load_policy(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"made": "by hand"},
        {"made": "5"},
        {"made": "null"},
        {"made": '{"policy": "L2ODM"}'},
        {"made": '{"policy": ["L2ODM"], "options": {}}'},
        {"made": '{"policy": "L2ODM", "options": []}'},
        {"policy": "L2ODM"},
        {"policy": "L2ODM", "options": "{"},
    ],
)
def test_a_header_of_others_is_refused(tmp_path: Path, header: dict[str, str]) -> None:
    save_file(dict(L2ODM((5,)).state_dict()), tmp_path / "policy.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"policy\.safetensors holds no policy; known are RNNprop, L2ODM"):
        load_policy(tmp_path / "policy.safetensors")
