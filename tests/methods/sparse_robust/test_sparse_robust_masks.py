"""How a density is shared out, drawn and scored: identities, hand-computed values, brute force, independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from atlas.methods.sparse_robust import density_of, layer_densities, prunable, random_masks, saliency, score_masks
from atlas.methods.sparse_robust.masks import check_masks
from atlas.nn.convnets import MLP, PreActResNet, SmallConvNet
from atlas.nn.sparse_costs import flops

SCHEMES = ("uniform", "erk", "igq")


def random_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(build):  # type: ignore[no-untyped-def]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def network() -> nn.Module:
    return seeded(lambda: SmallConvNet(5, 1, (8, 12)))


def batch(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 1, 8, 8, generator=random_source(1)), torch.randint(5, (count,), generator=random_source(2))


def test_what_is_prunable() -> None:
    model = network()
    assert list(prunable(model)) == ["0.weight", "3.weight", "9.weight"]
    assert list(prunable(model, ("3",))) == ["0.weight", "9.weight"]
    assert list(prunable(model, ("9.weight",))) == ["0.weight", "3.weight"]
    with pytest.raises(KeyError, match="no_such"):
        prunable(model, ("no_such",))
    with pytest.raises(ValueError, match="no weight"):
        prunable(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 1.0])
def test_densities_add_up(scheme: str, density: float) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in prunable(network()).items()}
    found = layer_densities(shapes, density, scheme)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(density * sum(sizes.values()), rel=1e-9)
    assert all(0 < value <= 1 for value in found.values())
    assert layer_densities({"only": (4, 5)}, density, scheme)["only"] == pytest.approx(density)


def test_ideal_gas_quotas_by_hand() -> None:
    """Layers of N and 3N at d = 0.5: u = F·N solves 3u² + u − 1 = 0."""
    found = layer_densities({"a": (10, 10), "b": (10, 30)}, 0.5)
    root = (math.sqrt(13) - 1) / 6
    assert found["a"] == pytest.approx(1 / (1 + root), abs=1e-12)
    assert found["a"] == pytest.approx(0.69722, abs=1e-5)
    assert found["b"] == pytest.approx(0.43426, abs=1e-5)
    sizes = layer_densities({"small": (5, 5), "large": (50, 50), "again": (25, 1), "middle": (20, 10)}, 0.2)
    assert sizes["small"] == sizes["again"] > sizes["middle"] > sizes["large"]


def test_erdos_renyi_kernel_by_hand() -> None:
    """Layers of 2 × 2 and 10 × 10 at d = 0.5: (Σ/Π) is 1 and 0.2; the first is capped at 1, the second gets the rest."""
    found = layer_densities({"a": (2, 2), "b": (10, 10)}, 0.5, "erk")
    assert found == {"a": 1.0, "b": pytest.approx((0.5 * 104 - 4) / 100)}
    uncapped = layer_densities({"a": (20, 20), "b": (40, 40)}, 0.1, "erk")
    assert uncapped["a"] == pytest.approx(2 * uncapped["b"])
    flat = layer_densities({"a": (20, 20), "b": (40, 40)}, 0.1, "erk", power=0)
    assert flat["a"] == pytest.approx(flat["b"]) == pytest.approx(0.1)


@pytest.mark.parametrize(("classes", "pixels", "published"), [(10, 32, 80.60e9), (100, 32, 79.84e9), (200, 64, 317.17e9)])
def test_the_papers_table_used_ideal_gas_quotas(classes: int, pixels: int, published: float) -> None:
    """Flying Bird's inference cost as printed is 2·nnz·(number of outputs) over the convolutions, which counts channels twice."""
    with torch.device("meta"):
        model = PreActResNet(classes)
    weights = prunable(model)
    densities = layer_densities({name: tuple(weight.shape) for name, weight in weights.items()}, 0.2)
    outputs = flops(model, (3, pixels, pixels)).outputs
    found = sum(2 * densities[name] * weight.numel() * outputs[name] for name, weight in weights.items() if weight.ndim == 4)
    assert found == pytest.approx(published, rel=1e-4)


