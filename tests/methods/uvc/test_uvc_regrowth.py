"""S²ViTE: how much is kept, what goes and comes back, and that what is removed puts out nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.uvc.test_uvc_entry import short, trained
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from atlas.harness.files import read_tensors
from atlas.methods.uvc import CompressionPlan, InfeasibleBudgetError, ViTShape, export
from atlas.methods.uvc.baselines import S2ViTE
from atlas.methods.uvc.regrowth import (
    UnitSignals,
    chosen_plan,
    exchanged,
    exchanged_share,
    random_plan,
    silence,
    unit_counts,
    unit_signals,
)
from atlas.methods.uvc.settings import S2ViTESettings
from atlas.settings import merge

TINY = ViTShape(12, 3, 64, 192, 768, 197, 196, 16, 3)
SMALL = replace(TINY, heads=6, embed_dim=384, mlp_dim=1536)
BASE = replace(TINY, heads=12, embed_dim=768, mlp_dim=3072)


def vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=16, depth=3, num_heads=4, mlp_ratio=2, weight_init="jax"
    )
    torch.nn.init.normal_(model.head.weight)  # 0 at first: nothing would have a gradient
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 8, 8, generator=random), torch.randint(0, 5, (6,), generator=random)


@pytest.mark.parametrize(
    ("shape", "neuron_share", "parameters", "kept"),
    [(TINY, 0.7, 5_717_416, 4.21e6), (SMALL, 0.6, 22_050_664, 14.60e6), (BASE, 0.6, 86_567_656, 56.80e6)],
)
def test_the_published_shares_leave_the_published_parameters(
    shape: ViTShape, neuron_share: float, parameters: int, kept: float
) -> None:
    """The authors mask rows of queries, keys and values, and neurons, and count what is not masked: the projection is whole."""
    heads, neurons = unit_counts(shape, 1, 0.7, neuron_share)
    (count,), (some,) = set(heads), set(neurons)
    dim, (most, width, size) = shape.embed_dim, shape.widest
    left = parameters - shape.depth * (3 * (most - count) * width * dim + 2 * (size - some) * dim)
    assert left == pytest.approx(kept, rel=0.002)


@pytest.mark.parametrize("shape", [TINY, SMALL, ViTShape(3, (2, 4, 1), (6, 3, 8), 24, (10, 7, 16), 9, 8, 2, 1)])
@pytest.mark.parametrize("budget", [0.7, 0.5])
def test_counts_fit_the_budget_and_leave_no_neuron_out(shape: ViTShape, budget: float) -> None:
    heads, neurons = unit_counts(shape, budget)
    left = random_plan(shape, (heads, neurons), torch.Generator().manual_seed(0)).r_phys(shape)
    assert left <= budget
    more = shape.depth * shape.neuron_macs / shape.full_macs
    if shape is not TINY and isinstance(shape.heads, int):
        assert budget - left < more, "one neuron more in every block would not fit"
    if shape is SMALL and budget == 0.5:
        assert set(heads) == {3}
        assert abs(neurons[0] / 1536 - 0.5) < 0.02


def test_budgets_that_cannot_be_met_say_what_can() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"budget 0.3 is below the smallest model with these shares, 0.6"):
        unit_counts(SMALL, 0.3, 0.7, 0.6)


def test_the_exchange_falls_by_half_a_cosine() -> None:
    assert [round(exchanged_share(step, 8, 0.5), 4) for step in (0, 2, 4, 8, 9)] == [0.5, 0.4268, 0.25, 0.0, 0.0]


def test_the_least_go_and_the_largest_gradients_come() -> None:
    shape = ViTShape(1, 4, 2, 8, 6, 5, 4, 2, 1)
    plan = CompressionPlan.identity(shape)
    plan.dims[0, 3] = False
    plan.neurons[0, 4:] = False
    signals = UnitSignals(
        torch.tensor([[3.0, 1.0, 2.0, 9.0]]),
        torch.tensor([[9.0, 1.0, 9.0, 5.0]]),
        torch.tensor([[4.0, 3.0, 2.0, 1.0, 9.0, 9.0]]),
        torch.tensor([[9.0, 9.0, 0.5, 3.0, 1.0, 2.0]]),
    )
    after = exchanged(plan.copy(), signals, shape, 0.5)
    # of three heads two go, 1 and 2, and of the others 2 (just pruned) and 3 have the largest gradients
    assert after.heads[0].tolist() == [True, False, True, True]
    # of four neurons 2 and 3 go; 3 comes back at once, and 5
    assert after.neurons[0].tolist() == [True, True, False, True, False, True]
    assert exchanged(plan.copy(), signals, shape, 0.0) == plan


def test_signals_are_those_of_the_definition() -> None:
    """Heads by A and its gradient, from a gate of ones on A; neurons by weights and their gradients."""
    model, (images, labels) = vit(), batch()
    shape = ViTShape.from_timm(model)
    signals = unit_signals(model, images, labels, functional.cross_entropy, shape, micro_batch=4)
    seen: list[torch.Tensor] = []
    attention = model.blocks[1].attn

    def keep(module: Any, inputs: tuple[torch.Tensor]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    attention.proj.register_forward_pre_hook(keep)
    functional.cross_entropy(model(images), labels).backward()
    ((output, gradient),) = [(one.detach(), one.grad) for one in seen]
    assert gradient is not None
    by_image = (output * gradient).unflatten(-1, (4, 4)).sum((1, 3)).abs().mean(0)
    assert torch.allclose(signals.keep_heads[1], by_image, rtol=1e-4)
    assert torch.allclose(signals.grow_heads[1], gradient.abs().unflatten(-1, (4, 4)).sum((0, 1, 3)), rtol=1e-4)
    mlp = model.blocks[1].mlp
    weights = mlp.fc1.weight.abs().sum(1) + mlp.fc2.weight.abs().sum(0)
    assert torch.allclose(signals.keep_neurons[1], weights)
    gradients = mlp.fc1.weight.grad.abs().sum(1) + mlp.fc2.weight.grad.abs().sum(0)
    assert torch.allclose(signals.grow_neurons[1], gradients, rtol=1e-4)


def test_removed_units_are_silent_and_heard_when_they_come_back() -> None:
    model, (images, labels) = vit(), batch()
    shape = ViTShape.from_timm(model)
    plan = random_plan(shape, unit_counts(shape, 0.6), torch.Generator().manual_seed(0))
    silence(model, plan)
    small = export(model, plan)
    assert torch.allclose(small(images), model(images), atol=1e-5)
    signals = unit_signals(model, images, labels, functional.cross_entropy, shape)
    assert (signals.grow_heads > 0).all(), "silent heads have gradients"
    assert (signals.grow_neurons > 0).all(), "silent neurons have gradients"
    later = exchanged(plan.copy(), signals, shape, 0.5)
    new = later.heads & ~plan.heads
    assert new.any()
    before = model(images)
    model.train()
    functional.cross_entropy(model(images), labels).backward()
    assert torch.allclose(model(images), before, atol=1e-6), "a unit that comes back changes nothing at first"
    layer, head = new.nonzero()[0].tolist()
    rows = slice(2 * 16 + head * 4, 2 * 16 + (head + 1) * 4)
    assert model.blocks[layer].attn.qkv.weight.grad[rows].abs().sum() > 0, "and learns"


def test_the_best_are_chosen_from_a_trained_model() -> None:
    shape = ViTShape(2, 3, 2, 6, 4, 5, 4, 2, 1)
    heads, neurons = torch.tensor([[1.0, 3, 2], [5, 4, 6]]), torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    plan = chosen_plan(shape, ([2, 1], [1, 2]), heads, neurons)
    assert plan.heads.tolist() == [[False, True, True], [False, False, True]]
    assert plan.neurons.tolist() == [[False, False, False, True], [True, True, False, False]]


def test_epochs_split_at_the_end_of_the_exchange() -> None:
    assert S2ViTESettings().stages == (480, 120)
    assert S2ViTESettings(epochs=1).stages == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [True, False])
def test_units_are_exchanged_while_it_trains(workspace: Path, from_scratch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[CompressionPlan] = []
    original = S2ViTE.signals

    def seen(self: S2ViTE, *arguments: Any) -> UnitSignals:
        plans.append(CompressionPlan.identity(arguments[1]))
        return original(self, *arguments)

    monkeypatch.setattr(S2ViTE, "signals", seen)
    run = short(workspace, "s2vite", epochs=5, interval=1, from_scratch=from_scratch, alpha=0 if from_scratch else 0.5)
    run = replace(run, protocol=merge(run.protocol, {"backbone": {"depth": 2}}), needs=run.needs)
    run = replace(run, needs={"dense": replace(run.needs["dense"], protocol=run.protocol)})
    metrics = trained(run)
    assert 0 <= 0.5 - metrics["r_phys"] < 0.01
    assert metrics["blocks_kept"] == 2
    steps = 4 * 1  # of the epochs with exchange, of one step each
    assert len(plans) == steps - 1 + (not from_scratch)
    assert read_tensors(run.weights)["blocks.0.mlp.fc1.weight"].shape[0] * 2 == metrics["neurons_kept"]
