"""Losses: costs by hand, the exact gradient by enumeration, ARM as published, and training."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas.methods.vfds import Rollout, SelectiveGRU, arm_loss, fit, fractions, pareto, selection_loss
from atlas.methods.vfds.fitting import Front, Point, training_loss
from atlas.methods.vfds.losses import lambda_at, returns_to_go

COST = torch.tensor([1.0, 3.0])


def toy(relaxation: Any = "arm", **options: Any) -> tuple[SelectiveGRU, Tensor, Tensor]:
    """Two features, three steps, so four gates that matter: 16 configurations."""
    torch.manual_seed(0)
    model = SelectiveGRU(2, 3, 2, relaxation=relaxation, logit_scale=1.5, **options).double()
    x = 1.5 * torch.randn(2, 3, 2, dtype=torch.double)
    return model, x, torch.tensor([[0, 1, 1], [1, 0, 1]])


def exact_gradient(model: SelectiveGRU, x: Tensor, y: Tensor, lam: float) -> Tensor:
    """Gradient of E[CE + λK] by enumeration of all gates of each sequence."""
    total = x.new_zeros(())
    for sequence in range(len(x)):
        for bits in product((0.0, 1.0), repeat=4):
            gates = torch.tensor([[1.0, 1.0], bits[:2], bits[2:]], dtype=torch.double)
            rollout = forced(model, x[sequence : sequence + 1], gates)
            loss = selection_loss(rollout, y[sequence : sequence + 1], cost=torch.ones(2), lam=lam).total
            alpha = rollout.gate_logits[0, 1:]
            chance = torch.where(gates[1:] > 0, torch.sigmoid(alpha), torch.sigmoid(-alpha)).prod()
            total = total + chance * loss / len(x)
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, list(model.parameters()))])


def forced(model: SelectiveGRU, x: Tensor, gates: Tensor) -> Rollout:
    """The model on given gates, with the logits that its policy had."""
    offset = torch.where(gates > 0, 1e6, -1e6).unsqueeze(1).to(x)
    return model(x, gates="sample", offset=offset)


def estimates(
    model: SelectiveGRU, x: Tensor, y: Tensor, draws: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of a gradient estimator over noise; each chunk is one batch of independent copies."""
    random, found = torch.Generator().manual_seed(4), []
    for _ in range(draws):
        copies = 60
        noise = torch.rand(3, copies * len(x), 2, generator=random, dtype=torch.double)
        total = loss(x.repeat(copies, 1, 1), y.repeat(copies, 1), noise)
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(total, list(model.parameters()))]))
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.std(0) / math.sqrt(draws)


def test_unbiased_pair_is_unbiased_for_all_parameters() -> None:
    model, x, y = toy("arm-unbiased")
    exact = exact_gradient(model, x, y, 0.8)
    mean, error = estimates(
        model, x, y, 1200, lambda a, b, noise: arm_loss(model, a, b, lam=0.8, gamma=1.0, unbiased=True, noise=noise).total
    )
    assert ((mean - exact).abs() <= 4 * error + 1e-12).all()
    assert error.max() < 0.2 * exact.abs().max()


