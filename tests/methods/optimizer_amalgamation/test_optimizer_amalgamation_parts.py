"""Teachers, distances, noise, clipping, choice, curriculum, measures: hand-computed values and invariants."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from atlas.l2o import Adam, Layout, Policy, quadratic
from atlas.methods.optimizer_amalgamation import (
    OFFICIAL_CHOICE,
    PRESETS,
    TEACHERS,
    AdversarialWeightNoise,
    ChoicePolicy,
    Curriculum,
    CurriculumProgress,
    Lesson,
    RandomWeightNoise,
    StackedAdam,
    Student,
    best_log_loss,
    clip_adaptively,
    distance,
    make_pool,
    optimization_stability,
    random_effects,
    teacher,
    teacher_weights,
    tune_lr,
)
from atlas.methods.optimizer_amalgamation.plugin import deviations
from atlas.methods.optimizer_amalgamation.teachers import EPS

T64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_update(policy: Policy, g: Tensor) -> Tensor:
    return policy.step(g, policy.init_state(torch.zeros_like(g)))[0]


# teachers


def test_first_steps_of_the_teachers() -> None:
    g = torch.tensor([[3.0, -2.0, 0.5]], dtype=T64)
    sign, eta = g.sign(), 0.1
    assert torch.allclose(first_update(teacher("adam_ema", eta), g), -eta * sign, atol=1e-8)
    assert torch.allclose(first_update(teacher("momentum_ema", eta), g), -0.1 * eta * g)
    assert torch.allclose(first_update(teacher("rmsprop_ema", eta), g), -eta * sign / math.sqrt(0.1), atol=1e-8)
    agree = math.tanh(1 / math.sqrt(0.001)) * math.tanh(0.1 / math.sqrt(0.001))
    assert agree == pytest.approx(0.99642, abs=1e-5)
    assert torch.allclose(first_update(teacher("powersign_ema", eta), g), -eta * math.exp(agree) * g, atol=1e-7)
    assert torch.allclose(first_update(teacher("addsign_ema", eta), g), -eta * (1 + agree) * g, atol=1e-7)
    assert torch.allclose(first_update(teacher("sgd_ema", eta), g), -eta * g)


def test_adam_without_bias_correction_is_smaller_in_the_end() -> None:
    g = torch.ones(1, 1, dtype=T64)
    ours, textbook = teacher("adam_ema", 0.1), Adam(0.1, eps=0.0)
    states = [policy.init_state(g) for policy in (ours, textbook)]
    for _ in range(12000):
        (first, states[0]), (second, states[1]) = ours.step(g, states[0]), textbook.step(g, states[1])
    assert float(first / second) == pytest.approx(math.sqrt(1 - 0.999) / (1 - 0.9), rel=1e-4)


def test_pools() -> None:
    assert [type(member).__name__ for member in make_pool("small")] == ["AdamEma", "RMSpropEma"]
    assert len(make_pool("large")) == 6
    assert [member.lr for member in make_pool("large", {"sgd_ema": 0.7})] == [0.005, 0.005, 0.7, 0.5, 0.1, 0.1]
    assert make_pool("large", pool_lr="official")[2].lr == OFFICIAL_CHOICE["sgd_ema"] == 2.0
    assert set(PRESETS) == set(OFFICIAL_CHOICE) == set(TEACHERS)


@pytest.mark.parametrize("pool", ["small", "large"])
def test_rmsprop_of_the_official_choice_pools_has_their_larger_epsilon(pool: Literal["small", "large"]) -> None:
    """ε counts where gradients are small: η g/√(.1 g² + ε) with 1e-7 there, 1e-10 for teachers and tuned pools."""
    g = torch.tensor([[1e-4]], dtype=T64)
    for members, eps in ((make_pool(pool), 1e-10), (make_pool(pool, pool_lr="official"), 1e-7)):
        (rmsprop,) = [member for member in members if isinstance(member, TEACHERS["rmsprop_ema"])]
        assert float(first_update(rmsprop, g)) == pytest.approx(-0.005 * 1e-4 / math.sqrt(0.1e-8 + eps))
    with pytest.raises(ValueError, match="eps must be positive"):
        TEACHERS["rmsprop_ema"](0.1, eps=0.0)  # type: ignore[call-arg]


def test_student_is_bounded_and_starts_as_keras() -> None:
    torch.manual_seed(0)
    student = Student((5, 4)).double()
    g = torch.randn(2, 6, generator=seeded(), dtype=T64)
    state = student.init_state(torch.zeros_like(g))
    for _ in range(3):
        update, state = student.step(g, state)
    assert float(update.abs().max()) <= 0.1
    cell = student.cells.cells[0]
    bias = cell.bias_ih + cell.bias_hh
    assert bias.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
    recurrent = cell.weight_hh
    assert torch.allclose(recurrent.T @ recurrent, torch.eye(5, dtype=T64), atol=1e-6)
    order = torch.randperm(6)
    assert torch.allclose(first_update(student, g[:, order]), first_update(student, g)[:, order])


# distances


def test_distance_of_equal_trajectories_and_symmetry() -> None:
    q, other = torch.randn(2, 3, 7, generator=seeded(), dtype=T64)
    value, slope = distance(q - q)
    assert torch.allclose(value, torch.full((3,), math.log(EPS) - math.log(7), dtype=T64))
    assert bool((slope == 0).all())
    assert torch.equal(distance(q - other)[0], distance(other - q)[0])


@pytest.mark.parametrize("huber", [0.0, 0.3])
def test_distance_slope_is_its_derivative(huber: float) -> None:
    difference = torch.randn(2, 5, generator=seeded(), dtype=T64).requires_grad_()
    value, slope = distance(difference, huber)
    (wanted,) = torch.autograd.grad(value.sum(), difference)
    assert torch.allclose(slope, wanted)


def test_huber_by_hand() -> None:
    value, _ = distance(torch.tensor([[0.2, -2.0]], dtype=T64), 0.5)
    assert float(value) == pytest.approx(math.log(0.02 + 0.5 * (2.0 - 0.25) + EPS) - math.log(2))


def test_amalgamations_of_distances() -> None:
    distances = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=T64)
    alive = torch.ones_like(distances, dtype=torch.bool)

    def total(values: Tensor, method: str, living: Tensor) -> Tensor:
        return (teacher_weights(values, method, living) * values).sum(0)  # type: ignore[arg-type]

    mean, largest = total(distances, "mean", alive), total(distances, "minmax", alive)
    assert mean.tolist() == [0.75, 0.5]
    assert largest.tolist() == [1.0, 3.0]
    assert bool((largest >= mean).all())
    twice, both = torch.cat([distances, distances]), torch.cat([alive, alive])
    assert torch.equal(total(twice, "mean", both), mean)
    assert torch.equal(total(twice, "minmax", both), largest)
    for method in ("mean", "minmax", "choice"):
        assert torch.equal(total(distances[:1], method, alive[:1]), distances[0])
    dead = torch.tensor([[True, False], [False, False]])
    assert teacher_weights(distances, "mean", dead).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert teacher_weights(distances, "minmax", dead).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def lesson(method: str = "minmax", thetas: Tensor | None = None, scale: Tensor | None = None) -> tuple[Lesson, Tensor]:
    problem = quadratic(4, dtype=T64)
    theta = problem.init(3, seeded())
    pool = make_pool("small")
    starts = theta.expand(2, *theta.shape).clone() if thetas is None else thetas
    states = [member.init_state(theta) for member in pool]
    return Lesson(pool, starts, states, problem, method, torch.tensor(0.5, dtype=T64), 10, scale), theta  # type: ignore[arg-type]


def test_minmax_follows_the_farthest_teacher_only() -> None:
    one, theta = lesson()
    q = torch.randn_like(theta)
    value, slope = one(0, q, one.problem.sample(3, seeded()))
    distances, slopes = distance(q - one.thetas)
    farthest = distances.argmax(0)
    rows = torch.arange(3)
    assert torch.allclose(value, 0.5 * distances[farthest, rows] / 10)
    assert torch.allclose(slope, 0.5 * slopes[farthest, rows] / 10)
    assert one.wins.sum(0).tolist() == [1.0, 1.0, 1.0]
    middle = one.thetas.mean(0)
    near, _ = distance(middle - one.thetas)
    assert torch.allclose(near[0], near[1])


def test_matched_trajectory_has_no_pull() -> None:
    probe, theta = lesson("mean")
    batch = probe.problem.sample(3, seeded())
    probe(0, theta, batch)
    one, _ = lesson("mean")
    alone = Lesson(one.teachers[:1], one.thetas[:1], one.states[:1], one.problem, "mean", one.weight, 10)
    value, slope = alone(0, probe.thetas[0], batch)
    assert bool((slope == 0).all())
    assert torch.allclose(value, torch.full((3,), 0.05 * (math.log(EPS) - math.log(4)), dtype=T64))


def test_teachers_do_not_see_the_scale() -> None:
    scale = torch.full((3, 4), 5.0, dtype=T64)
    plain, theta = lesson()
    scaled, _ = lesson(scale=scale)
    for index in range(3):
        batch = plain.problem.sample(3, seeded())
        plain(index, theta, batch)
        scaled(index, theta / scale, batch)
    assert torch.equal(plain.thetas, scaled.thetas)


def test_a_teacher_that_diverged_is_dropped_and_all_of_them_leave_nothing() -> None:
    one, theta = lesson("mean")
    one.thetas[0, 1] = torch.inf
    again = Lesson(one.teachers, one.thetas, one.states, one.problem, "mean", one.weight, 10)
    value, slope = again(0, theta, one.problem.sample(3, seeded()))
    assert bool(value.isfinite().all())
    assert again.alive[:, 1].tolist() == [False, True]
    one.thetas[:, 2] = torch.nan
    gone = Lesson(one.teachers, one.thetas, one.states, one.problem, "minmax", one.weight, 10)
    value, slope = gone(0, theta, one.problem.sample(3, seeded()))
    assert float(value[2]) == 0
    assert bool((slope[2] == 0).all())


# noise and clipping


def stacked() -> dict[str, Tensor]:
    gen = seeded(4)
    return {"a": torch.randn(3, 40, 50, generator=gen), "b": 0.1 * torch.randn(3, 30, generator=gen)}


def test_no_noise_is_clean() -> None:
    numbers = stacked()
    for name, value in RandomWeightNoise(0.0).draw(numbers, [seeded(i) for i in range(3)]).items():
        assert value is numbers[name]
    shift = AdversarialWeightNoise(0.0).find(numbers, lambda moved: moved)
    assert all(bool((value == 0).all()) for value in shift.values())


def test_random_noise_has_the_deviation_it_says() -> None:
    numbers = stacked()
    drawn = RandomWeightNoise(0.01).draw(numbers, [seeded(i) for i in range(3)])
    for replicate in range(3):
        rms = float(numbers["a"][replicate].square().mean().sqrt())
        assert float((drawn["a"] - numbers["a"])[replicate].std()) == pytest.approx(0.01 * rms, rel=0.05)
    absolute = RandomWeightNoise(0.2, relative=False).draw(numbers, [seeded(i) for i in range(3)])
    assert float((absolute["a"] - numbers["a"]).std()) == pytest.approx(0.2, rel=0.05)
    alone = RandomWeightNoise(0.01).draw({"a": numbers["a"][1:2]}, [seeded(1)])
    assert torch.equal(alone["a"][0], drawn["a"][1])


def test_adversarial_steps() -> None:
    numbers = stacked()
    gradient = {name: torch.randn(value.shape, generator=seeded(7)) * 1e-3 for name, value in numbers.items()}
    eps = 0.05
    shift = AdversarialWeightNoise(eps).find(numbers, lambda moved: gradient)
    for name, value in shift.items():
        for replicate in range(3):
            wanted = eps * float(numbers[name][replicate].norm())
            assert float(value[replicate].norm()) == pytest.approx(wanted, rel=1e-5)
    clipped = AdversarialWeightNoise(10.0, mode="clip").find(numbers, lambda moved: gradient)
    assert all(torch.equal(clipped[name], gradient[name]) for name in numbers)
    small = AdversarialWeightNoise(1e-6, mode="clip").find(numbers, lambda moved: gradient)
    assert float(small["a"][0].norm()) == pytest.approx(1e-6 * float(numbers["a"][0].norm()), rel=1e-4)
    two = AdversarialWeightNoise(eps, steps=2).find(numbers, lambda moved: gradient)
    assert torch.allclose(two["a"], 2 * shift["a"])
    zero = AdversarialWeightNoise(eps).find(numbers, lambda moved: {n: torch.zeros_like(v) for n, v in moved.items()})
    assert all(bool((value == 0).all()) for value in zero.values())


def test_adaptive_clipping() -> None:
    weight = stacked()["a"]
    gradient = torch.randn(weight.shape, generator=seeded(9))
    gradient[0] *= 1e-4
    clipped = clip_adaptively(gradient, weight)
    assert torch.equal(clipped[0], gradient[0])
    for replicate in (1, 2):
        assert float(clipped[replicate].norm()) == pytest.approx(0.1 * float(weight[replicate].norm()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(clipped[replicate].flatten(), gradient[replicate].flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-5)
    tiny = clip_adaptively(gradient, torch.zeros_like(weight))
    assert float(tiny[1].norm()) == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_stacked_adam_is_adam_per_replicate() -> None:
    weights = {"w": torch.randn(2, 3, 4, generator=seeded(), dtype=T64).requires_grad_()}
    alone = torch.nn.Parameter(weights["w"][0].detach().clone())
    adam = torch.optim.Adam([alone], lr=0.01)
    ours = StackedAdam(weights, lr=0.01, clip=0.0)
    for turn in range(4):
        gradient = torch.randn(2, 3, 4, generator=seeded(turn), dtype=T64)
        gradient[1] = torch.nan if turn == 2 else gradient[1]
        alone.grad = gradient[0].clone()
        adam.step()
        skipped = ours.step({"w": gradient}, [0, 1] if turn != 1 else [0])
        assert skipped == ([1] if turn == 2 else [])
    assert torch.allclose(weights["w"][0], alone)
    assert ours.steps.tolist() == [4, 2]


# choice


def choice() -> ChoicePolicy:
    torch.manual_seed(0)
    return ChoicePolicy(make_pool("small"), (4,)).double()


def test_choice_with_certain_or_no_opinion() -> None:
    policy, g = choice(), torch.randn(2, 6, generator=seeded(), dtype=T64)
    members = [first_update(member, g) for member in make_pool("small")]
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.copy_(torch.tensor([0.0, 1e9]))
        assert torch.allclose(first_update(policy, g), members[1])
        policy.head.bias.zero_()
        assert torch.allclose(first_update(policy, g), (members[0] + members[1]) / 2)


def test_choice_weights_sum_to_one_and_go_by_tensor() -> None:
    policy = choice()
    history = [torch.randn(3, 6, generator=seeded(t), dtype=T64) for t in range(5)]
    layout = Layout.of([(2, 2), (2,)])
    weights = policy.weights(history, layout)
    assert weights.shape == (5, 2)
    assert torch.allclose(weights.sum(1), torch.ones(5, dtype=T64))
    apart = policy.weights(history, layout, per_tensor=True)
    assert apart.shape == (5, 2, 2)
    assert torch.allclose((apart[:, 0] * 4 + apart[:, 1] * 2) / 6, weights)
    assert policy.weights(torch.stack([g[0] for g in history])).shape == (5, 2)


def test_choice_knows_time_and_ranks() -> None:
    policy = choice()
    state = policy.init_state(torch.zeros(1, 8, dtype=T64), Layout.of([(2, 2), (2,), (1, 1, 1, 2)]))
    assert state["ranks"][0].T.tolist() == [[0, 1, 0]] * 4 + [[1, 0, 0]] * 2 + [[0, 0, 0]] * 2
    assert float(policy.step(torch.ones(1, 8, dtype=T64), state)[1]["step"]) == 1


# curriculum


def run_through(
    curriculum: Curriculum, losses: list[tuple[float, float]], longest: int = 20
) -> tuple[list[str], CurriculumProgress]:
    progress = CurriculumProgress(curriculum, longest)
    return [progress.ended(*loss) for loss in losses], progress


def test_a_stage_lasts_at_least_six_periods() -> None:
    actions, progress = run_through(Curriculum(), [(0.0, -1.0)] * 6)
    assert actions == ["continue"] * 5 + ["advance"]
    assert (progress.stage, progress.period) == (1, 0)


def test_improvement_keeps_a_stage_alive() -> None:
    losses = [(0.0, -float(value)) for value in (1, 1, 1, 2, 2, 2, 2, 2, 2)]
    actions, _ = run_through(Curriculum(), losses)
    assert actions == ["continue"] * 8 + ["advance"]  # the best is period 3; period 8 is five later


def test_a_period_is_repeated_four_times_at_most_and_never_the_very_first() -> None:
    actions, progress = run_through(Curriculum(), [(9.0, 9.0), (0.0, 20.0), *[(0.0, 21.0)] * 4])
    assert actions == ["continue", *["repeat"] * 4, "continue"]
    assert progress.best["0/1"] == [20.0, 0]


def test_a_repeat_that_helps_ends_repeating() -> None:
    actions, progress = run_through(Curriculum(), [(0.0, -2.0), (0.0, -0.5), (0.0, -1.9)])
    assert actions == ["continue", "repeat", "continue"]
    assert progress.best["0/1"] == [-1.9, 1]


def test_a_stages_first_period_compares_its_training_with_the_last_validation() -> None:
    stage = [(0.0, -2.0)] * 6
    repeated, _ = run_through(Curriculum(), [*stage, (-0.9, -5.0)])
    kept, _ = run_through(Curriculum(), [*stage, (-1.1, 5.0)])
    assert (repeated[-1], kept[-1]) == ("repeat", "continue")


def test_the_schedule_of_choice_policies() -> None:
    actions, progress = run_through(Curriculum.choice(), [(0.0, -1.0), (0.0, 0.0), (0.0, -0.2), (0, -1), (0, -1), (0, -1)])
    assert actions == ["advance", "repeat", "advance", "advance", "advance", "finish"]
    assert progress.done
    assert [row[:3] for row in progress.trace][:3] == [[0, 0, 0], [1, 0, 0], [1, 0, 1]]


def test_divergence_is_never_the_best() -> None:
    actions, progress = run_through(Curriculum(), [(0.0, -1.0), (0.0, math.nan), (0.0, -1.0)])
    assert actions == ["continue", "repeat", "continue"]
    assert progress.best["0/1"] == [-1.0, 1]
    restored = CurriculumProgress(Curriculum())
    restored.restore(progress.state())
    assert restored.state() == progress.state()


def test_published_budget() -> None:
    assert Curriculum.paper().windows_at_least() == 6 * 10 * (1 + 2 + 5 + 10) == 1080
    assert Curriculum.paper().unroll == 100


# measures


def test_best_log_loss() -> None:
    V = np.array([[3.0, 2.0, np.nan], [1.0, 4.0, 5.0]])
    assert best_log_loss(V).tolist() == pytest.approx([math.log(2), 0.0])
    assert best_log_loss([5.0, 0.5]) == pytest.approx(math.log(0.5))
    assert best_log_loss(7 * V)[0] == pytest.approx(best_log_loss(V)[0] + math.log(7))


def test_stability_of_smooth_curves_is_zero() -> None:
    assert optimization_stability([2.0] * 20) == pytest.approx(0, abs=1e-12)
    V = np.exp(-0.1 * np.arange(60.0))
    inner = np.log(V)[8:-8]
    from scipy.ndimage import gaussian_filter1d

    assert (np.log(gaussian_filter1d(V, 2.0, mode="nearest"))[8:-8] - inner).std() == pytest.approx(0, abs=1e-3)
    rough = np.exp(np.random.default_rng(0).normal(size=40))
    assert optimization_stability(rough) == pytest.approx(optimization_stability(5 * rough))
    assert optimization_stability(rough) > 0.3


def test_random_effects_recover_what_made_the_data() -> None:
    random = np.random.default_rng(0)
    y = 3 + 0.5 * random.normal(size=(2000, 1)) + 0.2 * random.normal(size=(2000, 10))
    found = random_effects(y)
    assert found.mean == pytest.approx(3, abs=0.05)
    assert found.meta_sd == pytest.approx(0.5, rel=0.05)
    assert found.eval_sd == pytest.approx(0.2, rel=0.05)
    low, high = found.interval(2000)
    assert low < 3 < high
    same = random_effects(np.tile(random.normal(size=5), (4, 1)))
    assert same.meta_sd == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_random_effects_are_not_guessed_from_what_went_wrong(value: float) -> None:
    with pytest.raises(ValueError, match=rf"y\[1, 0\] = {value} is not finite"):
        random_effects([[1.0, 2.0], [value, 2.0]])
    assert all(math.isnan(deviation) for deviation in deviations(torch.tensor([[1.0, 2.0], [value, 2.0]])))


def test_random_effects_by_hand() -> None:
    found = random_effects([[1.0, 3.0], [5.0, 7.0], [3.0, 5.0]])
    assert found.mean == 4
    assert found.eval_sd == pytest.approx(math.sqrt(2))  # MSW = 2
    assert found.meta_sd == pytest.approx(math.sqrt((8 - 2) / 2))  # MSB = 8
    assert found.se == pytest.approx(math.sqrt(8 / 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teacher("adam"), "there is no teacher adam; choose from sgd_ema"),
        (lambda: teacher("sgd_ema", -1.0), "lr must be positive"),
        (lambda: make_pool("huge"), "there is no pool huge"),  # type: ignore[arg-type]
        (lambda: make_pool("small", pool_lr="best"), "there is no pool_lr best"),  # type: ignore[arg-type]
        (lambda: ChoicePolicy(make_pool("small")[:1]), "at least 2 members"),
        (lambda: ChoicePolicy([Student((2,)), *make_pool("small")]), "freeze it first"),
        (lambda: RandomWeightNoise(-1e-3), "eps must not be negative"),
        (lambda: AdversarialWeightNoise(steps=0), "steps must be at least 1"),
        (lambda: AdversarialWeightNoise(mode="fgsm"), "there is no mode fgsm"),  # type: ignore[arg-type]
        (lambda: Curriculum(depth=(1, 2)), "must have one length"),
        (lambda: Curriculum(imitation=(0.1, 0.1, 0.1, -0.1)), r"imitation.3 = -0.1: input should be greater than or equal to 0"),
        (lambda: Curriculum(validation_resets=0), "needs validation"),
        (lambda: StackedAdam({"w": torch.zeros(1, 2)}, lr=0.0), "lr must be positive"),
        (lambda: best_log_loss([1.0, -1.0]), "losses must be positive"),
        (lambda: optimization_stability([1.0, 0.0]), "losses must be positive"),
        (lambda: optimization_stability([1.0], sigma=0), "sigma must be positive"),
        (lambda: random_effects([[1.0, 2.0]]), "variance is undefined"),
        (lambda: random_effects([[1.0], [2.0]]), "variance is undefined"),
        (lambda: tune_lr(lambda lr: teacher("sgd_ema", lr), quadratic(2), [0.1, -0.1]), "positive step sizes"),
        (lambda: tune_lr(lambda lr: teacher("sgd_ema", lr), quadratic(2), [0.1], epochs=0), "at least 1"),
    ],
)
def test_refuses(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_tune_lr_reports_the_table() -> None:
    task = quadratic(3, start=1.0)
    found = tune_lr(lambda lr: teacher("sgd_ema", lr), task, [1e-3, 0.1, 5.0], epochs=1, seeds=2, gen=seeded())
    assert found.lr == 0.1
    assert not found.on_edge
    assert len(found.table) == 3
