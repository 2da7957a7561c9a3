"""Sparse training: what masks keep zero, Flying Bird's updates by hand and brute force, Flying Bird+'s triggers, resuming."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas.methods.sparse_robust import (
    PGD,
    FlyingBird,
    FlyingBirdPlus,
    SparseTraining,
    TopologyUpdate,
    cosine_rate,
    density_of,
    random_masks,
    two_stage_interval,
)
from atlas.nn.convnets import SmallConvNet

ATTACK = PGD(0.1, 0.05, 2)


def random_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallConvNet(5, 1, (8, 12))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def adversarial_backward(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One batch of adversarial training up to the gradients; the data follow from the step."""
    source = random_source(step)
    x, y = torch.rand(16, 1, 8, 8, generator=source), torch.randint(5, (16,), generator=source)
    loss = functional.cross_entropy(model(ATTACK(model, x, y, generator=source)), y)
    optimizer.zero_grad()
    loss.backward()


def assert_masked(wrapped: SparseTraining) -> None:
    for name, weight in wrapped.weights.items():
        outside = ~wrapped.masks[name]
        assert (weight[outside] == 0).all()
        for value in wrapped.optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert (value[outside] == 0).all()


def bird(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options: Any) -> FlyingBird:
    options = {"total_steps": 40, "interval": 2, "density": 0.3, "generator": random_source(9), **options}
    return FlyingBird(model, optimizer or sgd(model), **options)


