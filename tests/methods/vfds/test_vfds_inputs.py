"""Data as it comes: gaps, wrong labels and lengths are refused in one line; unlabelled stretches are no obstacle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas.methods.vfds import (
    FixedMask,
    Random,
    SelectiveGRU,
    Sweep,
    activity_profile,
    arm_loss,
    averaged_prediction,
    fit,
    fractions,
    pareto,
    selection_loss,
)

N, T, D, C = 12, 6, 4, 3
POLICIES = ["dynamic", "static", "attention", "none", FixedMask(torch.tensor([1, 0, 1, 1])), Random(0.5)]
RELAXATIONS = ["concrete", "st", "st-concrete", "arm", "arm-unbiased"]
KINDS = [
    *[(policy, "concrete") for policy in POLICIES],
    *[("dynamic", relaxation) for relaxation in RELAXATIONS[1:]],
    ("static", "arm"),
]


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(N, T, D, generator=random), torch.randint(C, (N, T), generator=random)


def make(policy: Any = "dynamic", relaxation: Any = "concrete", **options: Any) -> SelectiveGRU:
    torch.manual_seed(1)
    return SelectiveGRU(D, 5, C, policy=policy, relaxation=relaxation, **options)


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def task_loss(model: Any, x: Tensor, y: Tensor, allow_unlabelled: bool = False, **options: Any) -> Any:
    """The objective of the model's own kind."""
    template = getattr(model, "template", model)
    if template.arm:
        return arm_loss(model, x, y, lam=0.5, allow_unlabelled=allow_unlabelled, **options)
    return selection_loss(model(x, **options), y, cost=template.groups.cost, lam=0.5, allow_unlabelled=allow_unlabelled)


# --- gaps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "relaxation"), KINDS)
@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_fit_refuses_gaps_before_the_first_step(policy: Any, relaxation: Any, gap: float) -> None:
    x, y = data()
    x[3, 2, 0] = x[7, 1, 2] = gap
    model = make(policy, relaxation)
    before = weights(model)
    with pytest.raises(ValueError, match=r"^x must hold no NaN or infinity.*there are 2, the first at \[3, 2, 0\]") as error:
        fit(model, (x, y), lam=0.5, steps=5, batch_size=1)
    assert "mean" in str(error.value)
    assert "\n" not in str(error.value)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(("policy", "relaxation"), KINDS)
def test_objectives_refuse_gaps_that_they_read(policy: Any, relaxation: Any) -> None:
    x, y = data()
    x[4, 0, 1] = math.inf  # the first step reads everything
    model = make(policy, relaxation)
    with pytest.raises(ValueError, match=r"^x must hold no NaN or infinity.*there are 1, the first at \[4, 0, 1\]"):
        task_loss(model, x, y)


@pytest.mark.parametrize("relaxation", ["concrete", "st", "st-concrete"])
@pytest.mark.parametrize("fused", [True, False])
def test_gates_that_learn_read_what_they_close(relaxation: Any, fused: bool) -> None:
    """The gradient of a gate is that of its value, so closed gates need it too: the loss alone would look fine."""
    x, _ = data()
    x[0, 3, 1] = math.nan
    model = make(relaxation=relaxation, fused=fused)
    model.selector.bias.data.fill_(-50.0)
    with pytest.raises(ValueError, match=r"^x must hold no NaN.*there are 1, the first at \[0, 3, 1\]"):
        model(x)
    assert model(x, gates="threshold").logits.isfinite().all()


@pytest.mark.parametrize("gates", ["sample", "threshold"])
@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_hard_gates_refuse_gaps_that_they_open(gates: Any, gap: float) -> None:
    x, _ = data()
    x[2, 3, 1] = gap
    model = make()
    model.selector.bias.data.fill_(50.0)
    with pytest.raises(ValueError, match=r"^x must hold no NaN.*there are 1, the first at \[2, 3, 1\]"):
        model(x, gates=gates)
    with pytest.raises(ValueError, match="NaN"):
        averaged_prediction(model, x, 2)
    sweep = Sweep([model, make()])
    with pytest.raises(ValueError, match=r"the first at \[2, 3, 1\]"):
        sweep(x, gates=gates)


