"""Meta-training of students: gradients against autograd, methods against each other, replicates, resuming, the optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.l2o import Adam, Examples, Policy, mlp, module_optimizee, quadratic, save_policy
from atlas.l2o.optimizees import Optimizee
from atlas.methods.optimizer_amalgamation import (
    AdversarialWeightNoise,
    AmalgamatedOptimizer,
    ChoiceConfig,
    ChoicePolicy,
    Curriculum,
    RandomWeightNoise,
    Student,
    Trainer,
    TrainerConfig,
    amalgamate,
    distill,
    load,
    make_pool,
    train_choice,
)
from atlas.methods.optimizer_amalgamation.noise import Perturbation
from atlas.methods.optimizer_amalgamation.scale import L2OScale
from atlas.methods.optimizer_amalgamation.teachers import EPS

T64 = torch.float64
SHORT = Curriculum(
    depth=(1, 2),
    validation_depth=(1, 1),
    imitation=(0.2, 0.1),
    resets=(2, 1),
    unroll=3,
    fixed=True,
    validation_resets=0,
    warmup=0,
)
PLAIN = TrainerConfig(instances=2, lr=1e-2, spread=0.0)
LRS = {"adam_ema": 0.05, "rmsprop_ema": 0.02}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(act: str = "tanh") -> Optimizee:
    gen = seeded(3)
    splits = {
        name: (torch.randn(24, 5, generator=gen, dtype=T64), torch.randint(3, (24,), generator=gen)) for name in ("train", "val")
    }
    return _Double(mlp((5, 4, 3), act, data=Examples(splits, 8)))  # type: ignore[arg-type]


class _Double(Optimizee):
    """The same optimizee with starts in double precision."""

    def __init__(self, inner: Optimizee) -> None:
        self.inner, self.name, self.shapes = inner, inner.name, inner.shapes
        self.init = lambda n, gen: inner.init(n, gen).double()  # type: ignore[method-assign]
        self.sample, self.stream, self.loss = inner.sample, inner.stream, inner.loss  # type: ignore[method-assign]
        self.losses, self.evaluate = inner.losses, inner.evaluate  # type: ignore[method-assign]

    def init(self, n, gen):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    sample = loss = evaluate = init


def student(seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Student((4, 3)).double()


def trainer(
    method: str = "mean", *, seeds: tuple[int, ...] = (5,), teachers: int = 2, curriculum: Curriculum = SHORT, **options
) -> Trainer:  # type: ignore[no-untyped-def]
    noise = options.pop("noise", None)
    pool = make_pool("small", LRS)[:teachers]
    cfg = TrainerConfig.chosen(PLAIN, **options)
    starts = [student(seed) for seed in seeds]
    return Trainer(problem(), starts, pool, curriculum, cfg, seeds, method, noise)  # type: ignore[arg-type]


def gradient(run: Trainer) -> dict[str, Tensor]:
    """The meta-gradient of the first window."""
    run.meta_optimizer.step = lambda gradients, active: []  # type: ignore[method-assign]
    run.step()
    return {name: value.grad.clone() for name, value in run.trainable.items() if value.grad is not None}


def by_autograd(method: str, second_order: bool, alpha: float = 0.2, steps: int = 3) -> dict[str, Tensor]:
    """The first window of ``trainer()`` as one graph, written from the formulas."""
    task, policy, gen = problem(), student(5), seeded(5)
    pool = make_pool("small", LRS)
    theta = task.init(2, gen)
    batches = list(task.stream(2, steps, gen))
    q, state, start = theta.clone().requires_grad_(), policy.init_state(theta), theta
    others = [theta, theta]
    states = [member.init_state(theta) for member in pool]
    total = torch.zeros((), dtype=T64)
    for batch in batches:
        losses = task.losses(q, batch)
        meta = (losses + 1e-10).log() - (task.losses(start, batch) + 1e-10).log()
        (g,) = torch.autograd.grad(losses.sum(), q, create_graph=True)
        update, state = policy.step(g if second_order else g.detach(), state)
        q = q + update
        distances = []
        for place, member in enumerate(pool):
            moved, states[place] = member.step(task.gradients(others[place], batch)[1], states[place])
            others[place] = others[place] + moved
            half = 0.5 * (q - others[place]).square().sum(-1)
            distances.append((half + EPS).log() - torch.tensor(float(q.shape[-1]), dtype=T64).log())
        apart = torch.stack(distances)
        imitation = apart.mean(0) if method == "mean" else apart.amax(0)
        total = total + (meta + alpha * imitation).mean() / steps
    names = [name for name, _ in policy.named_parameters()]
    return dict(zip(names, torch.autograd.grad(total, list(policy.parameters())), strict=True))


@pytest.mark.parametrize("method", ["mean", "minmax"])
@pytest.mark.parametrize("second_order", [False, True])
def test_meta_gradient_is_that_of_the_formulas(method: str, second_order: bool) -> None:
    ours = gradient(trainer(method, second_order=second_order))
    theirs = by_autograd(method, second_order)
    for name, value in theirs.items():
        assert torch.allclose(ours[name][0], value, atol=1e-13, rtol=1e-9), name


def test_without_imitation_all_methods_are_one() -> None:
    silent = Curriculum.chosen(SHORT, imitation=(0.0, 0.0))
    found = [gradient(trainer(method, curriculum=silent)) for method in ("mean", "minmax", "choice")]
    alone = gradient(trainer("mean", curriculum=silent, teachers=0))
    for other in found:
        assert all(torch.equal(other[name], alone[name]) for name in alone)


def test_one_teacher_makes_all_methods_one() -> None:
    found = [gradient(trainer(method, teachers=1)) for method in ("mean", "minmax", "choice")]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


def test_switch_takes_one_loss_at_a_time() -> None:
    always = Curriculum.chosen(SHORT, imitation=(1.0, 1.0))
    both = gradient(trainer(curriculum=always))
    only = gradient(trainer(curriculum=always, il_mode="switch"))
    never = gradient(trainer(curriculum=Curriculum.chosen(SHORT, imitation=(0.0, 0.0)), il_mode="switch"))
    assert any(not torch.allclose(both[name], only[name]) for name in both)
    # the switch draws a number before the batches, so only the structure is compared: imitation alone has no meta part
    assert any(not torch.allclose(never[name], only[name]) for name in only)


@pytest.mark.parametrize("noise", [None, RandomWeightNoise(1e-2), AdversarialWeightNoise(1e-2)])
def test_replicates_are_separate_trainings(noise) -> None:  # type: ignore[no-untyped-def]
    together = trainer("minmax", seeds=(5, 6, 7), noise=noise)
    while not together.done:
        together.step()
    for place, seed in enumerate((5, 6, 7)):
        alone = trainer("minmax", seeds=(seed,), noise=noise)
        while not alone.done:
            alone.step()
        for name, value in alone.trainable.items():
            assert torch.allclose(together.trainable[name][place], value[0], atol=1e-9), name


def test_noise_changes_training_and_no_noise_does_not() -> None:
    clean = gradient(trainer())
    for noise, same in ((RandomWeightNoise(0.0), True), (AdversarialWeightNoise(0.0), True), (RandomWeightNoise(0.05), False)):
        found = gradient(trainer(noise=noise))
        assert all(torch.equal(found[name], clean[name]) for name in clean) is same


def test_adversary_raises_the_loss() -> None:
    def total(noise) -> float:  # type: ignore[no-untyped-def]
        run = trainer(noise=noise, curriculum=Curriculum.chosen(SHORT, imitation=(0.0, 0.0)))
        return run.step()[0]["meta"]

    assert total(AdversarialWeightNoise(1e-3)) > total(None)


def test_spread_of_zero_is_no_scaling_and_more_is() -> None:
    one = trainer(spread=0.0)
    one.step()
    assert "scale" not in one.replicates[0].carried
    scaled = trainer(spread=1.0)
    scaled.step()
    scale = scaled.replicates[0].carried["scale"]
    assert 0.3 < float(scale.min()) < float(scale.max()) < 2.8


def test_warm_up_is_sgd_and_leaves_cells_alone() -> None:
    warm = Curriculum.chosen(SHORT, warmup=1, unroll=4)
    run = trainer(curriculum=warm, spread=0.7)
    run._draw(0)
    carried = run.replicates[0].carried
    assert all(bool((leaf == 0).all()) for pair in carried["state"]["cells"] for leaf in pair)
    assert bool((carried["state"]["v"] > 0).any())
    task, gen = problem(), seeded(5)
    theta = task.init(2, gen)
    torch.rand(theta.shape, generator=gen, dtype=T64)  # the scales
    for batch in task.stream(2, 4, gen):
        theta = theta - 0.05 * task.gradients(theta, batch)[1]
    assert torch.allclose(carried["theta"] * carried["scale"], theta)
    assert torch.allclose(carried["teachers"][0], theta)


def test_curriculum_runs_validates_and_keeps_the_best() -> None:
    adaptive = Curriculum(
        depth=(1, 2),
        validation_depth=(2, 2),
        imitation=(0.1, 0.05),
        resets=(1, 1),
        unroll=3,
        min_periods=1,
        chances=1,
        validation_resets=1,
        warmup=0,
    )
    run = trainer("minmax", seeds=(5, 6), curriculum=adaptive, longest=4, lr=0.3)
    while not run.done:
        run.step()
    validated = [row["validation"] for row in run.history if "validation" in row and row["replicate"] == 0]
    trace = run.replicates[0].progress.trace
    assert [row[4] for row in trace] == validated
    last = [row[4] for row in trace if row[0] == 1]
    run.replicates[0].progress.stage = 1
    assert run.validate(0) == pytest.approx(min(last))


@pytest.mark.parametrize("noise", [None, RandomWeightNoise(1e-2)])
def test_training_goes_on_where_it_stopped(noise) -> None:  # type: ignore[no-untyped-def]
    whole, first, second = (trainer("minmax", seeds=(5, 6), noise=noise) for _ in range(3))
    while not whole.done:
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    while not second.done:
        second.step()
    assert second.history == whole.history
    assert all(torch.equal(second.trainable[name], value) for name, value in whole.trainable.items())


@pytest.mark.parametrize("method", ["mean", "minmax", "choice"])
def test_amalgamate(method: str) -> None:
    cfg = ChoiceConfig(hidden=(3,), schedule=Curriculum.chosen(SHORT, imitation=(0.0, 0.0)), trainer=PLAIN)
    options = {"student": Student((3,)), "schedule": SHORT, "replicates": 2, "trainer": PLAIN, "choice": cfg}
    result, again = (
        amalgamate(quadratic(4), make_pool("small", LRS), method=method, gen=seeded(), **options)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert len(result.students) == 2
    assert not any(p.requires_grad for one in result.students for p in one.parameters())
    assert len(result.history) == 2 * 4
    assert isinstance(result.choice, ChoicePolicy) is (method == "choice")
    assert again.history == result.history
    if method == "minmax":
        assert all(row["wins_0"] + row["wins_1"] == pytest.approx(1) for row in result.history)


@pytest.mark.parametrize(("named", "expected"), [(None, True), (True, True), (False, False)])
def test_the_order_is_that_of_the_trainer_unless_named(
    named: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    make = distill.Trainer
    monkeypatch.setattr(distill, "Trainer", lambda *given: orders.append(given[4].second_order) or make(*given))
    options = {} if named is None else {"second_order": named}
    second = TrainerConfig.chosen(PLAIN, second_order=True)
    given = {"student": Student((3,)), "schedule": SHORT, "replicates": 1, "trainer": second, **options}
    amalgamate(quadratic(4), make_pool("small", LRS), method="mean", gen=seeded(), **given)  # type: ignore[arg-type]
    assert orders == [expected]


def test_choice_policies_learn() -> None:
    curriculum = Curriculum(
        depth=(1,), validation_depth=(1,), imitation=(0.0,), resets=(30,), unroll=8, fixed=True, validation_resets=0, warmup=0
    )
    pool = make_pool("small", {"adam_ema": 0.02, "rmsprop_ema": 1e-5})
    task = quadratic(4)
    policy = train_choice(
        task, pool, ChoiceConfig(hidden=(4,), schedule=curriculum, trainer=TrainerConfig.chosen(PLAIN, lr=3e-2)), seeded()
    )
    history = [torch.randn(2, 4, generator=seeded(t)) for t in range(5)]
    weights = policy.weights(history)
    assert float(weights[-1, 0]) > 0.6  # the member that gets somewhere


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pool": []}, ValueError, "at least 2 members, not 0"),
        ({"pool": make_pool("small")[:1]}, ValueError, "at least 2 members, not 1"),
        ({"pool": [*make_pool("small"), Student((2,))]}, ValueError, "freeze it first"),
        ({"method": "median"}, ValueError, "there is no method median"),
        ({"replicates": 0}, ValueError, "replicates must be at least 1"),
        ({"memory_limit_gib": 1e-6}, MemoryError, "about .* GiB, more than the limit"),
    ],
)
def test_amalgamate_refuses(change, error, message: str) -> None:  # type: ignore[no-untyped-def]
    options = {"pool": make_pool("small"), "method": "mean", "schedule": SHORT, "gen": seeded(), **change}
    with pytest.raises(error, match=message):
        amalgamate(quadratic(4), options.pop("pool"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"spread": -1.0}, {"instances": 0}, {"il_mode": "both"}])
def test_trainer_refuses(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=rf"^{next(iter(options))} = \S+: input should be"):
        TrainerConfig(**options)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def test_drop_in_optimizer_warms_up_then_equals_the_functional_updates(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    policy, model = Student((4,)), Net()
    save_policy(tmp_path / "student.safetensors", policy)
    optimizer = load(tmp_path / "student.safetensors", warmup_steps=2, warmup_lr=0.1)(model.parameters())
    assert isinstance(optimizer, AmalgamatedOptimizer)
    gen = seeded(1)
    data = Examples({"train": (torch.randn(24, 5, generator=gen), torch.randint(3, (24,), generator=gen))}, 8)
    task = module_optimizee(Net(), functional.cross_entropy, data)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])[None]
    state = policy.init_state(theta)
    for step, batch in enumerate(task.stream(1, 6, seeded())):
        g = task.gradients(theta, batch)[1]
        if step < 2:
            theta, state = theta - 0.1 * g, policy.observe(g, state)
        else:
            update, state = policy.step(g, state)
            theta = (theta + update).detach()
        optimizer.zero_grad()
        functional.cross_entropy(model(batch[0][0]), batch[1][0]).backward()
        optimizer.step()
    assert torch.allclose(torch.cat([p.detach().flatten() for p in model.parameters()]), theta[0], atol=1e-6)
    again = load(tmp_path / "student.safetensors", warmup_steps=2)(copy.deepcopy(model).parameters())
    again.load_state_dict(optimizer.state_dict())
    for options in ({"warmup_steps": -1}, {"warmup_lr": 0.0}):
        with pytest.raises(ValueError, match="warmup"):
            AmalgamatedOptimizer(Net().parameters(), policy, **options)  # type: ignore[arg-type]


def test_a_state_is_a_snapshot_that_several_can_go_on_from() -> None:
    first, *others = (trainer("minmax", seeds=(5, 6)) for _ in range(3))
    for _ in range(3):
        first.step()
    assert not first.done
    saved = first.state_dict()
    while not first.done:
        first.step()
    rows = list(first.history)
    for other in others:
        other.load_state_dict(saved)
        while not other.done:
            other.step()
        assert other.history == rows


@pytest.mark.parametrize("replicates", [1, 2])
@pytest.mark.parametrize("noise", [None, RandomWeightNoise(1e-3), AdversarialWeightNoise(1e-3)])
def test_a_student_may_have_scalars_to_train(replicates: int, noise: Perturbation | None) -> None:
    data = Examples({name: (torch.randn(32, 6), torch.randint(0, 3, (32,))) for name in ("train", "val")}, 16)
    warm = Curriculum.chosen(SHORT, warmup=1)
    result = amalgamate(
        mlp((6, 5, 3), data=data),
        make_pool("small"),
        method="mean",
        student=L2OScale((4, 3, 3)),
        schedule=warm,
        replicates=replicates,
        noise=noise,
        gen=seeded(),
        trainer=TrainerConfig(instances=2, longest=2),
        progress=False,
    )
    assert len(result.students) == replicates


def test_noise_on_a_scalar_is_its_replicates_own() -> None:
    weight = torch.tensor([1.0, 100.0])
    torch.testing.assert_close(RandomWeightNoise(0.5).deviation(weight), torch.tensor([0.5, 50.0]))


@pytest.mark.parametrize("student", [Student().requires_grad_(False), Adam(0.1)])
def test_a_student_with_nothing_to_train_is_refused(student: Policy) -> None:
    with pytest.raises(ValueError, match="has nothing to train"):
        amalgamate(problem(), make_pool("small"), method="mean", student=student, schedule=SHORT, gen=seeded(), trainer=PLAIN)


def test_the_history_tells_of_teachers_that_diverged() -> None:
    class Wild(Policy):
        def init_state(self, theta: Tensor, layout: object = None) -> dict[str, Tensor]:
            return {}

        def step(self, g: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.full_like(g, torch.nan), state

    def rows(teacher: Policy) -> list[dict[str, float]]:
        torch.manual_seed(0)
        return Trainer(
            problem(), [Student((4,)).double()], [teacher, make_pool("small", LRS)[0]], SHORT, PLAIN, [0], "mean"
        ).step()

    assert rows(Wild())[0]["fewest_teachers"] == 1
    assert "fewest_teachers" not in rows(make_pool("small", LRS)[1])[0]
