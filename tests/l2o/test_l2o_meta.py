"""The meta-gradient: suffix sums against autograd and finite differences; replicates, boundaries, state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atlas.l2o import (
    L2ODM,
    Examples,
    MetaConfig,
    MetaTrainer,
    Policy,
    Quadratic,
    Replicas,
    RNNprop,
    Window,
    analytic,
    map_state,
    meta_train,
    mlp,
    random_scale,
    rnnprop,
    unroll,
)
from atlas.l2o.meta import windows_at_once
from atlas.l2o.optimizees import Batch, Optimizee
from atlas.l2o.policies import Layout
from atlas.methods.optimizer_amalgamation.scale import L2OScale

T64 = torch.float64


def digits(count: int = 40, dtype: torch.dtype = T64) -> Examples:
    gen = torch.Generator().manual_seed(3)
    splits = {
        name: (torch.randn(count, 5, generator=gen, dtype=dtype), torch.randint(3, (count,), generator=gen))
        for name in ("train", "val")
    }
    return Examples(splits, batch_size=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return rnnprop("rp-small", lr=0.1).double()


class Linear(Quadratic):
    """⟨a, x⟩ + 10 with a of its own per instance: here detached gradients are exact."""

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        return (batch[1] * theta).sum() + 10


def window(policy: Policy, problem: Optimizee, steps: int = 4, n: int = 2, start: Tensor | None = None, **options) -> Window:  # type: ignore[no-untyped-def]
    gen = seeded()
    theta = problem.init(n, gen).double() if start is None else start
    batches = list(problem.stream(n, steps + (options.get("boundary", "none") != "none"), gen))
    return unroll(policy.step, problem, theta, policy.init_state(theta, problem.layout), batches, **options)


def meta_gradient(policy: Policy, make: Callable[[Policy], Window]) -> list[Tensor]:
    policy = copy.deepcopy(policy)
    make(policy).backward()
    return [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]


def by_autograd(policy: Policy, problem: Optimizee, steps: int, n: int, boundary: str, objective: str) -> list[Tensor]:
    """The whole window as one graph, with the gradient that the policy is fed detached."""
    policy = copy.deepcopy(policy)
    gen = seeded()
    theta = start = problem.init(n, gen).double()
    state = policy.init_state(theta, problem.layout)
    batches = list(problem.stream(n, steps + (boundary != "none"), gen))
    total = theta.new_zeros(())
    for index, batch in enumerate(batches[:steps]):
        losses = problem.losses(theta, batch)
        if objective == "sum":
            total = total + losses.mean()
        else:
            total = total + ((losses + 1e-10).log() - (problem.losses(start, batch) + 1e-10).log()).mean() / steps
        if boundary == "pre" and index == steps - 1:
            total = total + problem.losses(theta, batches[-1]).mean()
        update, state = policy.step(problem.gradients(theta, batch)[1], state)
        theta = theta + update
    if boundary == "post":
        total = total + problem.losses(theta, batches[-1]).mean()
    grads = torch.autograd.grad(total, list(policy.parameters()))
    return list(grads)


@pytest.mark.parametrize(("objective", "boundary"), [("sum", "post"), ("sum", "pre"), ("sum", "none"), ("log", "none")])
@pytest.mark.parametrize("make", [small, lambda: L2ODM((4, 3), lr=0.1).double()])
def test_suffix_sums_are_autograd(make, objective: str, boundary: str) -> None:  # type: ignore[no-untyped-def]
    policy, problem = make(), mlp((5, 4, 3), data=digits())
    ours = meta_gradient(policy, lambda p: window(p, problem, objective=objective, boundary=boundary))
    theirs = by_autograd(policy, problem, 4, 2, boundary, objective)
    assert all(torch.allclose(a, b, atol=1e-12, rtol=1e-10) for a, b in zip(ours, theirs, strict=True))


def test_linear_loss_makes_first_order_exact() -> None:
    policy, problem = small(), Linear(4, dtype=T64)
    first = meta_gradient(policy, lambda p: window(p, problem, boundary="post"))
    second = meta_gradient(policy, lambda p: window(p, problem, boundary="post", second_order=True))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(first, second, strict=True))
    head = dict(policy.named_parameters())["head.weight"]
    step = 1e-6

    def value(shift: float) -> float:
        with torch.no_grad():
            head[0, 0] += shift
            found = float(window(policy, problem, boundary="post").objective.mean())
            head[0, 0] -= shift
        return found

    place = [name for name, _ in policy.named_parameters()].index("head.weight")
    assert float(first[place][0, 0]) == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-6)


def test_second_order_is_the_derivative() -> None:
    policy, problem = small(), mlp((5, 4, 3), "tanh", data=digits())
    grads = meta_gradient(policy, lambda p: window(p, problem, boundary="post", second_order=True))
    head, step = policy.get_parameter("head.bias"), 1e-6

    def value(shift: float) -> float:
        with torch.no_grad():
            head[0] += shift
            found = float(window(policy, problem, boundary="post").objective.mean())
            head[0] -= shift
        return found

    place = [name for name, _ in policy.named_parameters()].index("head.bias")
    assert float(grads[place]) == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-5)


def test_boundary_before_the_only_update_teaches_nothing() -> None:
    policy, problem = small(), mlp((5, 4, 3), data=digits())
    before = meta_gradient(policy, lambda p: window(p, problem, steps=1, boundary="pre"))
    after = meta_gradient(policy, lambda p: window(p, problem, steps=1, boundary="post"))
    assert all(bool((grad == 0).all()) for grad in before)
    assert any(bool((grad != 0).any()) for grad in after)


def test_a_policy_that_stands_still_has_log_objective_zero() -> None:
    policy = small()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    result = window(policy, mlp((5, 4, 3), data=digits()), objective="log")
    assert bool((result.objective == 0).all())


def test_scale_changes_coordinates_only_for_the_policy() -> None:
    policy, problem = analytic("sgd", 0.1), mlp((5, 4, 3), data=digits())
    theta = problem.init(2, seeded()).double()
    scale = random_scale(theta, 3.0, seeded(1))
    assert float(scale.log().abs().max()) <= 3
    assert bool((random_scale(theta, 0.0, seeded(1)) == 1).all())
    batches = list(problem.stream(2, 1, seeded(2)))
    scaled = unroll(policy.step, problem, theta / scale, policy.init_state(theta), batches, scale=scale)
    gradient = problem.gradients(theta, batches[0])[1]
    assert torch.allclose(scaled.theta * scale, theta - 0.1 * scale**2 * gradient)


def test_diverged_instances_stand_still_and_are_marked() -> None:
    problem = mlp((5, 4, 3), data=digits())
    theta = problem.init(2, seeded()).double()
    theta[1] = torch.inf
    result = window(small(), problem, start=theta, objective="log")
    assert result.valid.tolist() == [True, False]
    assert torch.isfinite(result.objective).all()
    assert bool((result.theta[1] == torch.inf).all())


def test_replicates_are_separate_trainings() -> None:
    policies = [small(seed) for seed in range(3)]
    problem = mlp((5, 4, 3), data=digits())
    gens = [seeded(seed) for seed in range(3)]
    theta = torch.stack([problem.init(2, gen).double() for gen in gens])
    batches = [list(problem.stream(2, 3, gen)) for gen in gens]
    merged = [map_state(lambda *leaves: torch.cat(leaves), *(own[step] for own in batches)) for step in range(3)]
    replicas = Replicas(policies)
    together = unroll(replicas.step, problem, theta, replicas.init_state(theta), merged, objective="log")
    together.backward()
    for row, policy in enumerate(policies):
        alone = unroll(policy.step, problem, theta[row], policy.init_state(theta[row]), batches[row], objective="log")
        alone.backward()
        assert torch.allclose(together.theta[row], alone.theta)
        for name, parameter in policy.named_parameters():
            assert torch.allclose(replicas.parameters[name].grad[row], parameter.grad, atol=1e-12)  # type: ignore[index, arg-type]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_meta_training_learns_and_goes_on_where_it_stopped(optimizer: str) -> None:
    problem = mlp((5, 4, 3), data=digits(dtype=torch.float32))
    cfg = MetaConfig(windows=6, unroll=5, depth=3, instances=2, lr=1e-2, spread=1.0, optimizer=optimizer)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = RNNprop(hidden=(4,), pre=0, lr=0.05)
    before = copy.deepcopy(policy)
    whole = meta_train(policy, problem, cfg, seeded())
    first = MetaTrainer(copy.deepcopy(before), problem, cfg, seeded())
    for _ in range(4):
        first.window()
    saved = copy.deepcopy(first.state_dict())
    second = MetaTrainer(before, problem, cfg, seeded(99))
    second.load_state_dict(saved)
    while second.done < cfg.windows:
        second.window()
    assert second.history == whole
    for a, b in zip(second.policy.parameters(), policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_meta_training_improves() -> None:
    problem = Quadratic(4)
    torch.manual_seed(0)
    policy = RNNprop(hidden=(4,), pre=0, lr=0.05)
    history = meta_train(policy, problem, MetaConfig(windows=40, unroll=10, depth=1, instances=4, lr=2e-2), seeded())
    assert history[-1]["objective"] < 0.6 * history[0]["objective"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaConfig(windows=0), r"windows = 0: input should be greater than or equal to 1"),
        (lambda: MetaConfig(optimizer="lion"), r"optimizer = 'lion': input should be 'adam' or 'sgd'"),  # type: ignore[arg-type]
        (lambda: MetaConfig(objective="log"), "the boundary post belongs to the objective sum"),
        (lambda: MetaConfig(spread=-1), r"spread = -1: input should be greater than or equal to 0"),
        (lambda: window(small(), Quadratic(2, dtype=T64), objective="log", boundary="post"), "belongs to the objective sum"),
        (lambda: window(small(), Quadratic(2, dtype=T64), boundary="after"), "there is no boundary after"),
        (lambda: window(small(), Quadratic(2, dtype=T64), objective="mean"), "there is no objective mean"),
        (lambda: window(small(), Quadratic(2, dtype=T64), steps=0), "at least one batch"),
    ],
)
def test_refuses(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("make", [rnnprop, lambda: L2ODM((4,)), L2OScale], ids=["rnnprop", "l2o-dm", "l2o-scale"])
def test_windows_at_once_are_those_of_each_trainer(make: Callable[[], Policy], spread: float) -> None:
    cfg = MetaConfig(windows=4, unroll=3, depth=2, instances=2, lr=1e-2, spread=spread)
    problem = mlp((5, 4, 3), data=digits(dtype=torch.float32))

    def trainers() -> list[MetaTrainer]:
        made = []
        for seed in range(3):
            torch.manual_seed(seed)
            made.append(MetaTrainer(make(), problem, cfg, seeded(seed)))
        return made

    alone, together = trainers(), trainers()
    for _ in range(cfg.windows):
        rows = [trainer.window() for trainer in alone]
        for one, same in zip(rows, windows_at_once(together), strict=True):
            assert one == pytest.approx(same, rel=1e-4)
    for trainer, other in zip(alone, together, strict=True):
        assert len(other.history) == other.done == cfg.windows
        assert torch.equal(trainer.gen.get_state(), other.gen.get_state())
        for name, value in trainer.policy.state_dict().items():
            assert torch.allclose(value, other.policy.state_dict()[name], rtol=1e-3, atol=1e-5), name


def test_trainers_of_other_kinds_are_refused() -> None:
    cfg, problem = MetaConfig(windows=2, unroll=2, depth=1), Quadratic(3)
    one = MetaTrainer(rnnprop("rp-small"), problem, cfg, seeded())
    for policy, settings in ((rnnprop(), cfg), (rnnprop("rp-small"), MetaConfig())):
        with pytest.raises(ValueError, match="the same settings, and policies of one kind"):
            windows_at_once([one, MetaTrainer(policy, problem, settings, seeded())])


def test_a_state_of_meta_training_is_a_snapshot_that_several_can_go_on_from() -> None:
    problem = mlp((5, 4, 3), data=digits(dtype=torch.float32))
    cfg = MetaConfig(windows=8, unroll=5, depth=3, instances=2, lr=1e-2, spread=1.0)

    def trainer() -> MetaTrainer:
        torch.manual_seed(0)
        return MetaTrainer(RNNprop(hidden=(4,), pre=0, lr=0.05), problem, cfg, seeded())

    first = trainer()
    for _ in range(4):
        first.window()
    saved = first.state_dict()
    rows = [first.window() for _ in range(3)]
    for other in (trainer(), trainer()):
        other.load_state_dict(saved)
        assert [other.window() for _ in range(3)] == rows
        assert len(other.history) == 7


class Spoils(Policy):
    """Gradient descent whose update of instance 1 is not a number at one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.weight, self.at, self.lr = torch.nn.Parameter(torch.tensor(1.0)), at, 1.0

    def init_state(self, theta: Tensor, layout: object = None) -> dict[str, Tensor]:
        return {"step": torch.zeros(())}

    def step(self, g: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        bad = torch.zeros_like(g, dtype=torch.bool)
        bad[1] = bool(state["step"] == self.at)
        return torch.where(bad, torch.nan, -0.01 * self.weight * g), {"step": state["step"] + 1}


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("at", [1, 3])
def test_an_update_that_is_no_number_is_not_made_and_marks_its_instance(at: int, second_order: bool) -> None:
    problem, policy = Quadratic(3), Spoils(at)
    theta = problem.init(3, seeded()) + 1
    batches = list(problem.stream(3, 4, seeded()))
    window = unroll(policy.step, problem, theta, policy.init_state(theta), batches, objective="log", second_order=second_order)
    assert window.valid.tolist() == [True, False, True]
    assert window.theta.isfinite().all()
    short = unroll(
        policy.step, problem, theta, policy.init_state(theta), batches[: at + 1], objective="log", second_order=second_order
    )
    torch.testing.assert_close(window.theta[1], short.theta[1])


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("boundary", ["post", "pre"])
def test_a_boundary_loss_that_diverges_spoils_its_own_instance_alone(boundary: str, second_order: bool) -> None:
    theta = torch.tensor([[-1.0, 1.0], [2.0, 1.0], [-1.0, 2.0]])
    policy = Spoils(at=99)

    class Ends(Quadratic):
        def loss(self, theta: Tensor, batch: Batch) -> Tensor:
            return theta.square().sum() * torch.where(batch[1][0] * theta[0] > 0, torch.inf, 1.0)

    problem = Ends(2)
    drawn = list(problem.stream(3, 4, seeded()))
    quiet = [(batch[0], torch.zeros_like(batch[1]), *batch[2:]) for batch in drawn[:3]]
    loud = (drawn[3][0], torch.ones_like(drawn[3][1]), *drawn[3][2:])
    window = unroll(
        policy.step,
        problem,
        theta,
        policy.init_state(theta),
        [*quiet, loud],
        boundary=boundary,  # type: ignore[arg-type]
        second_order=second_order,
    )
    window.backward()
    assert window.valid.tolist() == [True, False, True]
    assert window.objective.isfinite().all()
    assert policy.weight.grad is not None
    if not second_order:
        assert policy.weight.grad.isfinite()
    with torch.no_grad():
        alone = unroll(
            policy.step,
            problem,
            theta[[0, 2]],
            policy.init_state(theta),
            [tuple(part[[0, 2]] for part in batch) for batch in [*quiet, loud]],
            boundary=boundary,  # type: ignore[arg-type]
        )
    torch.testing.assert_close(window.objective[[0, 2]], alone.objective)


def test_replicas_observe_with_their_own_numbers() -> None:
    policies = []
    for seed in range(3):
        torch.manual_seed(seed)
        policies.append(L2OScale((4, 3, 3)))
    replicas = Replicas(policies)
    layout = Layout.of([(2, 3)])
    theta = torch.randn(3, 2, 6, generator=seeded())
    g = torch.randn(3, 2, 6, generator=seeded(1))
    before = replicas.init_state(theta, layout)
    after = replicas.observe(g, before)
    for r, policy in enumerate(policies):
        own = policy.observe(g[r], policy.init_state(theta[r], layout))
        map_state(lambda found, told, r=r: torch.testing.assert_close(found[r], told), after, own)