def test_a_requested_value_must_be_finite() -> None:
    policy = make().stream(2)
    policy.request()
    values = torch.zeros(2, D)
    values[1, 2] = math.inf
    with pytest.raises(ValueError, match=r"a requested value is NaN or infinite; there are 1, the first at \[1, 2\]"):
        policy.observe(values)


def test_what_a_fixed_mask_never_opens_may_be_missing_altogether() -> None:
    x, y = data()
    mask = torch.tensor([True, False, True, True])
    found = []
    for absent in (0.0, math.nan):
        model = make(FixedMask(mask), first_step=mask)
        fit(model, (torch.where(mask, x, absent), y), lam=0.5, steps=3, batch_size=4)
        found.append(weights(model))
    assert torch.equal(*found)
    assert found[0].isfinite().all()
    with pytest.raises(ValueError, match=r"the first at \[0, 0, 1\]"):  # a first step that reads everything
        fit(make(FixedMask(mask)), (torch.where(mask, x, math.nan), y), lam=0.5, steps=3)


def test_training_stops_when_its_numbers_do() -> None:
    def too_fast(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{**group, "lr": math.inf} for group in groups])

    with pytest.raises(FloatingPointError, match=r"at step 2; .*learning rate") as error:
        fit(make(), data(), lam=0.5, steps=9, optimizer=too_fast)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["mask", "first_step"])
@pytest.mark.parametrize("value", [math.nan, 0.5, 2.0])
def test_masks_are_zeros_and_ones(place: str, value: float) -> None:
    mask = torch.tensor([1.0, 0.0, value, 1.0])
    with pytest.raises(ValueError, match=rf"0 and 1.*{value} at \[2\]"):
        make(FixedMask(mask)) if place == "mask" else make(first_step=mask)


def test_noise_lies_between_zero_and_one() -> None:
    x, y = data()
    for value in (math.nan, -0.1, 1.5):
        noise = torch.rand(T, N, D)
        noise[4, 3, 1] = value
        with pytest.raises(ValueError, match=r"noise must lie in \[0, 1\].*the first at \[4, 3, 1\]"):
            make()(x, noise=noise)
        with pytest.raises(ValueError, match=r"noise must lie in \[0, 1\]"):
            arm_loss(make(relaxation="arm"), x, y, lam=0.5, noise=noise)
    with pytest.raises(ValueError, match=rf"noise must have shape \({T}, {N}, {D}\)"):
        arm_loss(make(relaxation="arm"), x, y, lam=0.5, noise=torch.rand(T, 2 * N, D))


def test_offsets_and_empty_batches() -> None:
    x, _ = data()
    model = make()
    for shape in ((T, N + 1, D), (T, N, D + 1), (T + 1, N, D), (T, N)):
        with pytest.raises(ValueError, match=rf"offset must have shape \({T}, {N}, {D}\)"):
            model(x, gates="sample", offset=torch.zeros(shape))
    lengths = torch.arange(N) % T + 1
    offset = torch.randn(T, 2 * N, D, generator=torch.Generator().manual_seed(2))
    twice = model(x, lengths=lengths, gates="sample", offset=offset)
    for copy, part in enumerate(offset.split(N, 1)):
        once = model(x, lengths=lengths, gates="sample", offset=part)
        assert torch.allclose(once.logits, twice.logits[copy * N : (copy + 1) * N], atol=1e-6)
        assert torch.equal(once.gates, twice.gates[copy * N : (copy + 1) * N])
    assert torch.equal(twice.lengths, lengths.repeat(2))
    assert model(x[:0], gates="threshold").logits.shape == (0, T, C)