def test_score_function_agrees_with_the_enumeration() -> None:
    model, x, y = toy()
    exact = exact_gradient(model, x, y, 0.8)

    def score(a: Tensor, b: Tensor, noise: Tensor) -> Tensor:
        rollout = model(a, noise=noise, gates="sample")
        losses = torch.stack(
            [
                selection_loss(Rollout(*(p[k : k + 1] for p in parts)), b[k : k + 1], cost=torch.ones(2), lam=0.8).total
                for k in range(len(a))
            ]
        )
        alpha = rollout.gate_logits[:, 1:]
        chance = torch.where(rollout.gates[:, 1:] > 0, alpha, -alpha)
        return (losses + losses.detach() * torch.nn.functional.logsigmoid(chance).sum((-2, -1))).mean()

    def fast(a: Tensor, b: Tensor, noise: Tensor) -> Tensor:
        nonlocal parts
        rollout = model(a, noise=noise, gates="sample")
        parts = [rollout.logits, rollout.gates, rollout.gate_logits, rollout.hidden]
        return score(a, b, noise)

    parts: list[Tensor] = []
    mean, error = estimates(model, x, y, 60, fast)
    assert ((mean - exact).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_no_discount_is_close_but_biased(unbiased: bool) -> None:
    model, x, y = toy()
    exact = exact_gradient(model, x, y, 0.8)
    mean, _ = estimates(
        model, x, y, 300, lambda a, b, noise: arm_loss(model, a, b, lam=0.8, unbiased=unbiased, noise=noise).total
    )
    assert torch.nn.functional.cosine_similarity(mean, exact, dim=0) > 0.9


def test_concrete_tends_to_the_exact_gradient() -> None:
    model, x, y = toy("concrete", temperature=0.1)
    exact = exact_gradient(model, x, y, 0.8)

    def relaxed(a: Tensor, b: Tensor, noise: Tensor) -> Tensor:
        return selection_loss(model(a, noise=noise), b, cost=torch.ones(2), lam=0.8).total

    mean, _ = estimates(model, x, y, 300, relaxed)
    assert torch.nn.functional.cosine_similarity(mean, exact, dim=0) > 0.9


def test_arm_as_published_is_the_official_gradient() -> None:
    """By hand: ∇W_s = s Σ (u − ½) δ hᵀ with the state after the step, immediate losses, and κ per gate."""
    model, x, y = toy("arm")
    noise = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    kappa = 0.7
    arm_loss(model, x, y, lam=0.4, noise=noise, published=True, kappa=kappa, cost_path=False).total.backward()
    first = model(x, noise=noise, gates="sample")
    second = model(x, gates="sample", offset=torch.logit(noise))
    each = [
        torch.nn.functional.cross_entropy(run.logits.flatten(0, 1), y.flatten(), reduction="none").view(2, 3)
        + kappa * run.gates.sum(-1)
        for run in (first, second)
    ]
    centred = noise.transpose(0, 1) - 0.5
    centred[:, 0] = 0
    weighted = centred * (each[1] - each[0])[..., None]
    expected = 1.5 * torch.einsum("btg,bth->gh", weighted, first.hidden)
    assert torch.allclose(model.selector.weight.grad, expected, atol=1e-12)
    assert torch.allclose(model.selector.bias.grad, 1.5 * weighted.sum((0, 1)), atol=1e-12)
    task = torch.nn.functional.cross_entropy(first.logits.flatten(0, 1), y.flatten())
    assert torch.allclose(model.weight_ih_l0.grad, torch.autograd.grad(task, model.weight_ih_l0)[0], atol=1e-12)

    with_path, x, y = toy("arm")
    arm_loss(with_path, x, y, lam=0.4, noise=noise, published=True, kappa=kappa).total.backward()
    assert torch.allclose(with_path.selector.weight.grad, expected, atol=1e-12)
    assert not torch.allclose(with_path.weight_ih_l0.grad, model.weight_ih_l0.grad)


def test_aligned_arm_by_hand_and_detached() -> None:
    model, x, y = toy("arm")
    noise = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    loss = arm_loss(model, x, y, lam=0.4, noise=noise)
    loss.total.backward()
    first = model(x, noise=noise, gates="sample")
    plain = selection_loss(first, y, cost=torch.ones(2), lam=0.4)
    assert float(loss.total.detach()) == pytest.approx(float(plain.total.detach()))
    assert float(loss.cost_fraction.detach()) == pytest.approx(float(plain.cost_fraction.detach()))
    detached, x, y = toy("arm")
    arm_loss(detached, x, y, lam=0.4, noise=noise, detach_policy_input=True).total.backward()
    assert torch.allclose(detached.selector.weight.grad, model.selector.weight.grad, atol=1e-12)
    expected = torch.autograd.grad(plain.total, model.weight_hh_l0)[0]
    assert torch.allclose(detached.weight_hh_l0.grad, expected, atol=1e-12)
    assert not torch.allclose(model.weight_hh_l0.grad, expected)


@pytest.mark.parametrize(("relaxation", "expected"), [("arm", False), ("arm-unbiased", True)])
def test_arm_loss_reads_its_estimator_from_the_model(relaxation: Any, expected: bool) -> None:
    noise = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.double)

    def gradient(**options: Any) -> Tensor:
        model, x, y = toy(relaxation)
        arm_loss(model, x, y, lam=0.4, noise=noise, **options).total.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.equal(gradient(), gradient(unbiased=expected))
    assert not torch.allclose(gradient(), gradient(unbiased=not expected))
    assert torch.equal(gradient(published=True), gradient(published=True, unbiased=False))


