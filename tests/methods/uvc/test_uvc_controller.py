"""The controller: one step against a plain re-implementation, boxes, multipliers, gates and reproducibility."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from atlas.methods.uvc import (
    InfeasibleBudgetError,
    UVCController,
    apply_gates,
    is_gated,
    low,
    nxt,
    remove_gates,
    resource_grad,
    sample_gates,
    unit_scores,
)
from atlas.methods.uvc.gates import gate_slope
from atlas.methods.uvc.presets import PRESETS
from atlas.methods.uvc.scores import Ranked, column_scores
from atlas.methods.uvc.updates import _multiply

SIZE: dict[str, Any] = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 5}


def vit(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    settings = {"embed_dim": 16, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "weight_init": "jax"}
    model = VisionTransformer(**{**SIZE, **settings, **options})
    torch.nn.init.normal_(model.head.weight)
    return model


def controller(model: Any, budget: float = 0.5, seed: int = 0, **options: Any) -> UVCController:
    return UVCController(model, budget, generator=torch.Generator().manual_seed(seed), **options)


# Sums over the lowest.


def test_lowest_by_brute_force() -> None:
    values = torch.randint(0, 4, (3, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    for count in range(7):
        ordered = values.sort(-1).values
        assert torch.equal(low(values, torch.full((3, 5), count)), ordered[..., :count].sum(-1))
        assert torch.equal(nxt(values, torch.full((3, 5), count)), ordered[..., min(count, 5)])
        if count < 6:
            step = low(values, torch.full((3, 5), count + 1)) - low(values, torch.full((3, 5), count))
            assert torch.equal(step, nxt(values, torch.full((3, 5), count)))


@pytest.mark.parametrize("ask", [low, nxt])
@pytest.mark.parametrize(
    ("count", "message"),
    [
        (4, "count must be from 0 to 3, the number of values, not 4"),
        (3.2, "from 0 to 3, the number of values, not 3.2"),
        (-1, "not -1"),
        (math.nan, "not nan"),
        (torch.tensor([0.0, 5.0]), "not 5"),
        (torch.tensor([0, 1, 2]), r"one for each row \(2,\), not \(3,\)"),
    ],
)
def test_counts_of_more_than_there_is_are_refused(ask: Any, count: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(torch.rand(2, 3), count)
    assert ask(torch.rand(2, 3), 3).shape == ask(torch.rand(2, 3), torch.tensor([3, 0])).shape == (2,)


def test_lowest_by_hand() -> None:
    values = torch.tensor([3.0, 1.0, 2.0])
    assert (float(low(values, 0)), float(low(values, 0.2)), float(low(values, 2.5))) == (0, 1, 6)
    assert (float(nxt(values, 0.2)), float(nxt(values, 2.5))) == (2, 3)


# One step, against loops and sorted lists.


class Plain:
    """The step of the specification, element by element, in float64."""

    def __init__(self, made: UVCController, model: Any) -> None:
        self.made, self.preset = made, made.preset
        self.proj = [block.attn.proj.weight.detach().double().clone() for block in model.blocks]
        self.fc2 = [block.mlp.fc2.weight.detach().double().clone() for block in model.blocks]
        self.s, self.r, self.y, self.p = (getattr(made, name).double().clone() for name in "sryp")
        self.g, self.z = made.g.detach().double().clone(), float(made.z)
        self.heads, self.dims, self.neurons = made.shape.widest
        self.memory, self.pushed, self.t, self.jumps = torch.zeros_like(self.g), [], 0, 0

    def scores(self) -> tuple[list[list[list[float]]], list[list[float]]]:
        dims = [
            [[float(w[:, h * self.dims + j].square().sum()) for j in range(self.dims)] for h in range(self.heads)]
            for w in self.proj
        ]
        return dims, [[float(w[:, j].square().sum()) for j in range(self.neurons)] for w in self.fc2]

    @staticmethod
    def bottom(values: list[float], count: float) -> list[int]:
        return sorted(range(len(values)), key=lambda index: values[index])[: math.ceil(count)]

    def shrink(self, rate: float) -> None:
        dims, neurons = self.scores()
        for layer in range(len(dims)):
            totals = [sum(head) for head in dims[layer]]
            for head in range(self.heads):
                for j in self.bottom(dims[layer][head], float(self.r[layer, head])):
                    self.proj[layer][:, head * self.dims + j] /= 1 + 2 * rate * float(self.p[layer, head])
            for head in self.bottom(totals, float(self.s[layer, 0])):
                self.proj[layer][:, head * self.dims : (head + 1) * self.dims] /= 1 + 2 * rate * float(self.y[layer, 0])
            for j in self.bottom(neurons[layer], float(self.s[layer, 1])):
                self.fc2[layer][:, j] /= 1 + 2 * rate * float(self.y[layer, 1])

    def slopes(self, keep: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        dims, _ = self.scores()
        totals = torch.tensor([[sum(head) for head in layer] for layer in dims], dtype=torch.double)
        cost = self.made.preset.cost
        from atlas.methods.uvc import resource

        shape = self.made.shape
        value = float(resource(shape, self.s, self.r, keep, totals, cost))
        return (*resource_grad(shape, self.s, self.r, keep, totals, cost), value)

    def step(self, rate: float, loss: Tensor, draws: tuple[Tensor, Tensor], target: float) -> None:
        preset, normalised = self.preset, self.preset.normalised
        self.shrink(rate)
        first = self.keep(draws[0])
        ds, dr, dk, now = self.slopes(first)
        price = max(0.0, self.z + preset.damping * (now - target)) if preset.damping else self.z
        self.gates(loss, price, dk, first)
        self.counts(price, ds, dr)
        dims, neurons = self.scores()
        for layer in range(len(dims)):
            totals = [sum(head) for head in dims[layer]]
            for place, values in enumerate((totals, neurons[layer])):
                unit = sum(values) if normalised else 1.0  # mean · count
                lowest = sum(sorted(values)[: math.ceil(float(self.s[layer, place]))])
                self.y[layer, place] += preset.dual_lr * lowest / unit
            for head in range(self.heads):
                values = dims[layer][head]
                lowest = sum(sorted(values)[: math.ceil(float(self.r[layer, head]))])
                self.p[layer, head] += preset.dual_lr * lowest / (sum(values) if normalised else 1.0)
        self.z = max(0.0, self.z + preset.price_lr * (self.slopes(self.keep(draws[1]))[3] - target))
        self.t += 1

    def keep(self, noise: Tensor) -> Tensor:
        return ((self.g + noise) / 0.5).softmax(-1)[:, 1]

    def gates(self, loss: Tensor, price: float, dk: Tensor, keep: Tensor) -> None:
        slope = keep * (1 - keep) / 0.5
        full = loss + price * self.preset.gate_resource_weight * dk[:, None] * torch.stack((-slope, slope), -1)
        if self.preset.normalised:
            a = self.g[:, 1] - self.g[:, 0]
            self.memory[:, 1] = 0.9 * self.memory[:, 1] + full[:, 1]
            a = (a - 0.1 * self.memory[:, 1]).clamp(-4, 4)
            self.g = torch.stack((-a / 2, a / 2), -1)
            return
        self.pushed.append(full * (self.t % 50))
        if (self.t + 1) % 50 == 0:
            step = torch.stack(self.pushed).mean(0) + 1e-4 * self.g
            self.memory = step if not self.jumps else 0.9 * self.memory + step
            self.g = self.g - 0.1 * self.memory
            self.pushed, self.jumps = [], self.jumps + 1

    def counts(self, price: float, ds: Tensor, dr: Tensor) -> None:
        dims, neurons = self.scores()
        normalised = self.preset.normalised
        gs, gr = torch.zeros_like(self.s), torch.zeros_like(self.r)
        for layer in range(len(dims)):
            totals = [sum(head) for head in dims[layer]]
            for place, values in enumerate((totals, neurons[layer])):
                following = sorted(values)[min(math.ceil(float(self.s[layer, place])), len(values) - 1)]
                mean, unit = (sum(values) / len(values), len(values)) if normalised else (1.0, 1)
                gs[layer, place] = self.y[layer, place] * following / mean + price * ds[layer, place] * unit
            for head, values in enumerate(dims[layer]):
                following = sorted(values)[min(math.ceil(float(self.r[layer, head])), len(values) - 1)]
                mean, unit = (sum(values) / len(values), len(values)) if normalised else (1.0, 1)
                gr[layer, head] = self.p[layer, head] * following / mean + price * dr[layer, head] * unit
        tops = torch.tensor([self.heads - 1.0, self.neurons - 1.0]).double().expand_as(gs)
        for count, gradient, top, unit in (
            (self.s, gs, tops, tops + 1),
            (self.r, gr, torch.full_like(gr, self.dims - 1), torch.full_like(gr, self.dims)),
        ):
            gradient = torch.where((count <= 0) & (gradient > 0), 0, gradient)
            gradient = torch.where((count >= top) & (gradient < 0), 0, gradient)
            if float(gradient.abs().max()) > 1:
                gradient = gradient / (float(gradient.abs().max()) + 1e-6)
            moved = count - 0.02 * gradient * (unit if normalised else 1)
            count.copy_(torch.minimum(moved.clamp_min(0), top))


def noise_of(generator_state: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator()
    generator.set_state(generator_state)
    draws = [torch.rand(depth, 2, generator=generator).clamp_(1e-20, 1 - 1e-7).double() for _ in range(2)]
    return (-(-draws[0].log()).log(), -(-draws[1].log()).log())


@pytest.mark.parametrize("preset", ["normalised", "reference"])
def test_steps_agree_with_a_plain_implementation(preset: str) -> None:
    model = vit().double()
    made = controller(model, preset=preset, anneal_steps=30 if preset == "normalised" else 0)
    random = torch.Generator().manual_seed(1)
    made.s += torch.rand(3, 2, generator=random) * torch.tensor([2.0, 20.0])
    made.r += 2 * torch.rand(3, 4, generator=random)
    made.y *= 100
    made.p *= 200
    plain = Plain(made, model)
    for step in range(103):
        loss = 0.3 * torch.randn(3, 2, generator=random).double()
        loss[:, 0] = -loss[:, 1]
        made.g.grad = loss.clone()
        noise, target = noise_of(made.generator.get_state(), 3), made.target()
        log = made.step(0.01)
        plain.step(0.01, loss, noise, target)
        assert log.step == step + 1
        for name in ("s", "r", "y", "p", "g"):
            assert torch.allclose(getattr(made, name).detach(), getattr(plain, name), rtol=1e-9, atol=1e-10), (step, name)
        assert float(made.z) == pytest.approx(plain.z, rel=1e-9)
    for layer, block in enumerate(model.blocks):
        assert torch.allclose(block.attn.proj.weight, plain.proj[layer], rtol=1e-10, atol=1e-12)
        assert torch.allclose(block.mlp.fc2.weight, plain.fc2[layer], rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_shrinking_is_a_proximal_step() -> None:
    """The factor solves argmin ½‖x − w‖²/η + y‖x‖²; with y = p = 0 nothing moves; what is lowest stays lowest."""
    model = vit()
    made = controller(model, skip=False)
    made.s += torch.tensor([2.0, 5.0])
    made.r += 1
    kept = [w.detach().clone() for w in made._weights[0]]
    before = made.plan()
    made.y.zero_()
    made.p.zero_()
    made._shrink(*made._scores(), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(kept, made._weights[0], strict=True))
    made.y += 0.7
    made.p += 0.4
    shrunk = made._shrink(*made._scores(), 0.1)
    assert made.plan() == before
    lowest = made.plan().dims.logical_not()
    for layer in range(3):
        ratio = made._weights[0][layer] / kept[layer]
        for head, j in itertools.product(range(4), range(4)):
            column = ratio[:, head * 4 + j]
            if not lowest[layer, head].all() and lowest[layer, head, j]:
                x, w = made._weights[0][layer][:, head * 4 + j], kept[layer][:, head * 4 + j]
                assert torch.allclose((x - w) / 0.1 + 2 * 0.4 * x, torch.zeros_like(x), atol=1e-6)
            elif not lowest[layer, head].any():
                assert torch.equal(column, torch.ones_like(column))
    for found, again in zip(shrunk, made._ranked(*made._scores()), strict=True):
        assert torch.equal(found.order, again.order)
        assert torch.allclose(found.sorted, again.sorted, rtol=1e-5)
        assert torch.allclose(found.total, again.total, rtol=1e-5)


# Boxes and multipliers.


def test_counts_stay_in_their_boxes_and_multipliers_behave() -> None:
    model = vit()
    made = controller(model, 0.2, preset="normalised")
    last_y, last_p = made.y.clone(), made.p.clone()
    for _ in range(120):
        before, target = float(made.z), made.target()
        log = made.step(1e-3)
        assert (made.s >= 0).all()
        assert (made.r >= 0).all()
        assert (made.s <= made.top_s).all()
        assert (made.r <= made.top_r).all()
        assert (made.y >= last_y).all()
        assert (made.p >= last_p).all()
        assert float(made.z) >= 0
        if float(made.z) > 0:
            assert float(made.z) - before == pytest.approx(0.2 * (float(log.resource) - target), abs=1e-5)
        last_y, last_p = made.y.clone(), made.p.clone()
    assert float(made.s.max()) > 1


def test_a_count_at_the_top_comes_back() -> None:
    """The authors' code absorbs what reaches the top; here a positive gradient takes it down again."""
    made = controller(vit(), skip=False, preset="reference")
    made.s.copy_(made.top_s)
    made.z.zero_()
    made.y += 1000
    made.step(1e-3)
    assert (made.s < made.top_s).all()