def test_measures_refuse_gaps() -> None:
    gates = torch.ones(2, 4, 3)
    gates[1, 3, 0] = math.nan
    for measure in (lambda: fractions(gates), lambda: activity_profile(gates, torch.zeros(2, 4), 1)):
        with pytest.raises(ValueError, match=r"gates must hold no NaN.*the first at \[1, 3, 0\]"):
            measure()
    assert fractions(gates, lengths=torch.tensor([4, 3])).steady == pytest.approx(1)
    for lengths in (torch.tensor([4]), torch.tensor([4, 0]), torch.tensor([4, 5])):
        with pytest.raises(ValueError, match="lengths must be 2 numbers from 1 to 4"):
            fractions(torch.ones(2, 4, 3), lengths=lengths)
    for cost, message in ((torch.tensor([1.0, math.nan, 1.0]), r"cost\[1\] is nan"), (torch.zeros(3), "all costs are zero")):
        with pytest.raises(ValueError, match=message):
            fractions(torch.ones(2, 4, 3), cost)
    with pytest.raises(ValueError, match="λ = 1.* seed 5.*nan"):
        pareto(lambda lam, seed: (0.5, math.nan if lam else 1.0), [0.0, 1.0], [5])


def test_costs_refuse_gaps() -> None:
    x, y = data()
    cost = torch.tensor([1.0, 1.0, math.inf, 1.0])
    with pytest.raises(ValueError, match=r"cost\[2\] is inf"):
        selection_loss(make()(x), y, cost=cost, lam=0.5)
    for relaxation in ("concrete", "arm"):
        with pytest.raises(ValueError, match=r"cost\[2\] is inf"):
            fit(make(relaxation=relaxation), (x, y), lam=0.5, steps=2, cost=cost)
    for entropy in (math.nan, -1.0):
        with pytest.raises(ValueError, match="entropy_weight"):
            selection_loss(make()(x), y, cost=torch.ones(D), lam=0.5, entropy_weight=entropy)


# --- labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxation", ["concrete", "arm"])
@pytest.mark.parametrize("value", [C, -2, 0.5, math.nan])
def test_fit_refuses_labels_that_are_no_class(relaxation: Any, value: float) -> None:
    x, y = data()
    y = y if isinstance(value, int) else y.float()
    y[5, 1] = value
    with pytest.raises(ValueError, match=rf"classes must lie from 0 to {C - 1}.*1 other.*the first is {value} at \[5, 1\]"):
        fit(make(relaxation=relaxation), (x, y), lam=0.5, steps=1, batch_size=1)


def test_whole_numbers_are_classes_in_any_type() -> None:
    x, y = data()
    y[0, :2] = -1
    found = []
    for labels in (y, y.float(), y.to(torch.int8)):
        model = make()
        fit(model, (x, labels), lam=0.5, steps=4, batch_size=4)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_fit_refuses_data_that_does_not_belong_together() -> None:
    x, y = data()
    for labels in (y[:-1], torch.cat([y, y]), y[:, :-1], y[..., None]):
        with pytest.raises(ValueError, match=r"y must have shape"):
            fit(make(), (x, labels), lam=0.5, steps=1)
    with pytest.raises(ValueError, match="no sequence"):
        fit(make(), (x[:0], y[:0]), lam=0.5, steps=1)
    with pytest.raises(ValueError, match=r"x must have shape"):
        fit(make(), (x[..., :-1], y), lam=0.5, steps=1)
    uneven: Any = [(x[0], y[0]), (x[1, :3], y[1, :3])]
    with pytest.raises(ValueError, match=r"lengths"):
        fit(make(), uneven, lam=0.5, steps=1)
    triples: Any = [(x[0], y[0], torch.tensor(T))] * 3
    for dataset in (triples, (x, y, torch.full((N,), T)), torch.utils.data.TensorDataset(x, y, torch.full((N,), T))):
        with pytest.raises(
            (TypeError, ValueError), match=r"made of pairs \(inputs, labels\), not of (a Tensor|3 parts; .*lengths)"
        ):
            fit(make(), dataset, lam=0.5, steps=1)
    two: Any = [(x[0], y[0]), (x[1], y[1])]
    assert len(fit(make(), two, lam=0.5, steps=1)) == 1


