"""ARM as the official code has it on each of its data sets: what weighs a gate, the cost's path, groups, gaps and padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from atlas.methods.vfds import FeatureGroups, Rollout, SelectiveGRU, Sweep, arm_loss

B, T, D, C, SCALE = 4, 5, 5, 3, 1.5
GROUPS = [0, 1, 0, 2, 1]
COST = torch.tensor([1.0, 3.0, 0.5], dtype=torch.double)


def make(groups: Any = None, policy: Any = "dynamic", seed: int = 0, **options: Any) -> SelectiveGRU:
    torch.manual_seed(seed)
    return SelectiveGRU(D, 6, C, groups=groups, policy=policy, relaxation="arm", logit_scale=SCALE, **options).double()


def grouped(cost: Tensor = COST) -> FeatureGroups:
    return FeatureGroups(GROUPS, cost)


def data(steps: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels, and noise for five gates, of which groups use the first three; the first steps do not depend on T."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(12, B, D, generator=random, dtype=torch.double)[:steps].transpose(0, 1)
    y = torch.randint(C, (12, B), generator=random)[:steps].T
    return x.contiguous(), y.contiguous(), torch.rand(12, B, D, generator=random, dtype=torch.double)[:steps]


def published(model: Any, x: Tensor, y: Tensor, noise: Tensor, lam: Any = 0.4, **options: Any) -> Any:
    gates = getattr(model, "template", model).groups.n_groups
    return arm_loss(model, x, y, lam=lam, noise=noise[..., :gates], published=True, **options)


def gradient(model: Any, *parts: Tensor, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    published(model, *parts, **options).total.sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def both(model: SelectiveGRU, x: Tensor, noise: Tensor) -> list[Rollout]:
    """The two trajectories."""
    noise = noise[..., : model.groups.n_groups]
    return [model(x, noise=noise, gates="sample"), model(x, gates="sample", offset=torch.logit(noise))]


def by_hand(model: SelectiveGRU, x: Tensor, y: Tensor, noise: Tensor, price: Tensor) -> Tensor:
    """∇W_s = s Σ (u − ½) δ hᵀ with the state after the step; ``price``: (G,) what an open gate weighs in δ."""
    runs, known = both(model, x, noise), y >= 0
    each = []
    for run in runs:
        ce = functional.cross_entropy(run.logits.flatten(0, 1), y.clamp(min=0).flatten(), reduction="none").view(y.shape)
        each.append(torch.where(known, ce, 0) * y.numel() / known.sum() + (run.gates * price).sum(-1))
    centred = noise[..., : len(price)].transpose(0, 1) - 0.5
    centred[:, 0] = 0
    return SCALE * torch.einsum("btg,bth->gh", centred * (each[1] - each[0])[..., None], runs[0].hidden)


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.allclose(first[name], second[name], rtol=1e-9, atol=1e-12) for name in first)


# --- what an open gate weighs -------------------------------------------------------------------------------------------


def test_a_gate_weighs_one_or_lambda() -> None:
    """One on two data sets of the official code, λ on the third."""
    parts = data()
    single = float(torch.tensor(0.7))  # a number keeps its precision, a tensor has the one it has
    for options, price in (({}, 1.0), ({"kappa": "lambda"}, 0.4), ({"kappa": 0.7}, 0.7), ({"kappa": torch.tensor(0.7)}, single)):
        found = gradient(make(), *parts, **options)["selector.weight"]
        expected = by_hand(make(), *parts, torch.full((D,), price, dtype=torch.double))
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-12)
    assert close(gradient(make(), *parts, kappa="lambda"), gradient(make(), *parts, kappa=0.4))


def test_lambda_is_each_models_own() -> None:
    parts, lams = data(), torch.tensor([0.1, 0.9, 2.0])
    sweep = Sweep([make(grouped(), seed=seed) for seed in range(3)])
    together = gradient(sweep, *parts, lam=lams, kappa="lambda")
    for index in range(3):
        alone = gradient(make(grouped(), seed=index), *parts, lam=float(lams[index]), kappa="lambda")
        for (name, own), stacked in zip(alone.items(), together.values(), strict=True):
            assert torch.allclose(own, stacked[index], atol=1e-9), name


def test_a_weight_per_gate() -> None:
    parts, kappa = data(), torch.tensor([0.1, 0.0, 2.0, 0.7, 1.0])
    assert torch.allclose(gradient(make(), *parts, kappa=kappa)["selector.weight"], by_hand(make(), *parts, kappa), atol=1e-7)
    sweep = Sweep([make(), make(seed=1)])
    stacked = gradient(sweep, *parts, kappa=kappa)
    assert torch.allclose(list(stacked.values())[-2][1], gradient(make(seed=1), *parts, kappa=kappa)["selector.weight"])


@pytest.mark.parametrize(
    "shape", [(T,), (B,), (1,), (B, T), (T, D), (B, T, D), (B, T, 1), (1, D), (D, 1)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("groups", [None, grouped()], ids=["features", "groups"])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...], groups: Any) -> None:
    """Also those that would broadcast over steps or sequences."""
    count = D if groups is None else 3
    if shape == (count,):
        return
    with pytest.raises(ValueError, match=rf"^kappa must be one number, one per gate \({count},\), or \"lambda\"; .*shape"):
        published(make(groups), *data(), kappa=torch.ones(shape))


@pytest.mark.parametrize(
    ("kappa", "message"),
    [
        (math.nan, "not nan"),
        (math.inf, "not inf"),
        (-1.0, "not -1"),
        (torch.tensor([1.0, 1.0, math.nan, 1.0, 1.0]), r"not nan at \[2\]"),
        (torch.tensor([1.0, -2.0, 1.0, 1.0, 1.0]), r"not -2\.0 at \[1\]"),
        ("mu", "not 'mu'"),
    ],
)
def test_weights_that_are_none_are_refused(kappa: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^kappa must be .*{message}"):
        published(make(), *data(), kappa=kappa)


# --- costs of groups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["dynamic", "static"])
def test_costs_weigh_in_the_policys_difference(policy: Any) -> None:
    """As ratios to their mean, so that equal costs are the official code's, in any unit."""
    parts = data()
    price = 0.7 * COST * 3 / COST.sum()
    model = make(grouped(), policy)
    found = gradient(model, *parts, kappa=0.7)
    if policy == "dynamic":
        assert torch.allclose(found["selector.weight"], by_hand(make(grouped()), *parts, price), atol=1e-7)
    equal = gradient(make(grouped(torch.ones(3)), policy), *parts, kappa=0.7)
    name = "selector.bias" if policy == "dynamic" else "static_logits"
    assert not torch.allclose(found[name], equal[name])
    assert close(equal, gradient(make(grouped(4 * torch.ones(3)), policy), *parts, kappa=0.7))
    assert close(found, gradient(make(grouped(10 * COST), policy), *parts, kappa=0.7))
    assert close(found, gradient(make(grouped(torch.ones(3)), policy), *parts, kappa=0.7, cost=COST))