def test_static_arm_matches_its_formula() -> None:
    torch.manual_seed(0)
    model = SelectiveGRU(2, 3, 2, policy="static", relaxation="arm", logit_scale=5.0).double()
    _, x, y = toy()
    noise = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    arm_loss(model, x, y, lam=1.0, noise=noise, published=True).total.backward()
    each = []
    for offset in (-torch.logit(noise), torch.logit(noise)):
        run = model(x, gates="sample", offset=offset)
        ce = torch.nn.functional.cross_entropy(run.logits.flatten(0, 1), y.flatten(), reduction="none").view(2, 3)
        each.append(ce + run.gates.sum(-1))
    centred = noise.transpose(0, 1) - 0.5
    expected = 5 * ((each[1] - each[0])[:, 1:, None] * centred[:, 1:]).sum((0, 1))
    assert torch.allclose(model.static_logits.grad, expected, atol=1e-12)


def rollout_of(gates: Tensor) -> Rollout:
    batch, steps, _ = gates.shape
    return Rollout(torch.zeros(batch, steps, 3), gates, torch.zeros_like(gates), torch.zeros(batch, steps, 1))


def test_costs_of_all_and_of_nothing() -> None:
    steps = 5
    y = torch.zeros(2, steps, dtype=torch.long)
    everything = torch.ones(2, steps, 2)
    nothing = torch.zeros(2, steps, 2)
    nothing[:, 0] = 1
    found = fractions(everything)
    assert (found.steady, found.total, found.official) == (1.0, 1.0, (steps - 1) / steps)
    found = fractions(nothing)
    assert (found.steady, found.total, found.official) == (0.0, 1 / steps, 0.0)
    for norm, expected in (("steady", 1.0), ("official", (steps - 1) / steps)):
        loss = selection_loss(rollout_of(everything), y, cost=COST, lam=2.0, cost_norm=norm)  # type: ignore[arg-type]
        assert float(loss.cost_fraction) == pytest.approx(expected)
        assert float(loss.task) == pytest.approx(math.log(3))
        assert float(loss.total) == pytest.approx(math.log(3) + 2 * expected)
    expensive = nothing.clone()
    expensive[:, 2:, 1] = 1
    assert fractions(expensive, COST).steady == pytest.approx(3 / 4 * 3 / 4)
    lengths = torch.tensor([5, 3])
    assert fractions(expensive, COST, lengths).steady == pytest.approx((3 + 1) / 6 * 3 / 4)


def test_entropy_and_prior() -> None:
    gates = torch.rand(2, 5, 2)
    rollout = Rollout(torch.zeros(2, 5, 3), gates, torch.randn(2, 5, 2), torch.zeros(2, 5, 1))
    y = torch.zeros(2, 5, dtype=torch.long)
    plain = selection_loss(rollout, y, cost=COST, lam=0.5)
    q = torch.sigmoid(rollout.gate_logits[:, 1:])
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    more = selection_loss(rollout, y, cost=COST, lam=0.5, entropy_weight=0.3)
    assert float(more.total) == pytest.approx(float(plain.total - 0.3 * entropy.mean()), abs=1e-6)
    prior = torch.sigmoid(-0.5 * COST)
    divergence = q * (q / prior).log() + (1 - q) * ((1 - q) / (1 - prior)).log()
    bound = selection_loss(rollout, y, cost=COST, lam=0.5, prior="bernoulli")
    expected = plain.task + divergence.sum(-1).mean() / COST.sum()
    assert float(bound.total) == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="no prior"):
        selection_loss(rollout, y, cost=COST, lam=0.5, prior="beta")  # type: ignore[arg-type]