def test_several_labels_may_be_floats_but_only_zero_and_one() -> None:
    x, _ = data()
    y = torch.randint(-1, 2, (N, T, C), generator=torch.Generator().manual_seed(2))
    found = []
    for labels in (y, y.double()):
        model = make()
        fit(model, (x, labels), lam=0.5, steps=3, batch_size=4)
        found.append(weights(model))
    assert torch.equal(*found)
    y[2, 1, 0] = 2
    with pytest.raises(ValueError, match=r"0 or 1.*\[2, 1, 0\]"):
        fit(make(), (x, y), lam=0.5, steps=1)


# --- unlabelled stretches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "relaxation"), KINDS)
@pytest.mark.parametrize("several", [False, True])
def test_unlabelled_batches_are_worth_nothing_to_the_task(policy: Any, relaxation: Any, several: bool) -> None:
    x, y = data()
    y = torch.stack([(y == one).long() for one in range(C)], -1) if several else y
    y[1:] = -1
    model = make(policy, relaxation)
    curve = fit(model, (x, y), lam=0.5, steps=12, batch_size=1, warmup=0.0)
    tasks = [row["task"] for row in curve]
    assert 0.0 in tasks  # batches without a label were drawn
    assert max(tasks) > 0
    assert all(math.isfinite(row["total"]) for row in curve)
    assert weights(model).isfinite().all()
    with pytest.raises(ValueError, match="y labels no step"):
        task_loss(make(policy, relaxation), x[1:], y[1:])
    loss = task_loss(make(policy, relaxation), x[1:], y[1:], allow_unlabelled=True)
    assert float(loss.task.detach()) == 0
    loss.total.backward()


@pytest.mark.parametrize("relaxation", ["concrete", "arm", "arm-unbiased", "published"])
def test_unlabelled_batches_in_a_sweep(relaxation: Any) -> None:
    x, y = data()
    y[4:] = -1
    options = {"published": True} if relaxation == "published" else {}
    relaxation = "arm" if relaxation == "published" else relaxation
    sweep = Sweep([make(relaxation=relaxation), make(relaxation=relaxation)])
    optimiser = torch.optim.Adam(sweep.parameters())
    for rows in (slice(0, 4), slice(4, 8), slice(0, 8)):
        if rows == slice(4, 8):
            with pytest.raises(ValueError, match="y labels no step"):
                task_loss(sweep, x[rows], y[rows], **options)
        loss = task_loss(sweep, x[rows], y[rows], allow_unlabelled=True, **options)
        assert loss.task.shape == (2,)
        assert (loss.task == 0).all() == (rows == slice(4, 8))
        optimiser.zero_grad()
        loss.total.sum().backward()
        optimiser.step()
    assert weights(sweep).isfinite().all()


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_fit_refuses_data_without_any_label(relaxation: Any) -> None:
    x, y = data()
    lengths = torch.full((N,), 3)
    padded = torch.where(torch.arange(T) >= 3, y, -1)  # labels in the padding alone
    missing = torch.full((N, T), -1)
    for labels, more in ((missing, {}), (padded, {"lengths": lengths}), (missing - 99, {"ignore_index": -100})):
        model = make(relaxation=relaxation)
        before = weights(model)
        with pytest.raises(ValueError, match="y labels no step"):
            fit(model, (x, labels), lam=0.5, steps=3, **more)
        assert torch.equal(weights(model), before)
    padded[0, 0] = 1  # one label is enough
    fit(make(relaxation=relaxation), (x, padded), lam=0.5, steps=3, lengths=lengths, batch_size=2)


# --- lengths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "relaxation", "batch_size"),
    [*[(*kind, 5) for kind in KINDS], ("dynamic", "concrete", 1), ("dynamic", "concrete", N), ("dynamic", "arm", N)],
)
def test_lengths_stay_with_their_sequences(policy: Any, relaxation: Any, batch_size: int) -> None:
    """Whatever lies behind a sequence's end changes nothing; a length of another sequence would let it in."""
    x, y = data()
    lengths = torch.arange(N) % T + 1
    padding = torch.arange(T) >= lengths[:, None]
    found = []
    for absent, label in ((0.0, 0), (math.nan, 99), (1e6, -1)):
        model = make(policy, relaxation)
        filled, labels = torch.where(padding[..., None], absent, x), torch.where(padding, label, y)
        curve = fit(model, (filled, labels), lam=0.5, steps=6, batch_size=batch_size, lengths=lengths, seed=5)
        found.append((weights(model), curve))
    for model_weights, curve in found[1:]:
        assert torch.equal(model_weights, found[0][0])
        assert curve == found[0][1]
    pairs: Any = [(x[index], y[index]) for index in range(N)]
    model = make(policy, relaxation)
    fit(model, pairs, lam=0.5, steps=6, batch_size=batch_size, lengths=lengths, seed=5)
    assert torch.equal(weights(model), found[0][0])