def test_costs_weigh_on_their_path_into_the_recurrence() -> None:
    x, y, noise = data()
    lam = 0.4
    with_path, without = (gradient(make(grouped()), x, y, noise, lam=lam, cost_path=path) for path in (True, False))
    model = make(grouped())
    hidden = both(model, x, noise)[0].hidden[:, :-1]
    weight, bias = model.selector.weight.detach(), model.selector.bias.detach()
    soft = torch.sigmoid(SCALE * (hidden @ weight.T + bias))
    cost = lam * (soft @ (COST / COST.sum())).sum() / (B * T)
    expected = torch.autograd.grad(cost, model.weight_hh_l0)[0]
    assert torch.allclose(with_path["weight_hh_l0"] - without["weight_hh_l0"], expected, atol=1e-7)
    assert torch.allclose(with_path["selector.weight"], without["selector.weight"])


# --- padding and missing labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["dynamic", "static"])
@pytest.mark.parametrize("options", [{}, {"cost_path": False, "kappa": "lambda"}])
def test_padding_is_not_there(policy: Any, options: dict[str, Any]) -> None:
    lengths = torch.tensor([3, 5, 1, 4])
    found = []
    for steps, absent, label in ((5, 0.0, 0), (5, math.nan, 99), (5, 1e9, -1), (9, math.inf, 2), (12, 0.0, -1)):
        x, y, noise = data(steps)
        padding = torch.arange(steps) >= lengths[:, None]
        x, y = torch.where(padding[..., None], absent, x), torch.where(padding, label, y)
        noise = torch.where(padding.T[..., None], 0.999 if label else 0.001, noise)
        model = make(grouped(), policy)
        loss = published(model, x, y, noise, lengths=lengths, **options)
        assert 0 <= float(loss.cost_fraction.detach()) <= 1
        values = [float(part.detach()) for part in loss]
        found.append((values, gradient(model, x, y, noise, lengths=lengths, **options)))
    for values, gradients in found[1:]:
        assert values == pytest.approx(found[0][0], rel=1e-12)
        assert close(gradients, found[0][1])
    assert any(part.abs().max() > 1e-6 for part in found[0][1].values())