def test_full_budget_prunes_nothing() -> None:
    for preset in ("normalised", "reference"):
        made = controller(vit(), 1.0, preset=preset)
        for _ in range(60):
            made.step(1e-3)
        assert float(made.z) == 0
        plan = made.plan()
        assert plan.keep.all()
        assert plan.dims.all()
        assert plan.neurons.all()


def test_the_price_grows_linearly_while_the_budget_is_exceeded() -> None:
    made = controller(vit(), 0.3, preset="reference", skip=False)
    made.y += 1e6  # nothing can be removed
    made.p += 1e6
    values = [float(made.step(1e-4).dual) for _ in range(10)]
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert steps == pytest.approx([0.7] * 9, abs=1e-4)


def test_window_of_the_reference_stops_pruning_from_starting() -> None:
    from dataclasses import replace

    made = controller(vit(), 0.3, preset="reference", skip=False)
    made.preset = replace(PRESETS["reference"], resource_window=0.5)
    for _ in range(20):
        made.step(1e-3)
    assert not made.s.any()
    free = controller(vit(), 0.3, preset="reference", skip=False)
    for _ in range(20):
        free.step(1e-3)
    assert free.s.any()


# Gates.


def test_gate_draws() -> None:
    logits = torch.tensor([[-1.0, 1.0]]).repeat(100_000, 1)
    random = torch.Generator().manual_seed(0)
    soft = sample_gates(logits, generator=random)
    assert float(soft.min()) >= 0
    assert float(soft.max()) <= 1
    hard = sample_gates(logits, "gumbel_hard", generator=random)
    assert set(hard.unique().tolist()) <= {0.0, 1.0}
    assert float(hard.mean()) == pytest.approx(0.8808, abs=0.004)
    assert float((soft > 0.5).float().mean()) == pytest.approx(0.8808, abs=0.004)