def test_true_saving_of_the_main_setting() -> None:
    with torch.device("meta"):
        model = PreActResNet(10)
    weights = prunable(model)
    dense = flops(model, (3, 32, 32)).dense_per_layer
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for scheme, ratio in (("igq", 0.5163), ("erk", 0.5078)):
        densities = layer_densities(shapes, 0.2, scheme)
        assert sum(densities[name] * dense[name] for name in dense) / sum(dense.values()) == pytest.approx(ratio, abs=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_masks_have_exact_counts_and_follow_the_generator(scheme: str) -> None:
    model = network()
    shapes = {name: tuple(weight.shape) for name, weight in prunable(model).items()}
    densities = layer_densities(shapes, 0.3, scheme)
    masks = random_masks(model, 0.3, scheme, random_source())
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == mask.numel() - int((1 - densities[name]) * mask.numel())
    again, other = random_masks(model, 0.3, scheme, random_source()), random_masks(model, 0.3, scheme, random_source(1))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)
    assert density_of(masks) == pytest.approx(0.3, abs=3 / sum(map(math.prod, shapes.values())))
    assert all(mask.all() for mask in random_masks(model, 1.0, scheme).values())


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_impossible_densities(density: float) -> None:
    model = network()
    for call in (
        lambda: layer_densities({"a": (2, 2)}, density),
        lambda: random_masks(model, density),
        lambda: score_masks(model, density, "magnitude"),
    ):
        with pytest.raises(ValueError, match="density"):
            call()


def test_unknown_names() -> None:
    model = network()
    with pytest.raises(ValueError, match="scheme"):
        layer_densities({"a": (2, 2)}, 0.5, "other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="criterion"):
        score_masks(model, 0.5, "other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scope"):
        score_masks(model, 0.5, "magnitude", scope="other")  # type: ignore[arg-type]
    for criterion in ("snip", "grasp", "synflow"):
        with pytest.raises(ValueError, match="needs data"):
            score_masks(model, 0.5, criterion)


@pytest.mark.parametrize("density", [0.2, 0.37, 0.9, 1.0])
def test_magnitude_equals_torchs_pruning(density: float) -> None:
    model = network()
    masks = score_masks(model, density, "magnitude")
    pruned = network()
    layers = [(module, "weight") for module in pruned if isinstance(module, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - density)
    buffers = dict(pruned.named_buffers())
    for name, mask in masks.items():
        assert torch.equal(mask, buffers.get(f"{name}_mask", torch.ones_like(mask)).bool())


def test_one_threshold_per_layer() -> None:
    model = network()
    masks = score_masks(model, 0.25, "magnitude", scope="layer")
    for name, mask in masks.items():
        weights = prunable(model)[name].abs()
        assert int(mask.sum()) == mask.numel() - round(0.75 * mask.numel())
        assert weights[mask].min() > weights[~mask].max()


def test_ties_are_all_pruned() -> None:
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 2.0, 3.0]]))
    assert score_masks(model, 0.5, "magnitude")["weight"].tolist() == [[False, False, False, True]]


def test_snip_is_weight_times_gradient_summed_over_batches() -> None:
    model = network().eval()
    x, y = batch()
    halves = [(x[:8], y[:8]), (x[8:], y[8:])]
    found = saliency(model, "snip", halves)
    loss = 2 * functional.cross_entropy(model(x), y)
    for (name, weight), gradient in zip(
        prunable(model).items(), torch.autograd.grad(loss, list(prunable(model).values())), strict=True
    ):
        torch.testing.assert_close(found[name], (weight * gradient).abs())


def test_snip_is_the_derivative_by_the_mask() -> None:
    model = network().double().eval()
    x, y = batch()
    found = saliency(model, "snip", (x.double(), y))["9.weight"]
    weight = prunable(model)["9.weight"]
    losses = []
    for change in (1e-6, -1e-6):
        with torch.no_grad():
            before = weight[2, 3].clone()
            weight[2, 3] = before * (1 + change)
            losses.append(float(functional.cross_entropy(model(x.double()), y)))
            weight[2, 3] = before
    assert float(found[2, 3]) == pytest.approx(abs(losses[0] - losses[1]) / 2e-6, rel=1e-4)