def test_lengths_decide_what_is_learned() -> None:
    """Labels behind the ends say the opposite of those before: only lengths that fit their sequences lead to the first."""
    random = torch.Generator().manual_seed(3)
    y = torch.randint(2, (48, 8), generator=random)
    x = torch.stack([2.0 * y - 1, torch.randn(48, 8, generator=random)], -1)
    lengths = torch.where(torch.arange(48) % 2 == 0, 8, 1)
    padding = torch.arange(8) >= lengths[:, None]
    torch.manual_seed(0)
    model = SelectiveGRU(2, 8, 2)
    fit(
        model,
        (x, torch.where(padding, 1 - y, y)),
        lam=0.1,
        steps=120,
        batch_size=16,
        lengths=lengths,
        optimizer=lambda groups: torch.optim.Adam([{**group, "lr": 0.02} for group in groups]),
    )
    guess = model(x, gates="threshold").logits.argmax(-1)
    assert (guess == y)[::2].double().mean() > 0.97


@pytest.mark.parametrize(
    "lengths",
    [
        torch.full((N - 1,), T),
        torch.full((4,), T),
        torch.full((1,), T),
        torch.tensor([T] * (N - 1) + [0]),
        torch.tensor([T] * (N - 1) + [T + 1]),
        torch.tensor([T] * (N - 1) + [2.5]),
    ],
)
@pytest.mark.parametrize("relaxation", ["concrete", "arm"])
def test_fit_refuses_lengths_that_do_not_fit(lengths: Tensor, relaxation: Any) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=rf"^lengths must be {N} numbers from 1 to {T}"):
        fit(make(relaxation=relaxation), (x, y), lam=0.5, steps=1, batch_size=4, lengths=lengths)
    with pytest.raises(ValueError, match="^lengths must be"):
        task_loss(make(relaxation=relaxation), x, y, lengths=lengths)


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.double().numpy(), lambda x: (10 * x).long()])
def test_fit_names_the_type_that_data_must_have(change: Any) -> None:
    x, y = data()
    with pytest.raises(
        TypeError, match=r"x is torch\.\w+, and the model's weights are torch\.float32: bring x to torch\.float32"
    ):
        fit(make(), (change(x), y), lam=0.5, steps=1)


def test_fit_takes_data_in_every_form_and_refuses_what_is_none() -> None:
    x, y = data()
    pairs = torch.utils.data.TensorDataset(x, y)
    forms = [(x, y), (x.numpy(), y.numpy()), pairs, torch.utils.data.DataLoader(pairs, batch_size=3)]
    curves = [fit(make(), form, lam=0.5, steps=2) for form in forms]
    assert all(curve == curves[0] for curve in curves)
    with pytest.raises(TypeError, match=r"the dataset is a str; give a pair \(inputs, labels\) of tensors or NumPy arrays"):
        fit(make(), "data.csv", lam=0.5, steps=1)


def test_fit_goes_its_way_without_gradients_and_on_what_another_network_made() -> None:
    x, y = data()
    curves = [fit(make(), (x, y), lam=0.5, steps=3)]
    with torch.no_grad():
        curves.append(fit(make(), (x, y), lam=0.5, steps=3))
    scale = torch.ones(D, requires_grad=True)
    curves.append(fit(make(), (x * scale, y), lam=0.5, steps=3))
    assert curves[0] == curves[1] == curves[2]
    assert scale.grad is None