@pytest.mark.parametrize("gate", ["gumbel_soft", "gumbel_hard", "softl0"])
def test_gate_slopes(gate: Any) -> None:
    from atlas.methods.uvc.gates import gate_slope

    logits = torch.randn(6, 2, dtype=torch.double, requires_grad=True)
    keep = sample_gates(logits, gate, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad(keep.sum(), logits)
    soft = sample_gates(logits, "gumbel_soft" if gate == "gumbel_hard" else gate, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(gradient, gate_slope(logits, soft, gate).detach())
    if gate != "softl0":
        assert torch.allclose(gradient[:, 0], -gradient[:, 1])


def test_gates_without_noise_sharpen_from_epoch_to_epoch() -> None:
    """g²/(g² + ε) with ε = 0.1 · 0.92^epochs; the first epoch is no later one, nor is one in which nothing was done."""
    made = controller(vit(), gate="softl0")
    made.start_epoch()
    for epoch in range(3):
        expected = 1 / (1 + 0.1 * 0.92**epoch)
        with torch.no_grad():
            made.g.copy_(torch.tensor([[-1.0, 1.0]]).expand(3, 2))
        assert made.keep_weights().tolist() == pytest.approx([expected] * 3, rel=1e-6)
        (slope,) = torch.autograd.grad(made.keep_weights().sum(), made.g)
        assert slope[:, 1].tolist() == pytest.approx([2 * expected * (1 - expected)] * 3, rel=1e-5)
        made.step(1e-2)
        state = made.state_dict()
        made = controller(vit(), gate="softl0", seed=1)
        made.load_state_dict(state)
        made.start_epoch()


def test_gated_model() -> None:
    model, images = vit(), torch.randn(3, 1, 8, 8)
    dense = model.eval()(images)
    made = controller(model)
    blocks = list(model.blocks)
    apply_gates(model, made)
    assert torch.equal(model(images), dense)  # everything is kept: the very numbers of the dense model
    with pytest.raises(RuntimeError, match="has gates already"):
        apply_gates(model, made)
    model.train()
    made.skip = False
    assert torch.equal(model(images), dense)  # k = 1
    made.skip, made.warming_up = True, True
    tokens = torch.randn(2, 5, 16)
    made.draw()
    assert torch.allclose(model.blocks[1](tokens), tokens + 0.5 * (blocks[1](tokens) - tokens), atol=1e-6)
    made.warming_up = False
    first, second = model(images), model(images)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert torch.allclose(made.g.grad[:, 0], -made.g.grad[:, 1], atol=1e-6)
    model.eval()
    with torch.no_grad():
        made.g[1] = torch.tensor([1.0, -1.0])
    made._decision = None
    assert torch.equal(model.blocks[1](tokens), tokens)
    remove_gates(model)
    assert not is_gated(model)
    assert all(a is b for a, b in zip(model.blocks, blocks, strict=True))
    assert torch.equal(model(images), dense)


def test_one_block_always_stays() -> None:
    made = controller(vit(), 0.5)
    with torch.no_grad():
        made.g.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.1], [2.0, -2.0]]))
    assert made.plan().keep.tolist() == [False, True, False]


