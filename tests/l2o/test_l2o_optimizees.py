"""Optimizees: batched = one by one, gradients, known minima, data without replacement; rollouts, tuning, and torch.optim."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from atlas.l2o import (
    L2ODM,
    Adam,
    Ensemble,
    Examples,
    LearnedOptimizer,
    analytic,
    convnet,
    evaluation,
    mlp,
    module_optimizee,
    quadratic,
    rastrigin,
    resnet,
    rnnprop,
    rollout,
    rosenbrock,
    tune,
    warm_up,
)
from atlas.l2o.evaluation import GRID
from atlas.l2o.networks import ResNet
from atlas.l2o.optimizees import Optimizee
from atlas.methods.symbolic_l2o import SymbolicPolicy, TanhTemplate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 24, channels: int = 1, size: int = 8, batch_size: int = 6) -> Examples:
    gen = seeded(3)
    splits = {
        name: (torch.randn(count, channels, size, size, generator=gen), torch.randint(10, (count,), generator=gen))
        for name in ("train", "val")
    }
    return Examples(splits, batch_size)


PROBLEMS: dict[str, Optimizee] = {
    "quadratic": quadratic(5),
    "rosenbrock": rosenbrock(3),
    "rastrigin": rastrigin(4),
    "mlp": mlp((64, 7, 10), data=images()),
    "convnet": convnet([(4, 3), "pool", (6, 2)], data=images(), init="glorot"),
    "resnet": resnet(8, data=images(channels=3), norm="group"),
    "looped": module_optimizee(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), functional.cross_entropy, images(), "normal:0.01", vectorize=False
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_interface(problem: Optimizee) -> None:
    theta = problem.init(3, seeded())
    assert theta.shape == (3, problem.P)
    assert torch.equal(theta, problem.init(3, seeded()))
    assert problem.tensor_index().shape == (problem.P,)
    assert [tuple(view.shape) for view in problem.views(theta).values()] == [(3, *shape) for _, shape in problem.shapes]
    batch = problem.sample(3, seeded(1))
    losses, gradient = problem.gradients(theta, batch)
    assert torch.allclose(losses, problem.losses(theta, batch), rtol=1e-5)
    single = theta[1].clone().requires_grad_()
    alone = problem.loss(single, [leaf[1] for leaf in batch])
    (own,) = torch.autograd.grad(alone, single)
    assert float(alone.detach()) == pytest.approx(float(losses[1]), rel=1e-4)
    assert torch.allclose(own, gradient[1], atol=1e-4, rtol=1e-3)
    measured = problem.evaluate(theta)
    assert measured["loss"].shape == (3,)


def test_known_values() -> None:
    assert float(rosenbrock(4).loss(torch.ones(4), ())) == 0
    assert float(rosenbrock(2).loss(torch.zeros(2), ())) == 1
    matrix, wanted = quadratic(3).sample(1, seeded())
    solution = torch.linalg.solve(matrix[0].double(), wanted[0].double()).float()
    assert float(quadratic(3).loss(solution, (matrix[0], wanted[0]))) < 1e-6
    a, b, c = (leaf[0] for leaf in rastrigin(3).sample(1, seeded()))
    by_hand = b.square().sum() - 10 * c.sum() + 30
    assert float(rastrigin(3).loss(torch.zeros(3), (a, b, c))) == pytest.approx(float(by_hand), rel=1e-5)


def test_functions_stay_the_same_along_a_trajectory() -> None:
    first, second = list(quadratic(3).stream(2, 2, seeded()))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0][0], first[0][1])


def test_a_pass_shows_every_example_once() -> None:
    problem = mlp((64, 4, 10), data=images())
    seen = torch.cat([batch[0][1] for batch in problem.stream(2, 4, seeded())]).flatten(1)
    whole = problem.data["train"][0].flatten(1)  # type: ignore[attr-defined]
    assert torch.equal(seen.sum(1).sort().values, whole.sum(1).sort().values)
    assert len(list(problem.stream(1, 11, seeded()))) == 11


def test_evaluation_is_the_whole_split() -> None:
    problem = PROBLEMS["mlp"]
    theta = problem.init(2, seeded())
    x, y = images()["val"]
    logits = problem.outputs(theta, x.expand(2, *x.shape))  # type: ignore[attr-defined]
    measured = problem.evaluate(theta)
    assert float(measured["loss"][1]) == pytest.approx(float(functional.cross_entropy(logits[1], y)), rel=1e-5)
    assert float(measured["accuracy"][1]) == pytest.approx(float((logits[1].argmax(1) == y).float().mean()))


def test_resnets_have_their_published_sizes() -> None:
    """He et al. print 0.27 M parameters for 20 layers (their shortcuts have none; ours project)."""
    count = sum(p.numel() for p in ResNet(20).parameters())
    assert 0.26e6 < count < 0.28e6
    with pytest.raises(ValueError, match="depth must be"):
        ResNet(19)


def test_warm_up_is_sgd_that_the_policy_watches() -> None:
    problem, policy = PROBLEMS["mlp"], rnnprop("rp-small")
    theta = problem.init(2, seeded())
    batches = list(problem.stream(2, 3, seeded(1)))
    warmed, state = warm_up(policy, problem, theta, policy.init_state(theta), batches, lr=0.05)
    wanted = theta
    for batch in batches:
        wanted = wanted - 0.05 * problem.gradients(wanted, batch)[1]
    assert torch.equal(warmed, wanted)
    assert all(bool((leaf == 0).all()) for pair in state["cells"] for leaf in pair)
    assert bool((state["features"]["v"] > 0).any())


@pytest.mark.parametrize("name", ["rnnprop", "l2o-dm", "rule"])
def test_blocks_of_coordinates_take_the_steps_of_all_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rule = TanhTemplate(("mhat", "g"), 3, torch.randn(2, 3))
    policy = {"rnnprop": rnnprop("rp-small"), "l2o-dm": L2ODM(hidden=(4,)), "rule": SymbolicPolicy(rule, 0.1)}[name]
    problem = PROBLEMS["mlp"]
    options = {"n": 2, "steps": 6, "warmup_steps": 2}
    whole = rollout(policy, problem, gen=seeded(), **options)  # type: ignore[arg-type]
    seen: list[int] = []
    step = policy.step
    monkeypatch.setattr(policy, "step", lambda g, state: seen.append(g.shape[-1]) or step(g, state))
    monkeypatch.setattr(evaluation, "BLOCK", 100)
    parts = rollout(policy, problem, gen=seeded(), **options)  # type: ignore[arg-type]
    assert max(seen) == 100
    assert sum(seen) == 6 * whole.theta.shape[-1]
    torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.stream, whole.stream, rtol=1e-5, atol=1e-6)


def test_rollouts_repeat_and_record() -> None:
    problem = PROBLEMS["mlp"]
    first = rollout(analytic("adam", 0.01), problem, n=2, steps=7, every=3, gen=seeded(), splits=("train", "val"))
    second = rollout(analytic("adam", 0.01), problem, n=2, steps=7, every=3, gen=seeded())
    assert first.steps == [3, 6, 7]
    assert first.stream.shape == (7, 2)
    assert torch.equal(first.measured["val_loss"], second.measured["val_loss"])
    assert first.measured["train_accuracy"].shape == (3, 2)


def test_tuning_finds_the_best_and_says_when_it_is_on_the_edge() -> None:
    problem = quadratic(3, start=1.0)
    options = {"steps": 30, "every": 10, "seeds": 2, "criterion": "final"}
    found = tune(lambda lr: analytic("sgd", lr), problem, (1e-3, 1e-1, 10.0), gen=seeded(), **options)  # type: ignore[arg-type]
    assert found.lr == 0.1
    assert not found.on_edge
    assert found.table[10.0] == float("inf")
    edge = tune(lambda lr: analytic("sgd", lr), problem, (1e-4, 2e-4), gen=seeded(), extend=False, **options)  # type: ignore[arg-type]
    assert edge.lr == 2e-4
    assert edge.on_edge
    extended = tune(lambda lr: analytic("sgd", lr), problem, (1e-3, 2e-3), gen=seeded(), **options)  # type: ignore[arg-type]
    assert sorted(extended.table) == [1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2]
    assert (GRID[0], GRID[-1], len(GRID)) == (5e-4, 1.0, 11)
    with pytest.raises(ValueError, match="positive step sizes"):
        tune(lambda lr: analytic("sgd", lr), problem, (), gen=seeded(), **options)  # type: ignore[arg-type]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 7), nn.Linear(7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.flatten(1)).relu())


@pytest.mark.parametrize("make", [lambda: rnnprop("rp-small"), lambda: analytic("adam", 0.01)])
def test_drop_in_equals_the_functional_update(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    policy, model = make(), Net()
    problem = module_optimizee(model, functional.cross_entropy, images())
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])[None]
    state = policy.init_state(theta)
    optimizer = LearnedOptimizer(model.parameters(), policy)
    for batch in problem.stream(1, 5, seeded()):
        update, state = policy.step(problem.gradients(theta, batch)[1], state)
        theta = (theta + update).detach()
        optimizer.zero_grad()
        functional.cross_entropy(model(batch[0][0]), batch[1][0]).backward()
        optimizer.step()
    reached = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(reached, theta[0], atol=1e-6)


def test_state_dict_round_trips_and_keeps_precision() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, 2, dtype=torch.bfloat16))
    other = nn.Parameter(parameter.detach().clone())
    policy = rnnprop("rp-small")
    first, second = LearnedOptimizer([parameter], policy), LearnedOptimizer([other], policy)

    def go(optimizer: LearnedOptimizer, p: nn.Parameter, seed: int) -> None:
        p.grad = torch.randn(3, 2, generator=seeded(seed)).bfloat16()
        optimizer.step()

    go(first, parameter, 1)
    other.data.copy_(parameter.data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state[other]["policy"]["features"]["m"].dtype == torch.float32
    go(first, parameter, 2)
    go(second, other, 2)
    assert torch.equal(parameter, other)
    assert first.state_bytes_per_parameter() == pytest.approx(4 * (2 + 14 + 1 / 6))


def test_lr_scales_and_is_checked() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.ones(4)
    LearnedOptimizer([parameter], analytic("sgd", 0.1), lr=0.3).step()
    assert torch.allclose(parameter, torch.full((4,), -0.3))
    with pytest.raises(ValueError, match="lr must be positive"):
        LearnedOptimizer([parameter], analytic("sgd", 0.1), lr=0.0)


def test_bad_gradients_are_skipped_tensor_by_tensor_then_raise() -> None:
    good, bad, absent = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = LearnedOptimizer([good, bad, absent], Adam(0.1), patience=3)
    for turn in range(3):
        good.grad, bad.grad = torch.ones(2), torch.full((2,), torch.nan)
        if turn == 2:
            with pytest.raises(RuntimeError, match="not finite for 3 steps in a row"):
                optimizer.step()
        else:
            optimizer.step()
    assert bool((good < 0).all())
    assert bool((bad == 0).all())
    assert bool((absent == 0).all())
    held = optimizer.state[good]["policy"]
    assert bool((held["v"][0, :2] > 0).all())
    assert bool((held["v"][0, 2:] == 0).all())
    good.grad = torch.sparse_coo_tensor([[0]], [1.0], (2,))
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp((63, 10), data=images()), "must start with the 64 inputs"),
        (lambda: mlp((64, 10), "gelu", data=images()), "there is no activation gelu"),  # type: ignore[arg-type]
        (lambda: convnet([(4, 9)], data=images()), "nothing is left"),
        (lambda: convnet(["flat"], data=images()), "there is no layer flat"),
        (lambda: module_optimizee(nn.BatchNorm2d(1), functional.mse_loss, images()), "has buffers"),
        (lambda: module_optimizee(Net(), functional.cross_entropy, images(), "zeros"), "there is no initialisation zeros"),
        (lambda: images(batch_size=100), "batch_size 100 exceeds the 24 training examples"),
        (lambda: images()["test"], "there is no split test; choose from train, val"),
        (lambda: quadratic(0), "n must be at least 1"),
        (lambda: quadratic(2, entries="cauchy"), "there are no entries cauchy"),  # type: ignore[arg-type]
    ],
)
def test_refuses(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("problem", [quadratic(3), PROBLEMS["mlp"]], ids=["function", "network"])
def test_replicates_and_copies_see_the_same_problems(problem: Optimizee) -> None:
    policies = [rnnprop("rp-small", lr=lr) for lr in (0.1, 0.01)]
    options = {"n": 3, "steps": 4, "every": 2, "start": True}
    together = rollout(Ensemble([policies[0], policies[0]]), problem, copies=2, gen=seeded(), **options)  # type: ignore[arg-type]
    alone = rollout(policies[0], problem, gen=seeded(), **options)  # type: ignore[arg-type]
    for half in together.measured["val_loss"].chunk(2, dim=1):
        assert torch.allclose(half, alone.measured["val_loss"], rtol=1e-4)
    assert torch.allclose(together.best[:3], alone.best, atol=1e-5)