@pytest.mark.parametrize("options", [{}, {"cost_path": False}, {"unbiased": False, "published": False}, {"unbiased": True}])
def test_lengths_are_truncation(options: dict[str, Any]) -> None:
    short = 3
    options = {"published": not options.get("unbiased", False), **options}
    cut, padded = data(short), data(7)
    found = []
    for (x, y, noise), lengths in ((cut, None), (padded, torch.full((B,), short))):
        model = make(grouped())
        loss = arm_loss(model, x, y, lam=0.4, noise=noise[..., :3], lengths=lengths, gamma=1.0, **options)
        loss.total.backward()
        found.append(([float(part.detach()) for part in loss], {n: p.grad for n, p in model.named_parameters()}))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    assert close(found[1][1], found[0][1])


@pytest.mark.parametrize("cost_path", [True, False])
@pytest.mark.parametrize("policy", ["dynamic", "static"])
def test_what_is_reported_is_the_first_trajectory_over_all_steps(policy: Any, cost_path: bool) -> None:
    """CE + λ Σ c z / (B T Σ c), whatever κ is and whichever way the gradient takes."""
    x, y, noise = data()
    model = make(grouped(), policy)
    first, second = both(model, x, noise)
    spent = [float((run.gates[:, 1:].detach() @ COST).sum() / (B * T * COST.sum())) for run in (first, second)]
    assert spent[0] != spent[1]
    loss = published(model, x, y, noise, lam=0.4, kappa=0.7, cost_path=cost_path)
    assert float(loss.cost_fraction.detach()) == pytest.approx(spent[0], rel=1e-9)
    task = functional.cross_entropy(first.logits.detach().flatten(0, 1), y.flatten())
    assert float(loss.task.detach()) == pytest.approx(float(task), rel=1e-9)
    assert float(loss.total.detach()) == pytest.approx(float(loss.task.detach()) + 0.4 * spent[0], rel=1e-9)


def test_a_labelled_step_weighs_for_those_without() -> None:
    """The official code multiplies a step's loss by steps over labels."""
    x, y, noise = data()
    y[0, 1:4] = y[2, 2] = -1
    assert torch.allclose(
        gradient(make(), x, y, noise)["selector.weight"], by_hand(make(), x, y, noise, torch.ones(D)), atol=1e-12
    )
    loss = published(make(), x, torch.full_like(y, -1), noise, allow_unlabelled=True)
    assert float(loss.task.detach()) == 0
    assert loss.total.isfinite()