def test_warming_up_changes_nothing() -> None:
    made = controller(vit())
    made.warming_up = True
    state = made.state_dict()
    made.step(1e-2)
    assert all(torch.equal(state[name], made.state_dict()[name]) for name in ("s", "r", "g", "y", "p", "z"))
    assert made.keep_weights().tolist() == [0.5] * 3


# Same again.


@pytest.mark.parametrize("preset", ["normalised", "reference"])
def test_state_goes_on_identically(preset: str) -> None:
    def run(made: UVCController, model: Any, steps: range) -> None:
        for step in steps:
            made.g.grad = torch.full((3, 2), 0.01 * (step % 7 - 3)) * torch.tensor([-1.0, 1.0])
            made.step(1e-2)

    model = vit()
    whole = controller(model, preset=preset)
    run(whole, model, range(130))
    other = vit()
    first = controller(other, preset=preset)
    run(first, other, range(70))
    state = first.state_dict()
    second = controller(other, preset=preset, seed=99)
    second.load_state_dict(state)
    run(second, other, range(70, 130))
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.state_dict()[name])), name
    assert whole.plan() == second.plan()


def test_float32_and_float64_agree_on_the_plan() -> None:
    plans = []
    for dtype in (torch.float32, torch.float64):
        made = controller(vit().to(dtype), 0.4, anneal_steps=20)
        for _ in range(60):
            made.step(1e-2)
        plans.append(made.plan())
    assert plans[0] == plans[1]