def test_grasp_against_a_finite_difference() -> None:
    """Hg, the Hessian times the gradient, is the change of the gradient along itself."""
    model = seeded(lambda: MLP(5, 6, (7,))).double()
    x, y = torch.rand(12, 6, generator=random_source(), dtype=torch.float64), batch(12)[1]
    found = saliency(model, "grasp", (x, y))
    weights = prunable(model)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(functional.cross_entropy(model(x) / 200, y), list(weights.values())))

    direction = gradients()
    small, changed = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, along in zip(weights.values(), direction, strict=True):
                weight.add_(along, alpha=sign * small)
        changed.append(gradients())
        with torch.no_grad():
            for weight, along in zip(weights.values(), direction, strict=True):
                weight.sub_(along, alpha=sign * small)
    for (name, weight), after, before in zip(weights.items(), changed[0], changed[1], strict=True):
        expected = weight.detach() * (after - before) / (2 * small)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-14)


def test_grasp_keeps_the_largest() -> None:
    model, data = network(), batch()
    scores = saliency(model, "grasp", data)
    masks = score_masks(model, 0.2, "grasp", data)
    kept = torch.cat([scores[name][mask] for name, mask in masks.items()])
    pruned = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert kept.min() > pruned.max()
    total = len(kept) + len(pruned)
    assert len(pruned) == int(0.8 * total)


def test_synflow_is_positive_and_conserved() -> None:
    """Without biases and normalisations, every layer's scores add up to the same number."""
    layers = [nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False)]
    model = nn.Sequential(*layers)
    scores = saliency(model, "synflow", (torch.rand(2, 6), torch.zeros(2)))
    assert all((score > 0).all() for score in scores.values())
    sums = [float(score.sum()) for score in scores.values()]
    assert sums == pytest.approx([sums[0]] * 3)


def test_synflow_rounds_avoid_empty_layers() -> None:
    model = seeded(lambda: MLP(10, 64, (256, 256)))
    data = (torch.rand(1, 1, 8, 8), torch.zeros(1))
    masks = score_masks(model, 0.01, "synflow", data)
    assert min(int(mask.sum()) for mask in masks.values()) > 0
    total = sum(mask.numel() for mask in masks.values())
    assert abs(density_of(masks) - 0.01) < 2 / total + 1e-3
    once = score_masks(model, 0.2, "synflow", data, rounds=1)
    scores = saliency(model, "synflow", data)
    threshold = torch.cat([score.flatten() for score in scores.values()]).kthvalue(int(0.8 * total)).values
    assert all(torch.equal(once[name], scores[name] > threshold) for name in once)
    with pytest.raises(ValueError, match="rounds"):
        score_masks(model, 0.2, "synflow", data, rounds=0)


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp", "synflow"])
def test_scoring_leaves_the_model_as_it_was(criterion: str) -> None:
    model, data = network().train(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = score_masks(model, 0.3, criterion, data, rounds=2)
    assert density_of(masks) == pytest.approx(0.3, abs=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp", "synflow"])
def test_scores_do_not_depend_on_the_mode_of_autograd_or_on_frozen_weights(criterion: str, mode) -> None:  # type: ignore[no-untyped-def]
    model, (x, y) = network(), batch()
    expected = saliency(model, criterion, (x, y))
    model[0].requires_grad_(False)
    with mode():
        found = saliency(model, criterion, (x.clone(), y.clone().int()))
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score)
    assert [parameter.requires_grad for parameter in model[0].parameters()] == [False] * len(list(model[0].parameters()))
    assert all(parameter.requires_grad for parameter in model[3].parameters())


def test_masks_of_numbers_become_masks_of_truth_values() -> None:
    layer = nn.Linear(3, 2)
    given = {"weight": torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])}
    checked = check_masks(layer, given)["weight"]
    assert checked.dtype == torch.bool
    assert checked.tolist() == [[True, False, True], [False, False, True]]
    given["weight"].zero_()
    assert checked.any(), "a mask must not follow the tensor that it was made of"


def test_a_density_needs_layers() -> None:
    with pytest.raises(ValueError, match="^there is no layer to share a density out over$"):
        layer_densities({}, 0.5)