def test_several_labels_and_missing_ones() -> None:
    rollout = Rollout(torch.randn(2, 4, 3), torch.ones(2, 4, 2), torch.zeros(2, 4, 2), torch.zeros(2, 4, 1))
    y = torch.randint(-1, 2, (2, 4, 3))
    loss = selection_loss(rollout, y, cost=COST, lam=0.0)
    known = y >= 0
    each = torch.nn.functional.binary_cross_entropy_with_logits(rollout.logits, y.clamp(min=0).float(), reduction="none")
    assert float(loss.task) == pytest.approx(float(each[known].mean()))
    classes = torch.tensor([[0, -1, 2, 1], [-1, -1, 1, 0]])
    loss = selection_loss(rollout, classes, cost=COST, lam=0.0)
    expected = torch.nn.functional.cross_entropy(rollout.logits.flatten(0, 1), classes.flatten(), ignore_index=-1)
    assert float(loss.task) == pytest.approx(float(expected))
    assert arm_loss(toy()[0], toy()[1], torch.tensor([[0, -1, 1], [-1, -1, 1]]), lam=0.1).total.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": -0.1}, "λ must be"),
        ({"lam": math.nan}, "λ must be"),
        ({"cost": torch.ones(3)}, "costs of shape"),
        ({"cost_norm": "mean"}, "no cost norm"),
        ({"y": torch.full((2, 5), 3)}, "classes must lie"),
        ({"y": torch.zeros(2, 4, dtype=torch.long)}, "y must have shape"),
    ],
)
def test_losses_refuse(change: dict[str, Any], message: str) -> None:
    options = {"y": torch.zeros(2, 5, dtype=torch.long), "cost": COST, "lam": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        selection_loss(rollout_of(torch.ones(2, 5, 2)), options.pop("y"), **options)


NO_LABEL = "^y labels no step: every entry is {}; label at least one, or ask for allow_unlabelled$"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("ignore_index", [-1, -100])
def test_a_batch_without_a_label_is_refused(several: bool, ignore_index: int) -> None:
    model, x, _ = toy()
    rollout, line = rollout_of(torch.rand(2, 5, 2)), NO_LABEL.format(ignore_index)
    y = torch.full((2, 5, 3) if several else (2, 5), ignore_index)
    with pytest.raises(ValueError, match=line):
        selection_loss(rollout, y, cost=COST, lam=2.0, ignore_index=ignore_index)
    y = torch.full((2, 3, 2) if several else (2, 3), ignore_index)
    for options in ({}, {"unbiased": True}, {"published": True}):
        with pytest.raises(ValueError, match=line):
            arm_loss(model, x, y, lam=0.5, ignore_index=ignore_index, **options)


@pytest.mark.parametrize("published", [False, True])
def test_labels_in_the_padding_are_none(published: bool) -> None:
    model, x, y = toy()
    y, lengths = y.clone(), torch.tensor([2, 1])
    y[0, :2], y[1, :1] = -1, -1
    with pytest.raises(ValueError, match=NO_LABEL.format("-1 or padding")):
        arm_loss(model, x, y, lam=0.5, lengths=lengths, published=published)
    with pytest.raises(ValueError, match=NO_LABEL.format("-1 or padding")):
        selection_loss(model(x, lengths=lengths, gates="sample"), y, cost=torch.ones(2), lam=0.5)
    y[1, 0] = 1
    assert float(arm_loss(model, x, y, lam=0.5, lengths=lengths, published=published).task.detach()) > 0


def test_a_batch_without_a_label_costs_what_its_gates_cost() -> None:
    gates = torch.rand(2, 5, 2)
    loss = selection_loss(rollout_of(gates), torch.full((2, 5), -1), cost=COST, lam=2.0, allow_unlabelled=True)
    assert float(loss.task) == 0
    assert float(loss.total) == pytest.approx(2 * fractions(gates, COST).steady)
    assert float(arm_loss(*toy()[:2], torch.full((2, 3), -1), lam=0.5, allow_unlabelled=True).task.detach()) == 0


def test_arm_loss_refuses() -> None:
    model, x, y = toy()
    for options, message in (
        ({"gamma": 1.1}, "γ"),
        ({"lam": -1.0}, "λ"),
        ({"unbiased": True, "published": True}, "choose one"),
        ({"y": torch.full((2, 3), 2)}, "classes must lie"),
        ({"noise": torch.rand(3, 4, 2)}, r"noise must have shape \(3, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            arm_loss(model, x, options.pop("y", y), **{"lam": 1.0, **options})
    with pytest.raises(ValueError, match="dynamic and static"):
        arm_loss(SelectiveGRU(2, 3, 2, policy="none").double(), x, y, lam=1.0)


def test_returns_and_warmup() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0]])
    assert torch.equal(returns_to_go(losses, 0), losses)
    assert torch.equal(returns_to_go(losses, 1), torch.tensor([[7.0, 6.0, 4.0]]))
    assert torch.equal(returns_to_go(losses, 0.5), torch.tensor([[3.0, 4.0, 4.0]]))
    assert [lambda_at(step, 8, 2.0, 0.5) for step in (0, 1, 3, 7)] == [0.5, 1.0, 2.0, 2.0]
    assert lambda_at(0, 8, 2.0, 0) == 2.0