def test_scores_are_float32_of_half_precision_weights() -> None:
    model = vit().bfloat16()
    assert unit_scores(model).dims.dtype == torch.float32
    made = controller(model)
    made.step(1e-2)
    assert made.s.dtype == torch.float32
    assert model.blocks[0].attn.proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-6)])
def test_scores_are_the_squared_norms_of_columns(dtype: torch.dtype, rounding: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, columns, generator=draw).to(dtype) for rows, columns in ((768, 300), (96, 64), (7, 3), (1, 1))]
    for weight, found in zip(weights, column_scores([*weights, weights[0].mT]), strict=False):
        wanted = weight.double().square().sum(0)
        torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=0)
    torch.testing.assert_close(column_scores([weights[0].mT])[0].double(), weights[0].double().square().sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("many", [0, 3, 300])
@pytest.mark.parametrize("size", [(700, 800), (20, 30)])
def test_columns_are_multiplied_in_place_whatever_their_number(size: tuple[int, int], many: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, factors = torch.randn(size, generator=draw), torch.ones(size[1])
    chosen = torch.randperm(size[1], generator=draw)[:many]
    factors[chosen] = torch.rand(len(chosen), generator=draw)
    wanted = weight * factors
    _multiply(weight, factors)
    assert torch.equal(weight, wanted)


def test_ranks_of_shrunk_scores_are_those_of_sorting_again() -> None:
    values = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    exist = torch.ones_like(values, dtype=torch.bool)
    exist[1, 6:] = False
    values[~exist] = 0
    before, count = Ranked(values, exist), torch.tensor([0, 3, 9, 5])
    shrunk = torch.where(before.bottom(count), 0.7, 1) * values
    again, kept = Ranked(shrunk, exist), before.shrunk(shrunk)
    for name in ("sorted", "order", "sums", "total"):
        assert torch.equal(getattr(again, name), getattr(kept, name))


@pytest.mark.parametrize("kind", ["distinct", "ties", "negative", "missing", "not a number"])
def test_many_scores_are_sorted_as_few_are(kind: str) -> None:
    values = torch.rand(3, 2000, generator=torch.Generator().manual_seed(0))
    exist = torch.ones_like(values, dtype=torch.bool)
    if kind == "ties":
        values = (4 * values).round()
    elif kind == "negative":
        values = (values - 0.5).mul(8).round()  # among them 0 and −0
    elif kind == "missing":
        exist[1, 700:] = False
    elif kind == "not a number":
        values[1, 3] = math.nan
        values[2, 5] = -values[1, 3]
    wanted = values.double().masked_fill(~exist, torch.inf).sort(dim=-1, stable=True)
    found = Ranked(values, exist)
    assert torch.equal(found.order, wanted.indices)
    torch.testing.assert_close(found.sorted.double(), wanted.values, rtol=0, atol=0, equal_nan=True)


# Blocks of unequal shape, and edges.


def test_degenerate_sizes() -> None:
    made = controller(vit(depth=1, num_heads=1, mlp_ratio=1), 0.5, anneal_steps=0)
    for _ in range(60):
        made.step(1e-2)
    assert float(made.s[0, 0]) == 0  # a single head is never pruned
    assert made.plan().keep.tolist() == [True]  # nor is a single block
    narrow = controller(vit(num_heads=16), 0.5)
    for _ in range(20):
        narrow.step(1e-2)
    assert not narrow.r.any()  # a single dim is never pruned


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_budgets_that_are_none(budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\]"):
        controller(vit(), budget)


def test_budgets_that_cannot_be_met() -> None:
    one_dim_each = "below 0.143042, the smallest surviving model that every search can reach: one block with one dim in each"
    for options in ({}, {"skip": False}):
        with pytest.raises(InfeasibleBudgetError, match=one_dim_each):
            controller(vit(), 0.01, **options)
    controller(vit(), 0.143042)
    with pytest.raises(InfeasibleBudgetError, match=r"below 0\.353328, .*: one whole block"):
        controller(vit(), 0.2, prune=False)
    with pytest.raises(InfeasibleBudgetError, match=r"below 0\.11200\d, .*: every block with one head, dim and neuron"):
        controller(vit(depth=6), 0.1, skip=False)
    with pytest.raises(InfeasibleBudgetError, match=r"below 1\.000000, .*: the dense model"):
        controller(vit(), 0.9, prune=False, skip=False)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e-3])
