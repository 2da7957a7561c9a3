"""Early-bird masks, Robust Bird, the report on overfitting, averages under masks, distillation."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from atlas.methods.sparse_robust import (
    EarlyBird,
    FlyingBird,
    SparseTraining,
    WeightAverage,
    density_of,
    random_masks,
    robust_bird,
    robust_distillation,
    robust_report,
    score_masks,
)
from atlas.nn.convnets import MLP, SmallConvNet


def random_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shuffle(model: nn.Module, seed: int) -> None:
    """Independent random weights."""
    source = random_source(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))


def test_equal_snapshots_settle_at_the_fifth() -> None:
    bird, model = EarlyBird(0.8), SmallConvNet(5, 1, (8, 12))
    assert [bird.update(model) for _ in range(6)] == [False] * 4 + [True] * 2
    assert bird.distances == (0, 0, 0, 0)
    assert EarlyBird(0.8, queue=2).update(model) is False


def test_independent_masks_never_settle() -> None:
    """Two independent masks of sparsity s differ in 2·s·(1 − s) of their entries."""
    bird, model = EarlyBird(0.8), SmallConvNet(5, 1, (40, 40))
    for seed in range(8):
        shuffle(model, seed)
        assert not bird.update(model)
    assert bird.distances == pytest.approx([2 * 0.8 * 0.2] * 4, abs=0.02)


def test_masks_are_of_the_largest_convolution_weights() -> None:
    bird, model = EarlyBird(0.6), SmallConvNet(5, 1, (8, 12))
    with pytest.raises(RuntimeError, match="no mask yet"):
        bird.masks()
    bird.update(model)
    masks = bird.masks()
    assert set(masks) == {"0.weight", "3.weight"}  # linear layers are left out
    weights = torch.cat([dict(model.named_parameters())[name].abs().flatten() for name in masks])
    threshold = weights.sort().values[int(weights.numel() * 0.6)]
    for name, mask in masks.items():
        assert torch.equal(mask, dict(model.named_parameters())[name].abs() > threshold)
    channels = EarlyBird(0.5, threshold=0.1, kind="channel")
    shuffle(model, 0)
    channels.update(model)
    assert {name: mask.shape for name, mask in channels.masks().items()} == {"1.weight": (8,), "4.weight": (12,)}
    linear = EarlyBird(0.6)
    linear.update(MLP(3, 8, (6,)))
    assert set(linear.masks()) == {"layers.0.weight", "layers.1.weight"}


def test_distance_is_symmetric() -> None:
    model, distances = SmallConvNet(5, 1, (8, 12)), []
    for order in ((0, 1), (1, 0)):
        bird = EarlyBird(0.7, queue=2)
        for seed in order:
            shuffle(model, seed)
            bird.update(model)
        distances.append(bird.distances)
    assert distances[0] == distances[1]
    assert 0 < distances[0][0] < 1


def test_early_bird_goes_on_from_its_state() -> None:
    model = SmallConvNet(5, 1, (8, 12))
    first = EarlyBird(0.8)
    for _ in range(3):
        first.update(model)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = EarlyBird(0.8)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert [second.update(model), second.update(model)] == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 1}, "queue"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"threshold": -1.0}, "threshold"),
        ({"kind": "other"}, "kind"),
    ],
)
def test_early_bird_refuses_what_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyBird(**{"sparsity": 0.8, **options})  # type: ignore[arg-type]
    if message == "kind":
        with pytest.raises(ValueError, match="nothing for channel"):
            EarlyBird(0.5, kind="channel").update(MLP(3, 8, (6,)))


def test_robust_bird_stops_early_and_prunes_globally() -> None:
    model, epochs = SmallConvNet(5, 1, (8, 12)), []

    def train_epoch(trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        epochs.append(optimizer)
        optimizer.zero_grad()
        sum(parameter.square().sum() for parameter in trained.parameters()).backward()
        optimizer.step()

    masks = robust_bird(model, lambda trained: torch.optim.SGD(trained.parameters(), lr=1e-4), train_epoch, 0.8, 50)
    assert len(epochs) == 5
    assert set(masks) == {"0.weight", "3.weight", "9.weight"}
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.8 * total)
    expected = score_masks(model, 0.2, "magnitude")
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


def test_robust_bird_says_when_masks_have_not_settled() -> None:
    model, seeds = SmallConvNet(5, 1, (8, 12)), iter(range(100))
    with pytest.warns(UserWarning, match="had not settled after 7 epochs"):
        masks = robust_bird(
            model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), lambda m, _: shuffle(m, next(seeds)), 0.8, 7
        )
    assert next(seeds) == 7
    assert density_of(masks) == pytest.approx(0.2, abs=1e-3)
    with pytest.raises(ValueError, match="max_epochs"):
        robust_bird(model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), lambda m, _: None, 0.8, 0)


def test_report_on_constant_curves_and_ties() -> None:
    flat = robust_report([50.0] * 4, [45.0] * 4, [80.0] * 4, 60.0)
    assert (flat.overfitting, flat.gap, flat.best_epoch) == (0, 15, 0)
    tied = robust_report([40, 50, 50, 30], [1, 46, 47, 41], [1, 80, 81, 83], 70.0)
    assert (tied.best_epoch, tied.ra_best, tied.ra_final, tied.overfitting) == (1, 46, 41, 5)
    assert (tied.sa_best, tied.sa_final, tied.sa_difference, tied.gap) == (80, 83, -3, 29)
    assert robust_report([2, 1], [40, 41], [1, 1], 50).overfitting == -1  # validation and test disagree


def test_report_refuses_curves_with_gaps() -> None:
    with pytest.raises(ValueError, match="val_ra"):
        robust_report([], [], [], 1.0)
    with pytest.raises(ValueError, match="val_ra"):
        robust_report([1.0, float("nan")], [1, 1], [1, 1], 1.0)
    with pytest.raises(ValueError, match="2, 1 and 2"):
        robust_report([1, 2], [1], [1, 2], 1.0)


def test_average_is_the_mean_of_snapshots_under_the_latest_mask() -> None:
    model = SmallConvNet(5, 1, (8, 12))
    average, snapshots = WeightAverage("current"), []
    for seed in range(3):
        shuffle(model, seed)
        masks = random_masks(model, 0.3, generator=random_source(seed))
        SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), masks)
        snapshots.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        average.update(model, masks)
    again = WeightAverage("current")
    again.load_state_dict(average.state_dict())
    again.apply_to(model)
    for name, parameter in model.named_parameters():
        mean = torch.stack([snapshot[name] for snapshot in snapshots]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean * masks[name] if name in masks else mean)


def test_average_needs_a_choice_where_the_topology_moves() -> None:
    model = SmallConvNet(5, 1, (8, 12))
    masks = [random_masks(model, 0.3, generator=random_source(seed)) for seed in range(2)]
    with pytest.raises(ValueError, match="choose support"):
        WeightAverage().update(model, masks[0])
    frozen = WeightAverage("frozen")
    frozen.update(model, masks[0])
    frozen.update(model, masks[0])
    with pytest.raises(ValueError, match="topology changed"):
        frozen.update(model, masks[1])
    with pytest.raises(ValueError, match="support"):
        WeightAverage("other")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no average"):
        WeightAverage().apply_to(model)


def test_average_estimates_statistics_anew() -> None:
    model = SmallConvNet(5, 1, (8, 12))
    average = WeightAverage()
    average.update(model)
    inputs = [torch.rand(16, 1, 8, 8, generator=random_source(seed)) for seed in range(3)]
    average.apply_to(model.eval(), inputs)
    expected = torch.stack([model[0](x).mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, expected)
    assert not model.training
    assert model[1].momentum == 0.1


def test_distillation_by_hand() -> None:
    source = random_source()
    logits, robust, standard = (torch.randn(6, 4, generator=source, dtype=torch.float64) for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])

    def divergence(teacher: torch.Tensor) -> torch.Tensor:
        p, q = (teacher / 2).softmax(1), (logits / 2).softmax(1)
        return 4 * (p * (p / q).log()).sum(1).mean()

    expected = 0.5 * functional.cross_entropy(logits, labels) + 0.25 * divergence(robust) + 0.25 * divergence(standard)
    torch.testing.assert_close(robust_distillation(logits, labels, robust, standard), expected)
    alone = robust_distillation(logits, labels, logits, logits)
    torch.testing.assert_close(alone, 0.5 * functional.cross_entropy(logits, labels))


def test_averages_that_begin_from_one_state_are_separate() -> None:
    model = nn.Linear(3, 2)
    first, second = WeightAverage(), WeightAverage()
    first.update(model)
    second.load_state_dict(first.state_dict())
    kept = {name: value.clone() for name, value in second.average.items()}
    with torch.no_grad():
        model.weight.add_(1)
    first.update(model)
    assert all(torch.equal(kept[name], value) for name, value in second.average.items())


def test_an_average_of_coarse_weights_is_as_fine_as_their_mean() -> None:
    model, average = nn.Linear(8, 8).bfloat16(), WeightAverage()
    source, snapshots = torch.Generator().manual_seed(0), []
    for _ in range(300):
        with torch.no_grad():
            model.weight.copy_(1 + 0.1 * torch.randn(8, 8, generator=source))
        snapshots.append(model.weight.detach().double())
        average.update(model)
    mean = torch.stack(snapshots).mean(0)
    average.apply_to(model)
    assert model.weight.dtype == torch.bfloat16
    assert torch.equal(model.weight, mean.bfloat16())


def test_a_frozen_average_insists_on_the_masks_it_has() -> None:
    model = MLP(5, 4, (6,))
    masks = random_masks(model, 0.5, generator=random_source())
    frozen = WeightAverage("frozen")
    frozen.update(model, masks)
    name = next(iter(masks))
    for other in (None, {name: masks[name]}):
        with pytest.raises(ValueError, match="topology changed"):
            frozen.update(model, other)
    frozen.update(model, masks)


def test_distillation_refuses_a_temperature_of_nothing() -> None:
    logits = torch.randn(3, 4)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            robust_distillation(logits, torch.zeros(3, dtype=torch.long), logits, logits, temperature)


@pytest.mark.parametrize("scaled", ["masked", "bias"])
def test_a_step_that_a_scaler_skips_leaves_the_topology(scaled: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    bird = FlyingBird(model, optimizer, density=0.3, total_steps=10, interval=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(functional.cross_entropy(model(torch.rand(8, 20)), torch.randint(3, (8,)))).backward()
    (model[0].bias if scaled == "bias" else model[0].weight).grad.view(-1)[0] = float("inf")
    before = {name: mask.clone() for name, mask in bird.masks.items()}
    weight = model[0].weight.detach().clone()
    assert bird.step(scaler) is None
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(bird.masks[name], mask) for name, mask in before.items())
    assert torch.equal(model[0].weight, weight)


def test_an_interval_of_nothing_is_refused_before_the_step() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    bird = FlyingBird(model, optimizer, density=0.5, total_steps=10, interval=lambda step: 0)
    functional.cross_entropy(model(torch.rand(4, 8)), torch.randint(3, (4,))).backward()
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="interval must be at least 1"):
        bird.step()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_a_layer_that_the_network_does_not_use_scores_nothing(score: str) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.used(x).tanh())

    torch.manual_seed(0)
    data = [(torch.rand(5, 6), torch.randint(3, (5,)))]
    masks = score_masks(Aside(), 0.5, score, data, scope="global")  # type: ignore[arg-type]
    assert not masks["unused.weight"].any()
    assert masks["used.weight"].any()


def test_masks_of_two_models_are_not_compared() -> None:
    bird = EarlyBird(0.5)
    bird.update(SmallConvNet(5, 1, (8, 12)))
    with pytest.raises(ValueError, match="an EarlyBird for each model"):
        bird.update(SmallConvNet(5, 1, (8, 10)))
    bird.update(SmallConvNet(5, 1, (8, 12)))