def easy(count: int = 64) -> tuple[Tensor, Tensor]:
    """Feature 0 is the label, the others are noise."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count, 8), generator=random)
    x = torch.randn(count, 8, 4, generator=random)
    x[..., 0] = 2.0 * y - 1
    return x, y


@pytest.mark.parametrize(("policy", "relaxation"), [("dynamic", "concrete"), ("static", "concrete"), ("dynamic", "arm")])
def test_fit_finds_the_informative_feature(policy: Any, relaxation: Any) -> None:
    x, y = easy()
    torch.manual_seed(1)
    model = SelectiveGRU(4, 8, 2, policy=policy, relaxation=relaxation)
    curve = fit(
        model,
        (x, y),
        lam=1.0,
        steps=150,
        seed=3,
        optimizer=lambda groups: torch.optim.Adam([{**g, "lr": max(0.02, g["lr"])} for g in groups]),
    )
    assert len(curve) == 150
    rollout = model(x, gates="threshold")
    assert (rollout.logits.argmax(-1) == y).double().mean() > 0.97
    assert rollout.gates[:, 1:].mean((0, 1)).tolist() == pytest.approx([1, 0, 0, 0], abs=0.1)


def test_fit_repeats_bit_for_bit_and_refuses() -> None:
    x, y = easy(16)
    pairs: Any = [(x[index], y[index]) for index in range(len(x))]
    found = []
    for data, seed in (((x, y), 3), (pairs, 3), ((x, y), 4)):
        torch.manual_seed(1)
        model = SelectiveGRU(4, 8, 2)
        fit(model, data, lam=1.0, steps=5, seed=seed, batch_size=8)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    for options in ({"lam": -1.0}, {"steps": 0}, {"warmup": 2.0}):
        with pytest.raises(ValueError):
            fit(model, (x, y), **{"lam": 1.0, "steps": 1, **options})
    attention = SelectiveGRU(4, 8, 2, policy="attention")
    loss = training_loss(attention, x, y, lam=5.0)
    assert float(loss.total) == float(loss.task)


def test_pareto_and_its_front() -> None:
    front = pareto(lambda lam, seed: (1 / (1 + lam), 0.9 - 0.1 * lam + 0.01 * seed), lams=[0.0, 1.0, 3.0], seeds=[0, 2])
    assert len(front.points) == 6
    mean = front.mean()
    assert [point.lam for point in mean.points] == [0.0, 1.0, 3.0]
    assert mean.interpolate(0.75) == pytest.approx((0.91 + 0.81) / 2)
    assert mean.interpolate(0.0) == pytest.approx(0.61)
    assert mean.interpolate(2.0) == pytest.approx(0.91)
    assert mean.cheapest(0.8) == pytest.approx(0.5)
    assert mean.cheapest(0.99) is None
    dominated = Front((Point(0, 0, 0.2, 0.5), Point(1, 0, 0.3, 0.4), Point(2, 0, 0.1, 0.45)))
    assert [point.lam for point in dominated.efficient().points] == [2, 0]
    with pytest.raises(ValueError):
        pareto(lambda lam, seed: (0.0, 0.0), [], [1])