@pytest.mark.parametrize("make", [sgd, adam])
def test_static_masks_never_drift(make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = make(model)
    masks = random_masks(model, 0.2, generator=random_source())
    wrapped = SparseTraining(model, optimizer, masks)
    assert_masked(wrapped)
    for step in range(6):
        adversarial_backward(model, optimizer, step)
        gradients = [weight.grad.count_nonzero() for weight in wrapped.weights.values()]
        wrapped.step()
        assert_masked(wrapped)
        assert wrapped.density == density_of(masks)
    assert sum(map(int, gradients)) > sum(int(mask.sum()) for mask in masks.values())  # gradients stay dense
    assert wrapped.layer_density["9.weight"] == int(masks["9.weight"].sum()) / masks["9.weight"].numel()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_memory_of_any_type_is_masked(dtype: torch.dtype) -> None:
    """Optimisers of 8 bits keep whole numbers."""
    model = network()
    optimizer = sgd(model)
    wrapped = bird(model, optimizer, growth="random")
    for weight in wrapped.weights.values():
        optimizer.state[weight]["own"] = torch.full_like(weight, 3, dtype=dtype)
    wrapped.apply()
    assert_masked(wrapped)
    wrapped.steps = 1
    assert wrapped._update() is not None
    assert_masked(wrapped)


def test_masks_must_fit_the_model() -> None:
    model = network()
    with pytest.raises(KeyError, match="nothing.weight"):
        SparseTraining(model, sgd(model), {"nothing.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"9\.weight"):
        SparseTraining(model, sgd(model), {"9.weight": torch.ones(5, 5)})
    with pytest.raises(ValueError, match="no masks"):
        SparseTraining(model, sgd(model), {})


def dense_run(steps: int) -> dict[str, Tensor]:
    model = network()
    optimizer = sgd(model)
    for step in range(steps):
        adversarial_backward(model, optimizer, step)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("kind", ["static", "fb", "fb+"])
def test_density_one_is_dense_training_bit_for_bit(kind: str) -> None:
    model = network()
    optimizer = sgd(model)
    wrapped: SparseTraining
    if kind == "static":
        wrapped = SparseTraining(model, optimizer, random_masks(model, 1.0))
    else:
        adaptive = FlyingBirdPlus(start_epoch=0) if kind == "fb+" else None
        wrapped = bird(model, optimizer, density=1.0, adaptive=adaptive)
    for step in range(6):
        adversarial_backward(model, optimizer, step)
        wrapped.step()
        if step % 2:
            wrapped.end_epoch(train_ra=float(step), val_ra=0.0, val_loss=float(step))
    dense = dense_run(6)
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())


def test_batch_statistics_of_a_training_step() -> None:
    """K attack steps and the update change running statistics K + 1 times, or once with the attack in evaluation mode."""
    for mode, expected in (("train", 3), ("eval", 1)):
        model = network().train()
        x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
        functional.cross_entropy(model(PGD(0.1, 0.05, 2, bn_mode=mode)(model, x, y)), y).backward()
        assert int(model[1].num_batches_tracked) == expected


def by_hand(rate: float, **options: Any) -> tuple[FlyingBird, TopologyUpdate | None]:
    """θ = [.5, −.1, .3, 0, 0], mask 11100, g = [0, .9, 0, .2, .4]; the optimiser leaves weights as they are."""
    model = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.1, 0.3, 0.0, 0.0]]))
    model.weight.grad = torch.tensor([[0.0, 0.9, 0.0, 0.2, 0.4]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    masks = {"weight": torch.tensor([[True, True, True, False, False]])}
    found = FlyingBird(model, optimizer, init=masks, total_steps=1, interval=1, rate=rate, rate_end=rate, **options)
    return found, found.step()


def test_update_by_hand() -> None:
    found, update = by_hand(0.34)
    assert found.masks["weight"].tolist() == [[True, True, False, False, True]]
    torch.testing.assert_close(found.model.weight.detach(), torch.tensor([[0.5, -0.1, 0.0, 0.0, 0.0]]))
    assert (update.pruned, update.grown) == ({"weight": 2}, {"weight": 2})
    state = found.optimizer.state[found.model.weight]["momentum_buffer"]
    torch.testing.assert_close(state, torch.tensor([[0.0, 0.9, 0.0, 0.0, 0.0]]))

    found, update = by_hand(0.3)
    assert found.masks["weight"].tolist() == [[True, True, True, False, False]]
    assert (update.pruned, update.grown) == ({"weight": 1}, {"weight": 1})

    found, update = by_hand(0.0)
    assert update is None
    assert found.masks["weight"].tolist() == [[True, True, True, False, False]]


@pytest.fixture
def last_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What weights were when the latest update of a topology began, by name."""
    found: dict[str, Tensor] = {}
    original = FlyingBird._update

    def update(self: FlyingBird) -> TopologyUpdate | None:
        found.update({name: weight.detach().clone() for name, weight in self.weights.items()})
        return original(self)

    monkeypatch.setattr(FlyingBird, "_update", update)
    return found


def test_updates_conserve_layers_and_follow_the_rule(last_weights: dict[str, Tensor]) -> None:
    """Brute force by sorting: survivors are the largest weights, grown ones the largest gradients elsewhere."""
    model = network()
    optimizer = sgd(model)
    wrapped = bird(model, optimizer, interval=3)
    counts = {name: int(mask.sum()) for name, mask in wrapped.masks.items()}
    updates = 0
    for step in range(12):
        adversarial_backward(model, optimizer, step)
        before = {name: mask.clone() for name, mask in wrapped.masks.items()}
        update = wrapped.step()
        assert_masked(wrapped)
        assert {name: int(mask.sum()) for name, mask in wrapped.masks.items()} == counts
        assert (update is not None) == (step % 3 == 2)
        if update is None:
            assert all(torch.equal(mask, wrapped.masks[name]) for name, mask in before.items())
            continue
        updates += 1
        rate = cosine_rate(step + 1, 40)
        assert update.rate == rate
        for name, mask in before.items():
            expected = brute_force(last_weights[name], mask, wrapped.weights[name].grad, rate)
            assert set(wrapped.masks[name].flatten().nonzero().flatten().tolist()) == expected
            appeared = wrapped.masks[name] & ~mask
            assert (wrapped.weights[name][appeared] == 0).all()
            assert (optimizer.state[wrapped.weights[name]]["momentum_buffer"][appeared] == 0).all()
            stayed = wrapped.masks[name] & mask
            assert torch.equal(wrapped.weights[name][stayed], last_weights[name][stayed])
    assert updates == 4


def brute_force(weight: Tensor, mask: Tensor, gradient: Tensor, rate: float) -> set[int]:
    sizes, existing = weight.abs().flatten().tolist(), int(mask.sum())
    threshold = sorted(sizes)[len(sizes) - existing + math.ceil(rate * existing) - 1]
    survivors = {place for place, size in enumerate(sizes) if size > threshold}
    slopes = gradient.abs().flatten().tolist()
    others = sorted((place for place in range(len(sizes)) if place not in survivors), key=lambda place: -slopes[place])
    return survivors | set(others[: existing - len(survivors)])


def test_random_growth_keeps_exact_counts_and_follows_its_generator() -> None:
    masks = []
    for seed in (9, 9, 10):
        model = network()
        start = random_masks(model, 0.3, generator=random_source())
        wrapped = bird(model, init=start, growth="random", generator=random_source(seed))
        for step in range(4):
            adversarial_backward(model, wrapped.optimizer, step)
            wrapped.step()
            assert_masked(wrapped)
        assert all(int(wrapped.masks[name].sum()) == int(mask.sum()) for name, mask in start.items())
        assert any(not torch.equal(wrapped.masks[name], mask) for name, mask in start.items())
        masks.append(torch.cat([mask.flatten() for mask in wrapped.masks.values()]))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dense_layers_are_left_alone() -> None:
    model = network()
    masks = random_masks(model, 0.3)
    masks["9.weight"] = torch.ones_like(masks["9.weight"])
    wrapped = bird(model, init=masks, interval=1)
    adversarial_backward(model, wrapped.optimizer, 0)
    update = wrapped.step()
    assert set(update.pruned) == {"0.weight", "3.weight"}
    assert wrapped.masks["9.weight"].all()


def test_prune_rate() -> None:
    assert cosine_rate(0, 100) == 0.5
    assert cosine_rate(50, 100) == pytest.approx(0.2525)
    assert cosine_rate(100, 100) == pytest.approx(0.005)
    assert cosine_rate(101, 100) == cosine_rate(100, 100)
    rates = [cosine_rate(step, 100) for step in range(101)]
    assert all(before > after for before, after in pairwise(rates))


def test_updates_of_the_papers_schedule() -> None:
    """352 steps × 200 epochs: 39 updates in epochs 0 to 100, 29 afterwards."""
    interval = two_stage_interval(352, 200)
    due = [step for step in range(1, 70_401) if step % interval(step) == 0]
    assert len(due) == 68
    assert sum(step <= 352 * 101 for step in due) == 39
    assert sum(step > 352 * 100 for step in due) == 29


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1,), {}, "start_epoch must be at least 0, not -1"),
        ((1, 0), {}, "window must be at least 1, not 0"),
        ((1,), {"threshold": 1.5}, r"threshold must be in \[0, 1\], not 1\.5"),
        ((1,), {"threshold": float("nan")}, r"threshold must be in \[0, 1\], not nan"),
        ((1,), {"prune_extra": -0.1}, r"prune_extra must be in \[0, 1\], not -0\.1"),
        ((1,), {"grow_extra": float("inf")}, r"grow_extra must be in \[0, 1\], not inf"),
    ],
)
def test_flying_bird_plus_refuses_what_makes_no_sense(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlyingBirdPlus(*arguments, **options)
    with pytest.raises(TypeError, match="window must be a whole number, not 2.5"):
        FlyingBirdPlus(0, 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="threshold must be a number, not '1'"):
        FlyingBirdPlus(0, threshold="1")  # type: ignore[arg-type]
    assert FlyingBirdPlus(0, 1, 0.0, 1.0, 0).window == 1


def test_triggers() -> None:
    plus = FlyingBirdPlus(start_epoch=0)
    assert plus.prunes_more([1, 2, 3, 4, 5])
    assert not plus.prunes_more([3, 3, 3, 3, 3])  # strictly rising only
    assert plus.grows_more([3, 3, 3, 3, 3])  # not falling is enough
    assert not plus.grows_more([5, 4, 3, 2, 1])
    assert plus.prunes_more([0, 1, 0, 1, 0])  # half of the changes
    assert not plus.prunes_more([0, 1, 0, -1, -2])
    assert plus.prunes_more([9, 8, 7, 6, 7, 8, 7, 8])  # only the latest four changes count
    assert not plus.prunes_more([1, 2, 3, 9, 8, 7, 6, 5])
    for curve in ([], [1.0]):
        assert not plus.prunes_more(curve)
        assert not plus.grows_more(curve)
    assert plus.prunes_more([1, 2])


@pytest.mark.parametrize(
    ("gaps", "losses", "prune", "grow"),
    [([1, 2], [2, 1], True, False), ([2, 1], [1, 2], False, True), ([1, 2], [1, 2], True, True), ([2, 1], [2, 1], False, False)],
)
def test_density_follows_the_triggers(gaps: list[float], losses: list[float], prune: bool, grow: bool) -> None:
    model = nn.Linear(200, 50, bias=False)
    wrapped = bird(model, interval=2, density=0.2, rate=0.5, rate_end=0.5, adaptive=FlyingBirdPlus(start_epoch=2))
    for step in range(5):
        model.weight.grad = torch.randn(model.weight.shape, generator=random_source(step))
        update = wrapped.step()
        if step < 2:
            assert wrapped.density == 0.2
            wrapped.end_epoch(train_ra=gaps[step] + 10, val_ra=10, val_loss=losses[step])
        if step == 3:
            assert (update.prune_more, update.grow_more) == (prune, grow)
            # existing × (1 − 0.4·r) when pruning more, × (1 + 0.05·r) when growing more
            pruned, grown = 1000 + 400 * prune, 1050 if grow else 1000
            assert (update.pruned["weight"], update.grown["weight"]) == (pruned, grown)
            assert wrapped.density == update.density == (2000 - pruned + grown) / 10_000
    assert_masked(wrapped)


def test_plus_is_flying_bird_before_its_start() -> None:
    found = []
    for adaptive in (None, FlyingBirdPlus(start_epoch=3)):
        model = network()
        wrapped = bird(model, adaptive=adaptive)
        for step in range(12):
            adversarial_backward(model, wrapped.optimizer, step)
            wrapped.step()
            if step < 9 and step % 4 == 3:
                wrapped.end_epoch(train_ra=step, val_ra=0, val_loss=step)
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_density_bounds_of_the_papers_schedule() -> None:
    """From 0.2 over 29 updates: 0.0645 if every one prunes more, 0.229 if every one grows more."""
    interval = two_stage_interval(352, 200)
    rates = [cosine_rate(step, 70_400) for step in range(352 * 100 + 1, 70_401) if step % interval(step) == 0]
    assert 0.2 * math.prod(1 - 0.4 * rate for rate in rates) == pytest.approx(0.0645, abs=1e-4)
    assert 0.2 * math.prod(1 + 0.05 * rate for rate in rates) == pytest.approx(0.229, abs=5e-4)


def test_end_epoch_must_not_be_forgotten() -> None:
    def run(steps: int, **options: Any) -> None:
        model = network()
        wrapped = bird(model, **options)
        for step in range(steps):
            adversarial_backward(model, wrapped.optimizer, step)
            wrapped.step()

    with pytest.raises(RuntimeError, match=r"end_epoch.*step 2"):
        run(2, adaptive=FlyingBirdPlus(start_epoch=0))
    with pytest.raises(RuntimeError, match=r"end_epoch.*step 4"):
        run(4, adaptive=FlyingBirdPlus(start_epoch=1), steps_per_epoch=2)
    run(4, adaptive=FlyingBirdPlus(start_epoch=5), steps_per_epoch=2)
    run(2, adaptive=FlyingBirdPlus(start_epoch=0), steps_per_epoch=2)
    run(2, adaptive=FlyingBirdPlus(start_epoch=0), density=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density"),
        ({"density": 1.5}, "density"),
        ({"rate": 1.5}, "rate"),
        ({"rate_end": -0.1}, "rate_end"),
        ({"total_steps": 0}, "total_steps"),
        ({"interval": 0}, "interval"),
        ({"growth": "other"}, "growth"),
        ({"init": "other"}, "init"),
    ],
)
def test_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bird(network(), **options)


def test_growth_by_gradients_needs_gradients() -> None:
    model = network()
    with pytest.raises(RuntimeError, match=r"call backward\(\) before step\(\)"):
        bird(model).step()
    bird(model, growth="random").step()


def test_steps_that_overflow_do_not_move_the_topology() -> None:
    model = network()
    wrapped = bird(model, interval=1)

    class Skipping:
        """Does what a GradScaler does with gradients that are not finite."""

        def step(self, optimizer: torch.optim.Optimizer) -> None:
            pass

    adversarial_backward(model, wrapped.optimizer, 0)
    wrapped.weights["9.weight"].grad[0, 0] = math.inf
    before = {name: mask.clone() for name, mask in wrapped.masks.items()}
    assert wrapped.step(Skipping()) is None
    assert all(torch.equal(mask, wrapped.masks[name]) for name, mask in before.items())
    adversarial_backward(model, wrapped.optimizer, 1)
    assert wrapped.step() is not None


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("growth", ["gradient", "random"])
@pytest.mark.parametrize("loaded", [0, 1, 2], ids=["bird first", "model first", "model and optimizer first"])
def test_interrupted_is_uninterrupted(stop: int, growth: str, loaded: int) -> None:
    """In whatever order parts are made and loaded: masks of a new bird take nothing from weights that were loaded before it."""
    options = {"growth": growth, "adaptive": FlyingBirdPlus(start_epoch=2)}

    def go_on(model: nn.Module, wrapped: FlyingBird, steps: range) -> None:
        for step in steps:
            adversarial_backward(model, wrapped.optimizer, step)
            wrapped.step()
            if step % 2:
                wrapped.end_epoch(train_ra=step, val_ra=0, val_loss=step)

    model = network()
    wrapped = bird(model, **options)
    go_on(model, wrapped, range(10))

    first = network()
    begun = bird(first, **options)
    go_on(first, begun, range(stop))
    buffer = io.BytesIO()
    torch.save([first.state_dict(), begun.optimizer.state_dict(), begun.state_dict()], buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    second = network()
    optimizer = sgd(second)
    for part, state in ((second, states[0]), (optimizer, states[1]))[:loaded]:
        part.load_state_dict(state)
    resumed = bird(second, optimizer, generator=random_source(1), **options)
    for part, state in list(zip((second, optimizer, resumed), states, strict=True))[loaded:]:
        part.load_state_dict(state)
    go_on(second, resumed, range(stop, 10))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in wrapped.masks.items())
    assert wrapped.density != pytest.approx(0.3, abs=1e-3)  # Flying Bird+ had something to do


def test_what_was_written_after_the_masks_stays() -> None:
    """Only what nobody has touched since is whole again: here weights that just begin, at zero, where masks had none."""
    model = network()
    optimizer = sgd(model)
    masks = random_masks(model, 0.3, generator=random_source())
    wrapped = SparseTraining(model, optimizer, masks)
    other = {name: ~mask for name, mask in masks.items()}
    with torch.no_grad():
        for name, weight in wrapped.weights.items():
            weight.copy_(other[name] * torch.tensor([0.0, 2.0]).repeat(weight.numel())[: weight.numel()].view_as(weight))
    written = {name: weight.detach().clone() for name, weight in wrapped.weights.items()}
    wrapped.load_state_dict({"masks": other})
    assert all(torch.equal(weight, written[name]) for name, weight in wrapped.weights.items())


def test_states_of_another_model_are_refused() -> None:
    model = network()
    wrapped = SparseTraining(model, sgd(model), random_masks(model, 0.3))
    state = wrapped.state_dict()
    with pytest.raises(KeyError, match=r"9\.weight"):
        wrapped.load_state_dict({"masks": {name: mask for name, mask in state["masks"].items() if name != "9.weight"}})


@pytest.mark.parametrize("write", ["data", "vector"])
def test_weights_restored_without_a_trace_stay(write: str) -> None:
    """Writing through ``.data`` raises no version of a tensor."""
    model = network()
    wrapped = bird(model)
    for step in range(4):
        adversarial_backward(model, wrapped.optimizer, step)
        wrapped.step()
    second = network()
    resumed = bird(second, generator=random_source(1))
    if write == "data":
        for mine, theirs in zip(second.parameters(), model.parameters(), strict=True):
            mine.data.copy_(theirs)
    else:
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()).detach(), second.parameters())
    resumed.optimizer.load_state_dict(wrapped.optimizer.state_dict())
    resumed.load_state_dict(wrapped.state_dict())
    for mine, theirs in zip(second.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_is_a_snapshot() -> None:
    model = network()
    wrapped = bird(model)
    state = wrapped.state_dict()
    masks = {name: mask.clone() for name, mask in state["masks"].items()}
    for step in range(6):
        adversarial_backward(model, wrapped.optimizer, step)
        wrapped.step()
    assert any(not torch.equal(masks[name], wrapped.masks[name]) for name in masks)
    assert all(torch.equal(masks[name], mask) for name, mask in state["masks"].items())