def test_a_learning_rate_that_is_none_leaves_everything_as_it_is(wrong: float) -> None:
    model = vit()
    made = controller(model)
    made.step(1e-2)
    before, state = [weight.clone() for weight in model.parameters()], made.state_dict()
    for warming in (False, True):
        made.warming_up = warming
        with pytest.raises(ValueError, match=f"step 2: weight_lr must be finite and at least 0, not {wrong}"):
            made.step(wrong)
    made.warming_up = False
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    now = made.state_dict()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(now[name])) for name, value in state.items())
    with pytest.raises(TypeError, match="weight_lr must be a number, not 'fast'"):
        made.step("fast")  # type: ignore[arg-type]


def test_frozen_weights_and_nan_are_refused() -> None:
    model = vit()
    model.blocks[1].mlp.fc2.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        controller(model)
    model = vit()
    made = controller(model)
    made.step(1e-2)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="step 2"):
        made.step(1e-2)
    with pytest.raises(FloatingPointError, match="step 0"):
        controller(model)
    with pytest.raises(ValueError, match="pace must be above 0"):
        controller(vit(), pace=0.0)
    with pytest.raises(ValueError, match="preset must be one of"):
        controller(vit(), preset="paper")


@pytest.mark.parametrize(("gate", "kind"), [("softl0", "softl0"), ("gumbel_soft", "gumbel_soft"), ("gumbel_hard", "gumbel_soft")])
def test_gates_are_moved_by_the_slope_of_their_own_kind(monkeypatch: pytest.MonkeyPatch, gate: Any, kind: str) -> None:
    asked: list[str] = []

    def slope(logits: Tensor, draw: Tensor, kind: str, **options: Any) -> Tensor:
        asked.append(kind)
        return gate_slope(logits, draw, kind, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("atlas.methods.uvc.controller.gate_slope", slope)
    controller(vit(), gate=gate).step(1e-3)
    assert set(asked) == {kind}
